// CPU kernels of masked_roi_pool, included once per instruction set inside its namespace and target pragma
// (masked_roi_pool_<instruction set>.cpp). No lambda and no call of a non-inlined helper: both would lose the target.
//
// Channels are the vector in both layouts: a table has one row of channels per region present, and a pixel updates the row
// of its region. So the work per pixel does not depend on the number of regions, nor on how the regions lie; a row stays in
// registers while neighbouring pixels share it. In contiguous layout blocks of 16 pixels x 16 channels are transposed in
// registers first.

// Positions travel beside the maxima, in integers as wide as the values.
template <typename A>
using RoiIndex = typename VecOf<A>::mask;

template <typename A>
MIXSYN_INLINE RoiIndex<A> roi_splat(int64_t value) {
  RoiIndex<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = static_cast<std::remove_reference_t<decltype(v[0])>>(value);
  return v;
}

// The larger of two, the earlier of equals; a NaN is larger than everything, the first NaN stays.
template <typename V, typename I>
MIXSYN_INLINE void roi_take(V& best, I& where, V x, I p) {
#if defined(MIXSYN_AVX512)
  if constexpr (sizeof(best[0]) == 4) {
    __m512 b;
    __m512i w;
    __builtin_memcpy(&b, &best, 64);
    __builtin_memcpy(&w, &where, 64);
    __m512 value;
    __m512i at;
    __builtin_memcpy(&value, &x, 64);
    __builtin_memcpy(&at, &p, 64);
    const __mmask16 ordered = _mm512_cmp_ps_mask(b, b, _CMP_ORD_Q);
    const __mmask16 take = _mm512_mask_cmp_ps_mask(ordered, value, b, _CMP_NLE_UQ);
    b = _mm512_mask_mov_ps(b, take, value);
    w = _mm512_mask_mov_epi32(w, take, at);
    __builtin_memcpy(&best, &b, 64);
    __builtin_memcpy(&where, &w, 64);
    return;
  }
#endif
  const auto keep = (x <= best) | (best != best);
  best = keep ? best : x;
  where = keep ? where : p;
}

template <typename A>
MIXSYN_INLINE void roi_store_index(int32_t* to, RoiIndex<A> v) {
  for (int i = 0; i < kLanes<A>; ++i) to[i] = static_cast<int32_t>(v[i]);
}
template <typename A>
MIXSYN_INLINE RoiIndex<A> roi_load_index(const int32_t* from) {
  RoiIndex<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = from[i];
  return v;
}

// Rows to columns, in registers.
#if defined(MIXSYN_AVX512)
template <int S>
MIXSYN_INLINE void roi_exchange(Vec<float>* rows) {
  // 2 x 2 blocks of S x S elements: the off-diagonal ones change places
  typedef int32_t Lanes __attribute__((vector_size(64)));
  Lanes low, high;
  for (int j = 0; j < 16; ++j) low[j] = (j & S) ? 16 + (j ^ S) : j, high[j] = (j & S) ? 16 + j : j + S;
  for (int i = 0; i < 16; ++i) {
    if (i & S) continue;
    const Vec<float> a = rows[i], b = rows[i + S];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + S] = __builtin_shuffle(a, b, high);
  }
}
MIXSYN_INLINE void roi_transpose(Vec<float>* rows) {
  roi_exchange<1>(rows);
  roi_exchange<2>(rows);
  roi_exchange<4>(rows);
  roi_exchange<8>(rows);
}
#elif defined(MIXSYN_AVX2)
// 8 x 8: pairs, quadruples, halves
MIXSYN_INLINE void roi_transpose_8(__m256* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
MIXSYN_INLINE void roi_transpose(Vec<float>* rows) {
  for (int half = 0; half < 2; ++half)
    for (int other = 0; other <= half; ++other) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; ++i) {
        __builtin_memcpy(&a[i], reinterpret_cast<const char*>(&rows[8 * half + i]) + 32 * other, 32);
        __builtin_memcpy(&b[i], reinterpret_cast<const char*>(&rows[8 * other + i]) + 32 * half, 32);
      }
      roi_transpose_8(a);
      roi_transpose_8(b);
      for (int i = 0; i < 8; ++i) {
        __builtin_memcpy(reinterpret_cast<char*>(&rows[8 * half + i]) + 32 * other, &b[i], 32);
        __builtin_memcpy(reinterpret_cast<char*>(&rows[8 * other + i]) + 32 * half, &a[i], 32);
      }
    }
}
#endif
template <typename V>
MIXSYN_INLINE void roi_transpose(V* rows) {
  constexpr int L = static_cast<int>(sizeof(V) / sizeof(rows[0][0]));
  std::remove_reference_t<decltype(rows[0][0])> tile[L][L];
  __builtin_memcpy(tile, rows, sizeof(tile));
  for (int i = 0; i < L; ++i)
    for (int j = 0; j < L; ++j) rows[i][j] = tile[j][i];
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

template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_last(const RoiPool<T, A>& a, const RoiItem<T, A>& i) {
  constexpr int L = kLanes<A>, NV = kRoiVectors;
  const T* x = a.x + i.image * a.pixels * a.channels + i.c0;
  const int32_t* rows = i.plan->row.data();
  for (int64_t p = i.p0; p < i.p1;) {
    const int32_t row = rows[p];
    A* values = i.table + row * a.tile;
    const int64_t limit = p + kRoiRun < i.p1 ? p + kRoiRun : i.p1;
    if constexpr (MAXIMUM) {
      int32_t* where = i.where + row * a.tile;
      Vec<A> best[NV];
      RoiIndex<A> at[NV];
      for (int v = 0; v < NV; ++v) best[v] = load(values + v * L), at[v] = roi_load_index<A>(where + v * L);
      do {
        const RoiIndex<A> here = roi_splat<A>(p);
        for (int v = 0; v < NV; ++v) {
          if (!FULL && v * L >= i.nc) break;
          roi_take(best[v], at[v], load_part<FULL>(x + p * a.channels + v * L, i.nc - v * L), here);
        }
        ++p;
      } while (p < limit && rows[p] == row);
      for (int v = 0; v < NV; ++v) store(values + v * L, best[v]), roi_store_index<A>(where + v * L, at[v]);
    } else {
      Vec<A> sum[NV];
      for (int v = 0; v < NV; ++v) sum[v] = Vec<A>{};
      do {
        for (int v = 0; v < NV; ++v) {
          if (!FULL && v * L >= i.nc) break;
          sum[v] += load_part<FULL>(x + p * a.channels + v * L, i.nc - v * L);
        }
        ++p;
      } while (p < limit && rows[p] == row);
      for (int v = 0; v < NV; ++v) store(values + v * L, load(values + v * L) + sum[v]);
    }
  }
}

template <typename T, typename A, bool MAXIMUM, bool FULL>
MIXSYN_INLINE void roi_first(const RoiPool<T, A>& a, const RoiItem<T, A>& i) {
  constexpr int L = kLanes<A>;
  const T* x = a.x + (i.image * a.channels + i.c0) * a.pixels;
  const int32_t* rows = i.plan->row.data();
  int32_t row = rows[i.p0];
  Vec<A> value = load(i.table + row * a.tile);
  RoiIndex<A> at = {};
  if (MAXIMUM) at = roi_load_index<A>(i.where + row * a.tile);
  Vec<A> sum = {};
  for (int64_t p = i.p0; p < i.p1; p += L) {
    const int64_t n = i.p1 - p < L ? i.p1 - p : L;
    Vec<A> block[L];
    for (int c = 0; c < L; ++c) {
      if (FULL || c < i.nc)
        block[c] = n == L ? load(x + c * a.pixels + p) : load_n(x + c * a.pixels + p, n);
      else
        block[c] = Vec<A>{};
    }
    roi_transpose(block);
    const bool uniform = i.plan->block[p / L] >= 0;
    for (int64_t q = 0; q < n;) {
      const int32_t next = rows[p + q];
      if (next != row) {
        if (MAXIMUM) {
          store(i.table + row * a.tile, value);
          roi_store_index<A>(i.where + row * a.tile, at);
          at = roi_load_index<A>(i.where + next * a.tile);
        } else {
          store(i.table + row * a.tile, value + sum);
          sum = Vec<A>{};
        }
        row = next;
        value = load(i.table + row * a.tile);
      }
      if (uniform) {  // n is L here
        for (int k = 0; k < L; ++k) {
          if (MAXIMUM)
            roi_take(value, at, block[k], roi_splat<A>(p + k));
          else
            sum += block[k];
        }
        break;
      }
      if (MAXIMUM)
        roi_take(value, at, block[q], roi_splat<A>(p + q));
      else
        sum += block[q];
      ++q;
    }
    if (!MAXIMUM && (p & (kRoiRun - 1)) == 0) value += sum, sum = Vec<A>{};
  }
  store(i.table + row * a.tile, MAXIMUM ? value : value + sum);
  if (MAXIMUM) roi_store_index<A>(i.where + row * a.tile, at);
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

// What the other files may use.
template const RoiPoolKernels<double, double>& masked_roi_pool_kernels<double, double>();
template const RoiPoolKernels<float, float>& masked_roi_pool_kernels<float, float>();
template const RoiPoolKernels<c10::Half, float>& masked_roi_pool_kernels<c10::Half, float>();
template const RoiPoolKernels<c10::BFloat16, float>& masked_roi_pool_kernels<c10::BFloat16, float>();
