// CPU kernels of masked_roi_pool; isa.h says how they are compiled.
//
// Channels are the vector in both layouts: a table has one row of channels per region present, and a pixel updates the row
// of its region. So the work per pixel does not depend on the number of regions, nor on how the regions lie; a row stays in
// registers while neighbouring pixels share it. In contiguous layout blocks of a vector of pixels x as many channels are
// transposed in registers first.
#include "masked_roi_pool.h"

#include "vec.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// Positions travel beside the maxima, in integers as wide as the values.
template <typename A>
MIXSYN_INLINE Mask<A> roi_splat(int64_t value) {
  return Mask<A>{} + static_cast<std::conditional_t<sizeof(A) == 4, int32_t, int64_t>>(value);
}

template <typename A>
MIXSYN_INLINE Mask<A> roi_load_index(const int32_t* from) {
  Mask<A> v;
  if constexpr (sizeof(A) == 4) {
    __builtin_memcpy(&v, from, sizeof(v));
  } else {
    for (int i = 0; i < kLanes<A>; ++i) v[i] = from[i];
  }
  return v;
}
template <typename A>
MIXSYN_INLINE void roi_store_index(int32_t* to, Mask<A> v) {
  if constexpr (sizeof(A) == 4) {
    __builtin_memcpy(to, &v, sizeof(v));
  } else {
    for (int i = 0; i < kLanes<A>; ++i) to[i] = static_cast<int32_t>(v[i]);
  }
}

// The larger of two and where it lies, the earlier of equals; a NaN is larger than everything, the first NaN stays. x may be
// a NaN only where MAY_BE_NAN is set; best may always be one.
template <typename A, bool MAY_BE_NAN>
MIXSYN_INLINE void roi_take(Vec<A>& best, Mask<A>& where, Vec<A> x, Mask<A> at) {
  const Mask<A> take = MAY_BE_NAN ? ~((x <= best) | (best != best)) : x > best;
  if constexpr (MIXSYN_VECTOR_BYTES == 16) {
    where = (take & at) | (~take & where);  // GCC takes a choice between 64-bit integers apart where SSE2 has none
  } else {
    where = take ? at : where;
  }
  best = MAY_BE_NAN ? (take ? x : best) : (x > best ? x : best);
}

// What one item owns.
template <typename T, typename A>
struct RoiItem {
  const RoiPlan* plan;
  int64_t image, tile, split;
  int64_t c0, nc;  // channels
  int64_t p0, p1;  // pixels
  A* table;
  int32_t* where;
};

template <typename T, typename A>
MIXSYN_INLINE RoiItem<T, A> roi_item(const RoiPool<T, A>& a, int64_t item) {
  RoiItem<T, A> i;
  i.split = item % a.splits, i.tile = item / a.splits % a.tiles, i.image = item / a.splits / a.tiles;
  i.plan = a.plans + i.image;
  i.c0 = i.tile * a.tile;
  i.nc = a.channels - i.c0 < a.tile ? a.channels - i.c0 : a.tile;
  i.p0 = i.split * a.split_pixels;
  i.p1 = i.p0 + a.split_pixels < a.pixels ? i.p0 + a.split_pixels : a.pixels;
  const int64_t begin = a.table_begin[i.image] + (i.tile * a.splits + i.split) * i.plan->rows * a.tile;
  i.table = a.table + begin;
  i.where = a.maximum ? a.where + begin : nullptr;
  return i;
}

// Every row begins with its first pixel (so a region of -inf has a position, too), or with a sum of zero.
template <typename T, typename A>
MIXSYN_INLINE void roi_begin(const RoiPool<T, A>& a, const RoiItem<T, A>& i, int64_t channel_stride,
                             int64_t pixel_stride) {
  const int32_t* first = i.plan->first.data() + i.split * i.plan->rows;
  const T* x = a.x + i.image * a.channels * a.pixels + i.c0 * channel_stride;
  for (int64_t r = 0; r < i.plan->rows; ++r) {
    A* row = i.table + r * a.tile;
    const int64_t p = first[r];
    for (int64_t c = 0; c < a.tile; ++c)
      row[c] = a.maximum && p >= 0 && c < i.nc ? static_cast<A>(x[c * channel_stride + p * pixel_stride]) : A(0);
    if (a.maximum)
      for (int64_t c = 0; c < a.tile; ++c) i.where[r * a.tile + c] = static_cast<int32_t>(p);
  }
}

// Pixels of a run that are summed before their sum goes to the table: keeps the error of long sums small.
constexpr int64_t kRoiRun = 512;
// Vectors of channels that a run keeps in registers: maxima, and where they lie.
constexpr int kRoiVectors = 4;

// Channels [c, c + kRoiVectors vectors) of the item, pixels [p, end) of one row. Returns false, having done nothing, where
// there is a NaN that was not reckoned with.
template <typename T, typename A, bool FULL, bool MAY_BE_NAN>
MIXSYN_INLINE bool roi_run_maximum(const RoiPool<T, A>& a, const T* from, int64_t nc, int64_t p, int64_t end, A* values,
                                   int32_t* where) {
  constexpr int L = kLanes<A>, NV = kRoiVectors;
  Vec<A> best[NV];
  Mask<A> at[NV], here = roi_splat<A>(p), nan = {};
  for (int v = 0; v < NV; ++v) best[v] = load(values + v * L), at[v] = roi_load_index<A>(where + v * L);
  for (; p < end; ++p, from += a.channels, here += 1)
    for (int v = 0; v < NV; ++v) {
      const Vec<A> x = load_part<FULL>(from + v * L, nc - v * L);
      if (!MAY_BE_NAN) nan |= x != x;
      roi_take<A, MAY_BE_NAN>(best[v], at[v], x, here);
    }
  if (!MAY_BE_NAN && any_lane(nan)) return false;
  for (int v = 0; v < NV; ++v) store(values + v * L, best[v]), roi_store_index<A>(where + v * L, at[v]);
  return true;
}

template <typename T, typename A, bool FULL>
MIXSYN_INLINE void roi_run_sum(const RoiPool<T, A>& a, const T* from, int64_t nc, int64_t p, int64_t end, A* values) {
  constexpr int L = kLanes<A>, NV = kRoiVectors;
  Vec<A> sum[NV];
  for (int v = 0; v < NV; ++v) sum[v] = Vec<A>{};
  for (; p < end; ++p, from += a.channels)
    for (int v = 0; v < NV; ++v) sum[v] += load_part<FULL>(from + v * L, nc - v * L);
  for (int v = 0; v < NV; ++v) store(values + v * L, load(values + v * L) + sum[v]);
}

template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_last(const RoiPool<T, A>& a, const RoiItem<T, A>& i) {
  constexpr int64_t kStep = kRoiVectors * kLanes<A>;
  const T* x = a.x + i.image * a.pixels * a.channels + i.c0;
  const int32_t* rows = i.plan->row.data();
  for (int64_t p = i.p0, end = p; p < i.p1; p = end) {
    const int32_t row = rows[p];
    const int64_t limit = p + kRoiRun < i.p1 ? p + kRoiRun : i.p1;
    for (++end; end < limit && rows[end] == row;) ++end;
    A* values = i.table + row * a.tile;
    int32_t* where = MAXIMUM ? i.where + row * a.tile : nullptr;
    for (int64_t c = 0; c < i.nc; c += kStep) {
      const T* from = x + p * a.channels + c;
      if constexpr (MAXIMUM) {
        if (!roi_run_maximum<T, A, FULL, false>(a, from, i.nc - c, p, end, values + c, where + c))
          roi_run_maximum<T, A, FULL, true>(a, from, i.nc - c, p, end, values + c, where + c);
      } else {
        roi_run_sum<T, A, FULL>(a, from, i.nc - c, p, end, values + c);
      }
    }
  }
}

// The pixels of a transposed block, n vectors of channels: every pixel updates the row of its region.
template <typename A, bool MAY_BE_NAN>
MIXSYN_INLINE void roi_update_maximum(const Vec<A>* block, const int32_t* rows, int64_t p, int64_t n, A* table,
                                      int32_t* position, int64_t stride) {
  for (int64_t q = 0; q < n;) {
    const int32_t row = rows[q];
    A* values = table + row * stride;
    int32_t* where = position + row * stride;
    Vec<A> best = load(values);
    Mask<A> at = roi_load_index<A>(where);
    do {
      roi_take<A, MAY_BE_NAN>(best, at, block[q], roi_splat<A>(p + q));
      ++q;
    } while (q < n && rows[q] == row);
    store(values, best);
    roi_store_index<A>(where, at);
  }
}

template <typename A>
MIXSYN_INLINE void roi_update_sum(const Vec<A>* block, const int32_t* rows, int64_t n, A* table, int64_t stride) {
  for (int64_t q = 0; q < n;) {
    const int32_t row = rows[q];
    A* values = table + row * stride;
    Vec<A> sum = {};
    do {
      sum += block[q];
      ++q;
    } while (q < n && rows[q] == row);
    store(values, load(values) + sum);
  }
}

// The same where all pixels lie in one row and none is a NaN: two halves, so that one maximum does not wait for the other.
template <typename A>
MIXSYN_INLINE void roi_update_uniform(const Vec<A>* block, int64_t p, A* values, int32_t* where) {
  constexpr int H = kLanes<A> / 2;
  Vec<A> best = load(values), other = block[H];
  Mask<A> at = roi_load_index<A>(where), other_at = roi_splat<A>(p + H);
  roi_take<A, false>(best, at, block[0], roi_splat<A>(p));
  MIXSYN_UNROLL
  for (int q = 1; q < H; ++q) {
    roi_take<A, false>(best, at, block[q], roi_splat<A>(p + q));
    roi_take<A, false>(other, other_at, block[H + q], roi_splat<A>(p + H + q));
  }
  roi_take<A, false>(best, at, other, other_at);
  store(values, best);
  roi_store_index<A>(where, at);
}

// n pixels x kLanes channels from c on, by transposition; uniform: whole blocks, all in one row.
template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_block(const RoiPool<T, A>& a, const RoiItem<T, A>& i, const T* x, int64_t p, int64_t n,
                             int64_t c, bool uniform) {
  constexpr int L = kLanes<A>;
  const int32_t* rows = i.plan->row.data() + p;
  Vec<A> block[L];
  Mask<A> nan = {};
  for (int k = 0; k < L; ++k) {
    block[k] = FULL || c + k < i.nc ? load_part<false>(x + (c + k) * a.pixels + p, n) : Vec<A>{};
    if (MAXIMUM) nan |= block[k] != block[k];
  }
  transpose<A>(block);
  if constexpr (!MAXIMUM) {
    roi_update_sum<A>(block, rows, n, i.table + c, a.tile);
  } else if (any_lane(nan)) {
    roi_update_maximum<A, true>(block, rows, p, n, i.table + c, i.where + c, a.tile);
  } else if (uniform) {
    roi_update_uniform<A>(block, p, i.table + rows[0] * a.tile + c, i.where + rows[0] * a.tile + c);
  } else {
    roi_update_maximum<A, false>(block, rows, p, n, i.table + c, i.where + c, a.tile);
  }
}

// Lines of planes that lie a power of two apart evict each other: one of every plane is used up before the next planes.
template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_first(const RoiPool<T, A>& a, const RoiItem<T, A>& i) {
  constexpr int L = kLanes<A>;
  const T* x = a.x + (i.image * a.channels + i.c0) * a.pixels;
  for (int64_t begin = i.p0, end = begin; begin < i.p1; begin = end) {
    end = i.p1 - begin < kLine<A> ? i.p1 : begin + kLine<A>;
    const bool uniform = i.plan->block[static_cast<size_t>(begin / kLine<A>)] >= 0;
    for (int64_t c = 0; c < i.nc; c += L)
      for (int64_t p = begin; p < end; p += L)
        roi_block<T, A, MAXIMUM, FULL>(a, i, x, p, end - p < L ? end - p : L, c, uniform);
  }
}

template <typename T, typename A>
void roi_pool_last(const RoiPool<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RoiItem<T, A> i = roi_item(a, item);
    roi_begin(a, i, 1, a.channels);
    const bool full = i.nc == a.tile;
    if (a.maximum)
      full ? roi_last<T, A, true, true>(a, i) : roi_last<T, A, true, false>(a, i);
    else
      full ? roi_last<T, A, false, true>(a, i) : roi_last<T, A, false, false>(a, i);
  }
}

template <typename T, typename A>
void roi_pool_first(const RoiPool<T, A>& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RoiItem<T, A> i = roi_item(a, item);
    roi_begin(a, i, a.pixels, 1);
    const bool full = i.nc == a.tile;
    if (i.p0 >= i.p1) continue;
    if (a.maximum)
      full ? roi_first<T, A, true, true>(a, i) : roi_first<T, A, true, false>(a, i);
    else
      full ? roi_first<T, A, false, true>(a, i) : roi_first<T, A, false, false>(a, i);
  }
}

template <typename T, typename A>
const RoiPoolKernels<T, A>& masked_roi_pool_kernels() {
  static const RoiPoolKernels<T, A> table = {roi_pool_last<T, A>, roi_pool_first<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(RoiPoolKernels, masked_roi_pool_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
