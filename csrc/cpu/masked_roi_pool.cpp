// CPU kernels of masked_roi_pool; isa.h says how they are compiled.
//
// Channels are the vector in both layouts: a table has one row of channels per region present, and a pixel updates the row
// of its region. So the work per pixel does not depend on the number of regions, nor on how the regions lie; a row stays in
// registers while neighbouring pixels share it. In contiguous layout blocks of 16 pixels x 16 channels are transposed in
// registers first.
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
  where = take ? at : where;
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

#if defined(MIXSYN_AVX512)
template <typename T>
MIXSYN_INLINE __m512 roi_load(const T* from) {
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_loadu_ps(from);
  } else {
    return load(from);
  }
}
template <typename T>
MIXSYN_INLINE __m512 roi_load_n(const T* from, int64_t n) {
  return load_part<false>(from, n);
}

// Sixteen rows to one vector of their maxima or sums: lane j for row j. A tree of exchanges of 2 x 2 blocks, half as much
// work as a transposition.
template <int S, bool MAXIMUM>
MIXSYN_INLINE __m512 roi_pair(__m512 a, __m512 b) {
  // S is a lane bit: result lanes with the bit clear come from a, the others from b
  __m512 low, high;
  if constexpr (S == 1) {
    low = _mm512_mask_moveldup_ps(a, 0xAAAA, b);                  // a0 b0 a2 b2 ..
    high = _mm512_mask_mov_ps(_mm512_movehdup_ps(a), 0xAAAA, b);  // a1 b1 a3 b3 ..
  } else if constexpr (S == 2) {
    low = _mm512_shuffle_ps(a, b, 0x44);   // a0 a1 b0 b1
    high = _mm512_shuffle_ps(a, b, 0xEE);  // a2 a3 b2 b3
  } else if constexpr (S == 4) {
    // 128-bit lanes 0 1 2 3 -> a0 b0 a2 b2 and a1 b1 a3 b3
    low = _mm512_mask_shuffle_f32x4(a, 0xF0F0, b, b, 0xA0);
    high = _mm512_mask_mov_ps(_mm512_shuffle_f32x4(a, a, 0xF5), 0xF0F0, b);
  } else {
    low = _mm512_shuffle_f32x4(a, b, 0x44);   // lanes a0 a1 b0 b1
    high = _mm512_shuffle_f32x4(a, b, 0xEE);  // lanes a2 a3 b2 b3
  }
  return MAXIMUM ? _mm512_max_ps(low, high) : _mm512_add_ps(low, high);
}

template <bool MAXIMUM>
MIXSYN_INLINE __m512 roi_tree(__m512* r) {
  for (int i = 0; i < 8; ++i) r[i] = roi_pair<1, MAXIMUM>(r[2 * i], r[2 * i + 1]);
  for (int i = 0; i < 4; ++i) r[i] = roi_pair<2, MAXIMUM>(r[2 * i], r[2 * i + 1]);
  for (int i = 0; i < 2; ++i) r[i] = roi_pair<4, MAXIMUM>(r[2 * i], r[2 * i + 1]);
  return roi_pair<8, MAXIMUM>(r[0], r[1]);
}

// Pixels that one step of the trees takes, and regions among them that are worth a tree each: with more, blocks of 16
// pixels are transposed.
constexpr int kRoiStep = 64, kRoiStepBlocks = kRoiStep / 16;
constexpr int kRoiTrees = 10;

// One step of 64 pixels x 16 channels: for every region in it, masked maxima (sums) of the step's four vectors of each
// channel, then one tree for all 16 channels. `where` becomes the region's first pixel in the step; the exact position is
// looked up at the end, for the few maxima that are left. Returns false where the step is left to the exact path: it holds
// a NaN, or too many regions.
template <typename T, bool MAXIMUM, bool FULL>
MIXSYN_INLINE bool roi_trees(const RoiPool<T, float>& a, const RoiItem<T, float>& i, const T* x, int64_t p, int64_t n) {
  const int32_t* rows = i.plan->row.data() + p;
  const __m512 neutral = _mm512_set1_ps(MAXIMUM ? -__builtin_inff() : 0.0f);
  __mmask16 valid[kRoiStepBlocks];
  __m512i lanes[kRoiStepBlocks];
  bool uniform = n == kRoiStep;
  for (int j = 0; j < kRoiStepBlocks; ++j) {
    const int64_t left = n - 16 * j;
    valid[j] = left >= 16 ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>(left > 0 ? (1u << left) - 1u : 0u);
    lanes[j] = _mm512_maskz_loadu_epi32(valid[j], rows + 16 * j);
    uniform &= _mm512_cmpneq_epi32_mask(lanes[j], _mm512_set1_epi32(rows[0])) == 0;
  }
  int32_t found[kRoiTrees];
  int64_t first[kRoiTrees];
  __mmask16 own[kRoiTrees][kRoiStepBlocks];
  int count = 0;
  if (uniform) {
    found[0] = rows[0], first[0] = p, count = 1;
  } else {
    __mmask16 left[kRoiStepBlocks];
    for (int j = 0; j < kRoiStepBlocks; ++j) left[j] = valid[j];
    for (int j = 0; j < kRoiStepBlocks; ++j) {
      while (left[j]) {
        if (count == kRoiTrees) return false;
        const int at = 16 * j + __builtin_ctz(left[j]);
        const __m512i row = _mm512_set1_epi32(rows[at]);
        found[count] = rows[at], first[count] = p + at;
        for (int k = 0; k < kRoiStepBlocks; ++k) {
          own[count][k] = k < j ? static_cast<__mmask16>(0) : _mm512_mask_cmpeq_epi32_mask(left[k], lanes[k], row);
          left[k] = static_cast<__mmask16>(left[k] & ~own[count][k]);
        }
        ++count;
      }
    }
  }
  __mmask16 nan = 0;
  __m512 r[kRoiTrees][16];
  for (int c = 0; c < 16; ++c) {
    const T* from = x + c * a.pixels + p;
    __m512 v[kRoiStepBlocks];
    if (FULL || c < i.nc) {
#pragma GCC unroll 4
      for (int j = 0; j < kRoiStepBlocks; ++j) {
        __builtin_prefetch(from + kRoiStep + 16 * j, 0, 2);  // sixteen streams are more than the hardware follows
        v[j] = 16 * j + 16 <= n ? roi_load(from + 16 * j) : roi_load_n(from + 16 * j, n - 16 * j);
      }
    } else {
      for (int j = 0; j < kRoiStepBlocks; ++j) v[j] = neutral;
    }
    if (MAXIMUM) nan |= _mm512_cmp_ps_mask(v[0], v[1], _CMP_UNORD_Q) | _mm512_cmp_ps_mask(v[2], v[3], _CMP_UNORD_Q);
    if (uniform) {
      r[0][c] = MAXIMUM ? _mm512_max_ps(_mm512_max_ps(v[0], v[1]), _mm512_max_ps(v[2], v[3]))
                        : _mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3]));
      continue;
    }
    for (int g = 0; g < count; ++g) {
      __m512 value = neutral;
#pragma GCC unroll 4
      for (int j = 0; j < kRoiStepBlocks; ++j)
        value = MAXIMUM ? _mm512_mask_max_ps(value, own[g][j], value, v[j])
                        : _mm512_mask_add_ps(value, own[g][j], value, v[j]);
      r[g][c] = value;
    }
  }
  if (MAXIMUM && nan) return false;
  for (int g = 0; g < count; ++g) {
    const __m512 best = roi_tree<MAXIMUM>(r[g]);
    float* values = i.table + found[g] * a.tile;
    const __m512 before = _mm512_loadu_ps(values);
    if (MAXIMUM) {
      int32_t* where = i.where + found[g] * a.tile;
      const __mmask16 take = _mm512_cmp_ps_mask(best, before, _CMP_GT_OQ);  // false where `before` is a NaN
      // whole stores: a load soon after a masked one would wait for it
      _mm512_storeu_ps(values, _mm512_mask_mov_ps(before, take, best));
      const __m512i at = _mm512_set1_epi32(static_cast<int32_t>(first[g]));
      _mm512_storeu_epi32(where, _mm512_mask_mov_epi32(_mm512_loadu_epi32(where), take, at));
    } else {
      _mm512_storeu_ps(values, _mm512_add_ps(before, best));
    }
  }
  return true;
}

// Replaces the begin of a step by the position of the maximum: the first equal pixel of the region from there on.
template <typename T>
MIXSYN_INLINE void roi_resolve(const RoiPool<T, float>& a, const RoiItem<T, float>& i, const T* x) {
  const int32_t* rows = i.plan->row.data();
  for (int64_t r = 0; r + 1 < i.plan->rows; ++r) {
    int32_t* where = i.where + r * a.tile;
    const float* values = i.table + r * a.tile;
    if (where[0] < 0) continue;  // no pixel of the region here
    for (int64_t c = 0; c < i.nc; ++c) {
      const __m512 best = _mm512_set1_ps(values[c]);
      if (values[c] != values[c]) continue;  // a NaN: exact already
      for (int64_t p = where[c];; p += 16) {
        const int64_t n = i.p1 - p < 16 ? i.p1 - p : 16;
        const T* from = x + c * a.pixels + p;
        const __m512 value = n == 16 ? roi_load(from) : roi_load_n(from, n);
        const __mmask16 valid = static_cast<__mmask16>((1u << n) - 1u);
        __mmask16 hit = _mm512_mask_cmpeq_epi32_mask(valid, _mm512_maskz_loadu_epi32(valid, rows + p),
                                                     _mm512_set1_epi32(static_cast<int32_t>(r)));
        hit = _mm512_mask_cmp_ps_mask(hit, value, best, _CMP_EQ_OQ);
        if (hit) {
          where[c] = static_cast<int32_t>(p + __builtin_ctz(hit));
          break;
        }
      }
    }
  }
}
#endif

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

// n pixels x kLanes channels from c on, by transposition.
template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_block(const RoiPool<T, A>& a, const RoiItem<T, A>& i, const T* x, int64_t p, int64_t n,
                             int64_t c) {
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
  } else {
    roi_update_maximum<A, false>(block, rows, p, n, i.table + c, i.where + c, a.tile);
  }
}

template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_blocks(const RoiPool<T, A>& a, const RoiItem<T, A>& i, const T* x, int64_t p0, int64_t p1) {
  constexpr int L = kLanes<A>;
  // a line of every plane is used up before the next planes: lines of planes that lie a power of two apart evict each other
  for (int64_t begin = p0, end = p0; begin < p1; begin = end) {
    end = p1 - begin < kLine<A> ? p1 : begin + kLine<A>;
    for (int64_t c = 0; c < i.nc; c += L)
      for (int64_t p = begin; p < end; p += L) roi_block<T, A, MAXIMUM, FULL>(a, i, x, p, end - p < L ? end - p : L, c);
  }
}

template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_first(const RoiPool<T, A>& a, const RoiItem<T, A>& i) {
  const T* x = a.x + (i.image * a.channels + i.c0) * a.pixels;
#if defined(MIXSYN_AVX512)
  if constexpr (sizeof(A) == 4) {
    for (int64_t p = i.p0; p < i.p1; p += kRoiStep) {
      const int64_t n = i.p1 - p < kRoiStep ? i.p1 - p : kRoiStep;
      if (!roi_trees<T, MAXIMUM, FULL>(a, i, x, p, n)) roi_blocks<T, A, MAXIMUM, FULL>(a, i, x, p, p + n);
    }
    if (MAXIMUM) roi_resolve(a, i, x);
    return;
  }
#endif
  roi_blocks<T, A, MAXIMUM, FULL>(a, i, x, i.p0, i.p1);
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
