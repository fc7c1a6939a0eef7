// CPU kernels of channel_attention_spread; isa.h says how they are compiled.
//
// Tiles of positions as in spatial_attention_pool.cpp. The softmax over the maps always runs on rows of positions, one row per
// map, so that it needs no sum across a vector; in channels_last the small tiles of maps are transposed there and back.
#include "channel_attention_spread.h"

#include "vec.h"
#include "products.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

template <typename T, typename A>
struct SpreadScratch {
  int64_t stride;  // contiguous: of a row of the tile; one line more than the tile, against cache conflicts
  int64_t kp, np, mp;
  A *condition, *features, *maps, *grads, *turned, *turned_grads, *grad_condition;
  int64_t size;
};

template <typename T, typename A>
MIXSYN_INLINE SpreadScratch<T, A> spread_scratch(const ChannelAttentionSpread<T, A>& a, A* base) {
  constexpr int L = kLine<A>;
  SpreadScratch<T, A> s = {};
  s.stride = a.tile + L;
  s.kp = products_padded(a.maps, L), s.np = products_padded(a.features, L), s.mp = products_padded(a.conditions, L);
  const int64_t condition = a.channels_last ? a.tile * s.mp : a.conditions * s.stride;
  const int64_t features = a.channels_last ? a.tile * s.np : a.features * s.stride;
  const int64_t maps = s.kp * s.stride, turned = a.tile * s.kp;
  const int64_t grad_condition = a.grad_condition ? condition : 0;
  s.size = condition + features + 2 * maps + 2 * turned + grad_condition;
  if (!base) return s;  // only the size is wanted
  s.condition = base;
  s.features = s.condition + condition;
  s.maps = s.features + features;  // rows of positions
  s.grads = s.maps + maps;
  s.turned = s.grads + maps;  // rows of maps
  s.turned_grads = s.turned + turned;
  s.grad_condition = s.turned_grads + turned;
  return s;
}

template <typename T, typename A>
int64_t spread_scratch_size(const ChannelAttentionSpread<T, A>& a) {
  return spread_scratch<T, A>(a, nullptr).size;
}

template <typename A>
struct SpreadRows {
  const A* data;
  int64_t stride;
};

template <typename T, typename A>
MIXSYN_INLINE SpreadRows<A> spread_rows(const T* from, int64_t channels, A* buffer, int64_t padded, int64_t rows) {
  if constexpr (std::is_same_v<T, A>) {
    if (channels % kLine<A> == 0) return {from, channels};
  }
  load_tile<T, A>(from, channels, buffer, padded, rows, channels);
  return {buffer, padded};
}

// The tile that starts at position p of an image, as far as it reaches into this part.
template <typename T, typename A>
MIXSYN_INLINE Ahead spread_ahead(const ChannelAttentionSpread<T, A>& a, int64_t image, int64_t p, int64_t end) {
  const int64_t N = a.grad ? a.features : 0, M = a.conditions, P = a.pixels;
  const int64_t count = end - p < a.tile ? end - p : a.tile;
  Ahead ahead;
  if (count <= 0) return ahead;
  if (a.channels_last) {
    ahead_set(ahead, 0, a.condition + (image * P + p) * M, 0, 1, count * M);
    if (a.grad) ahead_set(ahead, 1, a.grad + (image * P + p) * N, 0, 1, count * N);
  } else {
    ahead_set(ahead, 0, a.condition + image * M * P + p, P, M, count);
    if (a.grad) ahead_set(ahead, 1, a.grad + image * N * P + p, P, N, count);
  }
  return ahead;
}

// Softmax over K rows, in place, V vectors of positions at a time.
template <typename A, int V>
MIXSYN_INLINE void spread_softmax_block(A* maps, int64_t stride, int64_t K) {
  constexpr int L = kLanes<A>;
  Vec<A> high[V], sum[V];
  for (int v = 0; v < V; ++v) high[v] = load(maps + v * L), sum[v] = Vec<A>{};
  for (int64_t k = 1; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      const Vec<A> l = load(maps + k * stride + v * L);
      high[v] = l > high[v] ? l : high[v];
    }
  for (int64_t k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      A* at = maps + k * stride + v * L;
      const Vec<A> e = products_exp(load(at) - high[v]);
      sum[v] += e;
      store(at, e);
    }
  for (int v = 0; v < V; ++v) sum[v] = A(1) / sum[v];
  for (int64_t k = 0; k < K; ++k)
    for (int v = 0; v < V; ++v) {
      A* at = maps + k * stride + v * L;
      store(at, load(at) * sum[v]);
    }
}

template <typename A>
void spread_softmax(A* maps, int64_t stride, int64_t K, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t p = 0;
  for (; p + 2 * L <= count; p += 2 * L) spread_softmax_block<A, 2>(maps + p, stride, K);
  for (; p < count; p += L) spread_softmax_block<A, 1>(maps + p, stride, K);
}

// grads = maps * (grads - sum over the maps of maps * grads), rows as above.
template <typename A>
void spread_softmax_backward(const A* maps, A* grads, int64_t stride, int64_t K, int64_t count) {
  constexpr int L = kLanes<A>;
  for (int64_t p = 0; p < count; p += L) {
    Vec<A> sum = {};
    for (int64_t k = 0; k < K; ++k) sum += load(maps + k * stride + p) * load(grads + k * stride + p);
    for (int64_t k = 0; k < K; ++k) {
      A* at = grads + k * stride + p;
      store(at, load(maps + k * stride + p) * (load(at) - sum));
    }
  }
}

// Rows from `from` to `to` of a tile with rows of maps, zeroed: nobody uses what becomes of them, but nobody wrote them either.
template <typename A>
MIXSYN_INLINE void spread_zero_rows(A* turned, int64_t kp, int64_t from, int64_t to) {
  for (int64_t i = from * kp; i < to * kp; i += kLanes<A>) store(turned + i, Vec<A>{});
}

template <typename T, typename A>
MIXSYN_INLINE void spread_forward_last(const ChannelAttentionSpread<T, A>& a, const SpreadScratch<T, A>& s,
                                       int64_t part) {
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, kLanes<A>);
    Ahead ahead = spread_ahead<T, A>(a, image, p0 + a.tile, end);
    const int64_t at = image * P + p0;
    const SpreadRows<A> c = spread_rows<T, A>(a.condition + at * M, M, s.condition, s.mp, count);
    product<A, Product::kSet>(c.data, c.stride, a.weight_columns, kp, M, nullptr, s.turned, kp, count, kp, &ahead);
    spread_zero_rows<A>(s.turned, kp, count, padded);
    transpose_tile<A>(s.turned, kp, s.maps, s.stride, padded, kp);
    spread_softmax<A>(s.maps, s.stride, K, padded);
    transpose_tile<A>(s.maps, s.stride, s.turned, kp, kp, padded);
    product_into<T, A>(s.turned, kp, a.value_columns + image * K * s.np, s.np, K, nullptr, s.features, s.np,
                       a.result + at * N, N, count, N, a.batch * N * P, &ahead);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void spread_forward_planes(const ChannelAttentionSpread<T, A>& a, const SpreadScratch<T, A>& s,
                                         int64_t part) {
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, stride = s.stride;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, kLanes<A>);
    Ahead ahead = spread_ahead<T, A>(a, image, p0 + a.tile, end);
    load_tile<T, A>(a.condition + image * M * P + p0, P, s.condition, stride, M, count);
    product<A, Product::kSet>(a.weight_rows, M, s.condition, stride, M, nullptr, s.maps, stride, K, padded, &ahead);
    spread_softmax<A>(s.maps, stride, K, padded);
    product_into<T, A>(a.value_rows + image * N * K, K, s.maps, stride, K, nullptr, s.features, stride,
                       a.result + image * N * P + p0, P, N, count, a.batch * N * P, &ahead);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void spread_backward_last(const ChannelAttentionSpread<T, A>& a, const SpreadScratch<T, A>& s,
                                        int64_t part) {
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, np = s.np, mp = s.mp;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, kLanes<A>);
    Ahead ahead = spread_ahead<T, A>(a, image, p0 + a.tile, end);
    const int64_t at = image * P + p0;
    const SpreadRows<A> c = spread_rows<T, A>(a.condition + at * M, M, s.condition, mp, count);
    const SpreadRows<A> g = spread_rows<T, A>(a.grad + at * N, N, s.features, np, count);
    product<A, Product::kSet>(c.data, c.stride, a.weight_columns, kp, M, nullptr, s.turned, kp, count, kp, &ahead);
    spread_zero_rows<A>(s.turned, kp, count, padded);
    transpose_tile<A>(s.turned, kp, s.maps, s.stride, padded, kp);
    spread_softmax<A>(s.maps, s.stride, K, padded);
    if (a.part_values) {
      transpose_tile<A>(s.maps, s.stride, s.turned, kp, kp, padded);
      outer_product<A>(s.turned, kp, g.data, g.stride, count, nullptr, a.part_values + part * K * np, np, K, np,
                       &ahead);
    }
    if (!a.grad_condition && !a.part_weight) continue;
    product<A, Product::kSet>(g.data, g.stride, a.grad_columns + image * N * kp, kp, N, nullptr, s.turned_grads, kp,
                              count, kp, &ahead);
    spread_zero_rows<A>(s.turned_grads, kp, count, padded);
    transpose_tile<A>(s.turned_grads, kp, s.grads, s.stride, padded, kp);
    spread_softmax_backward<A>(s.maps, s.grads, s.stride, K, padded);
    transpose_tile<A>(s.grads, s.stride, s.turned_grads, kp, kp, padded);
    if (a.part_weight)
      outer_product<A>(s.turned_grads, kp, c.data, c.stride, count, nullptr, a.part_weight + part * K * mp, mp, K, mp,
                       &ahead);
    if (a.grad_condition)
      product_into<T, A>(s.turned_grads, kp, a.condition_columns, mp, K, nullptr, s.grad_condition, mp,
                         a.grad_condition + at * M, M, count, M, a.batch * M * P, &ahead);
  }
}

template <typename T, typename A>
MIXSYN_INLINE void spread_backward_planes(const ChannelAttentionSpread<T, A>& a, const SpreadScratch<T, A>& s,
                                          int64_t part) {
  const int64_t K = a.maps, N = a.features, M = a.conditions, P = a.pixels, kp = s.kp, stride = s.stride;
  const int64_t image = part / a.chunks, begin = (part % a.chunks) * a.chunk;
  const int64_t end = begin + a.chunk < P ? begin + a.chunk : P;
  for (int64_t p0 = begin; p0 < end; p0 += a.tile) {
    const int64_t count = end - p0 < a.tile ? end - p0 : a.tile, padded = products_padded(count, kLanes<A>);
    Ahead ahead = spread_ahead<T, A>(a, image, p0 + a.tile, end);
    load_tile<T, A>(a.condition + image * M * P + p0, P, s.condition, stride, M, count);
    load_tile<T, A>(a.grad + image * N * P + p0, P, s.features, stride, N, count);
    product<A, Product::kSet>(a.weight_rows, M, s.condition, stride, M, nullptr, s.maps, stride, K, padded, &ahead);
    spread_softmax<A>(s.maps, stride, K, padded);
    if (a.part_values) {  // positions past the end have maps, but zero gradients
      transpose_tile<A>(s.maps, stride, s.turned, kp, kp, padded);
      product<A, Product::kAdd>(s.features, stride, s.turned, kp, padded, nullptr, a.part_values + part * N * kp, kp, N,
                                kp, &ahead);
    }
    if (!a.grad_condition && !a.part_weight) continue;
    product<A, Product::kSet>(a.grad_rows + image * K * N, N, s.features, stride, N, nullptr, s.grads, stride, K,
                              padded, &ahead);
    spread_softmax_backward<A>(s.maps, s.grads, stride, K, padded);
    if (a.part_weight) {
      transpose_tile<A>(s.grads, stride, s.turned_grads, kp, kp, padded);
      product<A, Product::kAdd>(s.condition, stride, s.turned_grads, kp, padded, nullptr, a.part_weight + part * M * kp,
                                kp, M, kp, &ahead);
    }
    if (a.grad_condition)
      product_into<T, A>(a.condition_rows, K, s.grads, stride, K, nullptr, s.grad_condition, stride,
                         a.grad_condition + image * M * P + p0, P, M, count, a.batch * M * P, &ahead);
  }
}

// The padding of the tiles of maps is never written but read by transposes: zero it once.
template <typename T, typename A>
MIXSYN_INLINE void spread_zero_padding(const ChannelAttentionSpread<T, A>& a, const SpreadScratch<T, A>& s) {
  for (int64_t i = a.maps * s.stride; i < s.kp * s.stride; i += kLanes<A>)
    store(s.maps + i, Vec<A>{}), store(s.grads + i, Vec<A>{});
}

template <typename T, typename A>
void spread_forward(const ChannelAttentionSpread<T, A>& a, A* scratch, int64_t begin, int64_t end) {
  const SpreadScratch<T, A> s = spread_scratch<T, A>(a, scratch);
  spread_zero_padding<T, A>(a, s);
  for (int64_t part = begin; part < end; ++part)
    a.channels_last ? spread_forward_last<T, A>(a, s, part) : spread_forward_planes<T, A>(a, s, part);
  stream_fence();
}

template <typename T, typename A>
void spread_backward(const ChannelAttentionSpread<T, A>& a, A* scratch, int64_t begin, int64_t end) {
  const SpreadScratch<T, A> s = spread_scratch<T, A>(a, scratch);
  spread_zero_padding<T, A>(a, s);
  for (int64_t part = begin; part < end; ++part)
    a.channels_last ? spread_backward_last<T, A>(a, s, part) : spread_backward_planes<T, A>(a, s, part);
  stream_fence();
}

template <typename T, typename A>
const ChannelAttentionSpreadKernels<T, A>& channel_attention_spread_kernels() {
  static const ChannelAttentionSpreadKernels<T, A> table = {spread_scratch_size<T, A>, spread_forward<T, A>,
                                                            spread_backward<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(ChannelAttentionSpreadKernels, channel_attention_spread_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
