// CPU kernels of spatial_attention_pool; isa.h says how they are compiled.
//
// A part (a chunk of positions of one image) is worked through in tiles that stay in the second-level cache: logits, running
// maximum, exp, sums. channels_last: rows of a tile are positions; contiguous: rows are channels (copied, for the rows of an
// image lie a power of two apart and would evict each other). The products are those of products.h, with the operands
// swapped between the layouts so that neither needs a transpose of the features.
#include "spatial_attention_pool.h"

#include "vec.h"
#include "products.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// Where a thread's scratch lies, in elements.
template <typename T, typename A>
struct PoolScratch {
  int64_t stride;  // contiguous: of a row of the tile; one line more than the tile, against cache conflicts
  int64_t kp, np, mp;
  A *feature, *condition, *maps, *turned, *scale, *grad_feature, *grad_condition;
  int64_t size;
};

template <typename T, typename A>
MIXSYN_INLINE PoolScratch<T, A> pool_scratch(const SpatialAttentionPool<T, A>& a, A* base) {
  constexpr int L = kLine<A>;
  PoolScratch<T, A> s = {};
  s.stride = a.tile + L;
  s.kp = products_padded(a.maps, L), s.np = products_padded(a.features, L), s.mp = products_padded(a.conditions, L);
  const int64_t feature = a.channels_last ? a.tile * s.np : a.features * s.stride;
  const int64_t condition = a.channels_last ? a.tile * s.mp : a.conditions * s.stride;
  // contiguous: rows of maps, their gradient and a row of ones, then padding rows that a transpose reads
  const int64_t maps = a.channels_last ? a.tile * 2 * s.kp : (2 * s.kp + 1) * s.stride;
  const int64_t turned = (a.channels_last ? s.kp : a.tile) * (a.channels_last ? s.stride : s.kp);
  const int64_t grad_feature = a.grad_feature ? feature : 0, grad_condition = a.grad_condition ? condition : 0;
  s.size = feature + condition + maps + turned + s.kp + grad_feature + grad_condition;
  if (!base) return s;  // only the size is wanted
  s.feature = base;
  s.condition = s.feature + feature;
  s.maps = s.condition + condition;
  s.turned = s.maps + maps;
  s.scale = s.turned + turned;  // of the sums so far, when the running maximum grows: (Kp)
  s.grad_feature = s.scale + s.kp;
  s.grad_condition = s.grad_feature + grad_feature;
  return s;
}

template <typename T, typename A>
int64_t pool_scratch_size(const SpatialAttentionPool<T, A>& a) {
  return pool_scratch<T, A>(a, nullptr).size;
}

// Rows of one tile: in place where they are full lines of the accumulation type, else a converted copy.
template <typename A>
struct PoolRows {
  const A* data;
  int64_t stride;
};

template <typename T, typename A>
MIXSYN_INLINE PoolRows<A> pool_rows(const T* from, int64_t channels, A* buffer, int64_t padded, int64_t rows) {
  if constexpr (std::is_same_v<T, A>) {
    if (channels % kLine<A> == 0) return {from, channels};
  }
  load_tile<T, A>(from, channels, buffer, padded, rows, channels);
  return {buffer, padded};
}

// The tile that starts at position p of an image, as far as it reaches into this part.
template <typename T, typename A>
MIXSYN_INLINE Ahead pool_ahead(const SpatialAttentionPool<T, A>& a, int64_t image, int64_t p, int64_t end) {
  const int64_t N = a.features, M = a.conditions, P = a.pixels;
  const int64_t count = end - p < a.tile ? end - p : a.tile;
  Ahead ahead;
  if (count <= 0) return ahead;
  if (a.channels_last) {
    ahead_set(ahead, 0, a.feature + (image * P + p) * N, 0, 1, count * N);
    ahead_set(ahead, 1, a.condition + (image * P + p) * M, 0, 1, count * M);
  } else {
    ahead_set(ahead, 0, a.feature + image * N * P + p, P, N, count);
    ahead_set(ahead, 1, a.condition + image * M * P + p, P, M, count);
  }
  return ahead;
}

// ---------------------------------------------------------------------------------------------- channels_last

// Masked positions get the logit minus infinity.
template <typename A>
MIXSYN_INLINE void pool_mask_rows(const uint8_t* mask, A* maps, int64_t stride, int64_t columns, int64_t count,
                                  A value) {
  for (int64_t p = 0; p < count; ++p) {
    if (mask[p]) continue;
    for (int64_t k = 0; k < columns; k += kLanes<A>) store(maps + p * stride + k, splat<A>(value));
  }
}

template <typename T, typename A>
MIXSYN_INLINE void pool_forward_last(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s, int64_t part) {
  constexpr int L = kLanes<A>;
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  A* high = a.part_max + part * kp;
  A* sum = a.part_sum + part * kp;
  A* values = a.part_values + part * K * s.np;
  A* mean = a.part_condition + part * s.mp;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, at = image * P + p0;
    Ahead ahead = pool_ahead<T, A>(a, image, p0 + a.tile, end);
    const PoolRows<A> f = pool_rows<T, A>(a.feature + at * N, N, s.feature, s.np, count);
    const PoolRows<A> c = pool_rows<T, A>(a.condition + at * M, M, s.condition, s.mp, count);
    product<A, Product::kSet>(f.data, f.stride, a.weight_columns, kp, N, nullptr, s.maps, kp, count, kp, &ahead);
    product<A, Product::kAdd>(c.data, c.stride, a.weight_columns + N * kp, kp, M, nullptr, s.maps, kp, count, kp,
                              &ahead);
    if (a.mask) pool_mask_rows<A>(a.mask + at, s.maps, kp, kp, count, -std::numeric_limits<A>::infinity());
    if (a.logits) {
      const int64_t padded = products_padded(count, L);
      for (int64_t p = count; p < padded; ++p)
        for (int64_t k = 0; k < kp; k += L) store(s.maps + p * kp + k, Vec<A>{});
      transpose_tile<A>(s.maps, kp, s.turned, s.stride, padded, kp);
      store_tile<A, A>(s.turned, s.stride, a.logits + image * K * P + p0, P, K, count);
    }
    for (int64_t k = 0; k < kp; k += L) {
      const Vec<A> before = load(high + k);
      Vec<A> now = before;
      for (int64_t p = 0; p < count; ++p) {
        const Vec<A> l = load(s.maps + p * kp + k);
        now = l > now ? l : now;
      }
      const Vec<A> zero = {}, least = zero - std::numeric_limits<A>::infinity();
      const Vec<A> shift = now == least ? zero : now;  // nothing but masked positions so far
      const Vec<A> factor = products_exp(before - shift);
      Vec<A> total = {};
      for (int64_t p = 0; p < count; ++p) {
        const Vec<A> e = products_exp(load(s.maps + p * kp + k) - shift);
        total += e;
        store(s.maps + p * kp + k, e);
      }
      store(high + k, now);
      store(sum + k, load(sum + k) * factor + total);
      store(s.scale + k, factor);
    }
    outer_product<A>(s.maps, kp, f.data, f.stride, count, s.scale, values, s.np, K, s.np, &ahead);
    add_columns<A>(c.data, c.stride, count, s.mp, mean);
  }
}

// Logits (and, where columns is 2 Kp, sum_n grad_values F beside them) to maps.
template <typename T, typename A>
MIXSYN_INLINE void pool_probabilities_last(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s,
                                           int64_t image, int64_t stride, int64_t count) {
  const A* lse = a.lse + image * s.kp;
  for (int64_t p = 0; p < count; ++p)
    for (int64_t k = 0; k < s.kp; k += kLanes<A>) {
      A* at = s.maps + p * stride + k;
      store(at, products_exp(load(at) - load(lse + k)));
    }
}

template <typename T, typename A>
MIXSYN_INLINE void pool_backward_last(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s, int64_t part) {
  constexpr int L = kLanes<A>;
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, np = s.np, mp = s.mp;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  const A* offset = a.offset + image * kp;
  const A* both = a.both_columns + image * N * 2 * kp;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, at = image * P + p0;
    Ahead ahead = pool_ahead<T, A>(a, image, p0 + a.tile, end);
    const PoolRows<A> f = pool_rows<T, A>(a.feature + at * N, N, s.feature, np, count);
    const PoolRows<A> c = pool_rows<T, A>(a.condition + at * M, M, s.condition, mp, count);
    product<A, Product::kSet>(f.data, f.stride, both, 2 * kp, N, nullptr, s.maps, 2 * kp, count, 2 * kp, &ahead);
    product<A, Product::kAdd>(c.data, c.stride, a.weight_columns + N * kp, kp, M, nullptr, s.maps, 2 * kp, count, kp,
                              &ahead);
    pool_probabilities_last<T, A>(a, s, image, 2 * kp, count);
    if (a.grad_maps) {
      const T* from = a.grad_maps + image * K * P + p0;
      for (int64_t p = 0; p < count; ++p)
        for (int64_t k = 0; k < K; ++k) s.maps[p * 2 * kp + kp + k] += static_cast<A>(from[k * P + p]);
    }
    for (int64_t p = 0; p < count; ++p)
      for (int64_t k = 0; k < kp; k += L) {
        A* row = s.maps + p * 2 * kp + k;
        store(row + kp, load(row) * (load(row + kp) - load(offset + k)));
      }
    if (a.mask) pool_mask_rows<A>(a.mask + at, s.maps, 2 * kp, 2 * kp, count, A(0));
    if (a.part_weight_features)
      outer_product<A>(s.maps + kp, 2 * kp, f.data, f.stride, count, nullptr, a.part_weight_features + part * K * np,
                       np, K, np, &ahead);
    if (a.part_weight_condition)
      outer_product<A>(s.maps + kp, 2 * kp, c.data, c.stride, count, nullptr, a.part_weight_condition + part * K * mp,
                       mp, K, mp, &ahead);
    if (a.grad_feature)
      product_into<T, A>(s.maps, 2 * kp, a.back_columns + image * 2 * kp * np, np, 2 * kp, nullptr, s.grad_feature, np,
                         a.grad_feature + at * N, N, count, N, a.batch * N * P, &ahead);
    if (a.grad_condition)
      product_into<T, A>(s.maps + kp, 2 * kp, a.condition_columns, mp, K, a.condition_bias + image * mp,
                         s.grad_condition, mp, a.grad_condition + at * M, M, count, M, a.batch * M * P, &ahead);
  }
}

// ------------------------------------------------------------------------------------------------ contiguous

// Sets row k of the tile to `value` where a position is masked or past the end.
template <typename A>
MIXSYN_INLINE void pool_mask_columns(const uint8_t* mask, A* row, int64_t count, int64_t padded, A value) {
  if (mask) {
    for (int64_t p = 0; p < count; ++p) row[p] = mask[p] ? row[p] : value;
  }
  for (int64_t p = count; p < padded; ++p) row[p] = value;
}

template <typename T, typename A>
MIXSYN_INLINE void pool_forward_planes(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s, int64_t part) {
  constexpr int L = kLanes<A>;
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, stride = s.stride;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  A* high = a.part_max + part * kp;
  A* sum = a.part_sum + part * kp;
  A* values = a.part_values + part * N * kp;
  A* mean = a.part_condition + part * M * kLine<A>;
  for (int64_t k = 0; k < kp; ++k) s.scale[k] = A(1);
  for (int64_t k = K; k < kp; ++k)
    for (int64_t p = 0; p < stride; p += L) store(s.maps + k * stride + p, Vec<A>{});
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, L);
    Ahead ahead = pool_ahead<T, A>(a, image, p0 + a.tile, end);
    load_tile<T, A>(a.feature + image * N * P + p0, P, s.feature, stride, N, count);
    load_tile<T, A>(a.condition + image * M * P + p0, P, s.condition, stride, M, count);
    product<A, Product::kSet>(a.weight_rows, N + M, s.feature, stride, N, nullptr, s.maps, stride, K, padded, &ahead);
    product<A, Product::kAdd>(a.weight_rows + N, N + M, s.condition, stride, M, nullptr, s.maps, stride, K, padded,
                              &ahead);
    for (int64_t k = 0; k < K; ++k) {
      A* row = s.maps + k * stride;
      pool_mask_columns<A>(a.mask ? a.mask + image * P + p0 : nullptr, row, count, padded,
                           -std::numeric_limits<A>::infinity());
      if (a.logits) store_tile<A, A>(row, 0, a.logits + (image * K + k) * P + p0, 0, 1, count);
      const A before = high[k];
      Vec<A> highest = splat<A>(before);
      for (int64_t p = 0; p < padded; p += L) {
        const Vec<A> l = load(row + p);
        highest = l > highest ? l : highest;
      }
      const A now = lane_max<A>(highest);
      const A shift = now == -std::numeric_limits<A>::infinity() ? A(0) : now;  // nothing but masked positions so far
      const A factor = products_exp(splat<A>(before - shift))[0];
      Vec<A> total = {};
      for (int64_t p = 0; p < padded; p += L) {
        const Vec<A> e = products_exp(load(row + p) - shift);
        total += e;
        store(row + p, e);
      }
      high[k] = now;
      sum[k] = sum[k] * factor + lane_sum<A>(total);
      s.scale[k] = factor;
    }
    transpose_tile<A>(s.maps, stride, s.turned, kp, kp, padded);
    product<A, Product::kScale>(s.feature, stride, s.turned, kp, padded, s.scale, values, kp, N, kp, &ahead);
    add_row_lanes<A>(s.condition, stride, M, padded, mean);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void pool_backward_planes(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s, int64_t part) {
  constexpr int L = kLanes<A>;
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, stride = s.stride;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  A* logits = s.maps;                 // K rows, then the maps
  A* grads = s.maps + K * stride;     // K rows, the gradient of the logits
  A* ones = s.maps + 2 * K * stride;  // one row; a transpose of the K rows before it may read it and what follows
  for (int64_t k = 2 * K; k < 2 * kp + 1; ++k)
    for (int64_t p = 0; p < stride; p += L) store(s.maps + k * stride + p, Vec<A>{});
  for (int64_t p = 0; p < stride; p += L) store(ones + p, splat<A>(A(1)));
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, L);
    Ahead ahead = pool_ahead<T, A>(a, image, p0 + a.tile, end);
    load_tile<T, A>(a.feature + image * N * P + p0, P, s.feature, stride, N, count);
    load_tile<T, A>(a.condition + image * M * P + p0, P, s.condition, stride, M, count);
    product<A, Product::kSet>(a.both_rows + image * 2 * K * N, N, s.feature, stride, N, nullptr, logits, stride, 2 * K,
                              padded, &ahead);
    product<A, Product::kAdd>(a.weight_rows + N, N + M, s.condition, stride, M, nullptr, logits, stride, K, padded,
                              &ahead);
    const uint8_t* mask = a.mask ? a.mask + image * P + p0 : nullptr;
    for (int64_t k = 0; k < K; ++k) {
      A* row = logits + k * stride;
      A* grad = grads + k * stride;
      const A lse = a.lse[image * kp + k], offset = a.offset[image * kp + k];
      for (int64_t p = 0; p < padded; p += L) {
        const Vec<A> e = products_exp(load(row + p) - lse);
        Vec<A> g = load(grad + p);
        if (a.grad_maps) g += load_part<false>(a.grad_maps + (image * K + k) * P + p0 + p, count - p);
        store(row + p, e);
        store(grad + p, e * (g - offset));
      }
      pool_mask_columns<A>(mask, row, count, padded, A(0));
      pool_mask_columns<A>(mask, grad, count, padded, A(0));
    }
    if (a.part_weight_features || a.part_weight_condition) {
      transpose_tile<A>(grads, stride, s.turned, kp, kp, padded);
      if (a.part_weight_features)
        product<A, Product::kAdd>(s.feature, stride, s.turned, kp, padded, nullptr,
                                  a.part_weight_features + part * N * kp, kp, N, kp, &ahead);
      if (a.part_weight_condition)
        product<A, Product::kAdd>(s.condition, stride, s.turned, kp, padded, nullptr,
                                  a.part_weight_condition + part * M * kp, kp, M, kp, &ahead);
    }
    if (a.grad_feature)
      product_into<T, A>(a.back_rows + image * N * 2 * K, 2 * K, logits, stride, 2 * K, nullptr, s.grad_feature, stride,
                         a.grad_feature + image * N * P + p0, P, N, count, a.batch * N * P, &ahead);
    if (a.grad_condition)
      product_into<T, A>(a.condition_rows + image * M * (K + 1), K + 1, grads, stride, K + 1, nullptr, s.grad_condition,
                         stride, a.grad_condition + image * M * P + p0, P, M, count, a.batch * M * P, &ahead);
  }
}

// ------------------------------------------------------------------------------------------------ both

// part_offset[k] = sum of maps * grad_maps.
template <typename T, typename A>
MIXSYN_INLINE void pool_offsets(const SpatialAttentionPool<T, A>& a, const PoolScratch<T, A>& s, int64_t part) {
  constexpr int L = kLanes<A>;
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, stride = s.stride;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  A* result = a.part_offset + part * kp;
  for (int64_t k = 0; k < kp; ++k) result[k] = A(0);
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, L),
                  at = image * P + p0;
    Ahead ahead = pool_ahead<T, A>(a, image, p0 + a.tile, end);
    A* maps = s.maps;
    if (a.channels_last) {
      const PoolRows<A> f = pool_rows<T, A>(a.feature + at * N, N, s.feature, s.np, count);
      const PoolRows<A> c = pool_rows<T, A>(a.condition + at * M, M, s.condition, s.mp, count);
      product<A, Product::kSet>(f.data, f.stride, a.weight_columns, kp, N, nullptr, s.maps, kp, count, kp, &ahead);
      product<A, Product::kAdd>(c.data, c.stride, a.weight_columns + N * kp, kp, M, nullptr, s.maps, kp, count, kp,
                                &ahead);
      for (int64_t p = count; p < padded; ++p)
        for (int64_t k = 0; k < kp; k += L) store(s.maps + p * kp + k, Vec<A>{});
      transpose_tile<A>(s.maps, kp, s.turned, stride, padded, kp);
      maps = s.turned;
    } else {
      load_tile<T, A>(a.feature + image * N * P + p0, P, s.feature, stride, N, count);
      load_tile<T, A>(a.condition + image * M * P + p0, P, s.condition, stride, M, count);
      product<A, Product::kSet>(a.weight_rows, N + M, s.feature, stride, N, nullptr, maps, stride, K, padded, &ahead);
      product<A, Product::kAdd>(a.weight_rows + N, N + M, s.condition, stride, M, nullptr, maps, stride, K, padded,
                                &ahead);
    }
    for (int64_t k = 0; k < K; ++k) {
      A* row = maps + k * stride;
      for (int64_t p = 0; p < padded; p += L) store(row + p, products_exp(load(row + p) - a.lse[image * kp + k]));
      pool_mask_columns<A>(a.mask ? a.mask + at : nullptr, row, count, padded, A(0));
      Vec<A> sum = {};
      for (int64_t p = 0; p < padded; p += L)
        sum += load(row + p) * load_part<false>(a.grad_maps + (image * K + k) * P + p0 + p, count - p);
      result[k] += lane_sum<A>(sum);
    }
  }
}

template <typename T, typename A>
void pool_forward(const SpatialAttentionPool<T, A>& a, A* scratch, int64_t begin, int64_t end) {
  const PoolScratch<T, A> s = pool_scratch<T, A>(a, scratch);
  for (int64_t part = begin; part < end; ++part)
    a.channels_last ? pool_forward_last<T, A>(a, s, part) : pool_forward_planes<T, A>(a, s, part);
}

template <typename T, typename A>
void pool_offset_parts(const SpatialAttentionPool<T, A>& a, A* scratch, int64_t begin, int64_t end) {
  const PoolScratch<T, A> s = pool_scratch<T, A>(a, scratch);
  for (int64_t part = begin; part < end; ++part) pool_offsets<T, A>(a, s, part);
}

template <typename T, typename A>
void pool_backward(const SpatialAttentionPool<T, A>& a, A* scratch, int64_t begin, int64_t end) {
  const PoolScratch<T, A> s = pool_scratch<T, A>(a, scratch);
  for (int64_t part = begin; part < end; ++part)
    a.channels_last ? pool_backward_last<T, A>(a, s, part) : pool_backward_planes<T, A>(a, s, part);
  stream_fence();
}

template <typename T, typename A>
void pool_normalise(const A* logits, const A* lse, T* maps, int64_t pixels, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  for (int64_t row = begin; row < end; ++row) {
    const bool nothing = lse[row] == -std::numeric_limits<A>::infinity();  // all positions masked
    const A shift = nothing ? A(0) : lse[row];
    for (int64_t p = 0; p < pixels; p += L) {
      const Vec<A> l = load_part<false>(logits + row * pixels + p, pixels - p);
      store_part<false>(maps + row * pixels + p, products_exp(l - shift), pixels - p);
    }
  }
}

template <typename T, typename A>
const SpatialAttentionPoolKernels<T, A>& spatial_attention_pool_kernels() {
  static const SpatialAttentionPoolKernels<T, A> table = {
      pool_scratch_size<T, A>, pool_forward<T, A>, pool_offset_parts<T, A>, pool_backward<T, A>, pool_normalise<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(SpatialAttentionPoolKernels, spatial_attention_pool_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
