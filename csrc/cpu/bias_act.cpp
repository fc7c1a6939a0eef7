// CPU kernels of bias_act; isa.h says how they are compiled.
//
// Memory is the limit: every kernel reads and writes each tensor once, in its order, results that no cache would hold past
// the caches. channels_last ("pixels"): channels are the vector. Contiguous ("planes"): pixels are.
#include "bias_act.h"

#include "vec.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// Rows of `stride` elements whose full vectors are written past the caches, of a result of at least so many bytes.
template <typename T, typename A>
MIXSYN_INLINE bool bias_act_streams(const BiasAct<T, A>& a, const T* to, int64_t stride, int64_t least) {
  if constexpr (std::is_same_v<T, A>) return streams(to, stride, a.batch * a.pixels * a.channels, least);
  return false;
}
constexpr int64_t kBiasActForwardLeast = 16 << 20, kBiasActBackwardLeast = 8 << 20;  // two tensors, and four
template <bool STREAM, typename T, typename V>
MIXSYN_INLINE void bias_act_store(T* to, V v) {
  if constexpr (STREAM && sizeof(T) == sizeof(v[0])) {
    stream(to, v);
  } else {
    store(to, v);
  }
}

// Asks for a line that is some elements ahead: the hardware does not follow three or four tensors at once far enough, and
// nothing into the next run of a chunk.
template <typename T>
MIXSYN_INLINE void bias_act_prefetch(const T* p, int64_t ahead) {
  __builtin_prefetch(p + ahead, 0, 2);
}
template <typename T>
constexpr int64_t kBiasActPage = 4096 / sizeof(T);

template <typename V>
MIXSYN_INLINE V bias_act_value(V x, V scale, V shift, V high, V low) {
  const V u = x * scale + shift;
  return u * (u >= 0 ? high : low);
}

// ---------------------------------------------------------------------------------------------- channels_last

template <typename T, typename A, bool STREAM>
MIXSYN_INLINE void bias_act_forward_range(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, full = C / L * L;
  const Vec<A> high = splat<A>(a.high), low = splat<A>(a.low);
  for (int64_t p = begin; p < end;) {
    const int64_t image = p / a.pixels, image_end = (image + 1) * a.pixels;
    const int64_t stop = image_end < end ? image_end : end;
    const A* scale = a.scale + image * a.scale_stride;
    const T* noise = a.noise ? a.noise + image * (a.noise_stride - a.pixels) : nullptr;  // from pixel 0 of the batch on
    for (; p < stop; ++p) {
      const T* x = a.x + p * C;
      T* y = a.result + p * C;
      const Vec<A> n = splat<A>(noise ? a.strength * static_cast<A>(noise[p]) : A(0));
      for (int64_t c = 0; c < full; c += L) {
        const Vec<A> shift = load(a.bias + c) + n;
        bias_act_store<STREAM>(y + c, bias_act_value<Vec<A>>(load(x + c), load(scale + c), shift, high, low));
      }
      if (full < C) {
        const int64_t m = C - full;
        const Vec<A> shift = load_part<false>(a.bias + full, m) + n;
        const Vec<A> value =
            bias_act_value<Vec<A>>(load_part<false>(x + full, m), load_part<false>(scale + full, m), shift, high, low);
        store_part<false>(y + full, value, m);
      }
    }
  }
}

template <typename T, typename A>
void bias_act_forward_pixels(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  if (bias_act_streams<T, A>(a, a.result, a.channels, kBiasActForwardLeast)) {
    bias_act_forward_range<T, A, true>(a, begin, end);
    stream_fence();
  } else {
    bias_act_forward_range<T, A, false>(a, begin, end);
  }
}

// A block has these pixels, whose sums are added to those of the part together, times these vectors: a line, where there are
// registers for it. A line that takes several blocks has to be streamed one vector after the other, pixel by pixel.
template <typename T>
constexpr int kBiasActVectors = MIXSYN_VECTOR_BYTES == 32 && sizeof(T) > 2 ? 2 : 1;
template <typename T, bool STREAM>
constexpr int kBiasActPixels = STREAM && kBiasActVectors<T> * MIXSYN_VECTOR_BYTES < 64 ? 1 : 2;

// Channels [c, c + V * L) of N pixels from p on; adds their sums over channels to `rows`.
template <typename T, typename A, int N, int V, bool FULL, bool SCALE, bool SUMS, bool STREAM>
MIXSYN_INLINE void bias_act_backward_block(const BiasAct<T, A>& a, const A* scale_row, A* part_bias, A* part_scale,
                                           int64_t p, int64_t c, Vec<A>* rows) {
  constexpr int L = kLanes<A>;
  const int64_t C = a.channels, m = C - c;
  const Vec<A> high = splat<A>(a.high), low = splat<A>(a.low);
  Vec<A> scale[V], sum[V], sum_x[V];
  MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) scale[v] = load_part<FULL>(scale_row + c + v * L, m), sum[v] = sum_x[v] = Vec<A>{};
  MIXSYN_UNROLL
  for (int k = 0; k < N; ++k) {
    const int64_t line = (p + k) * C + c;
    bias_act_prefetch(a.grad + line, kBiasActPage<T>), bias_act_prefetch(a.y + line, kBiasActPage<T>);
    if constexpr (SCALE) bias_act_prefetch(a.x + line, kBiasActPage<T>);
    MIXSYN_UNROLL
    for (int v = 0; v < V; ++v) {
      const int64_t at = line + v * L;
      const Vec<A> y = load_part<FULL>(a.y + at, m);
      const Vec<A> h = load_part<FULL>(a.grad + at, m) * (y >= 0 ? high : low);
      if constexpr (FULL)
        bias_act_store<STREAM>(a.grad_x + at, h * scale[v]);
      else
        store_part<false>(a.grad_x + at, h * scale[v], m);
      sum[v] += h;
      if constexpr (SCALE) sum_x[v] += h * load_part<FULL>(a.x + at, m);
      if constexpr (SUMS) rows[k] += h;
    }
  }
  MIXSYN_UNROLL
  for (int v = 0; v < V; ++v) {
    A *bias = part_bias + c + v * L, *of_scale = SCALE ? part_scale + c + v * L : nullptr;
    store_part<FULL>(bias, load_part<FULL>(bias, m) + sum[v], m);
    if constexpr (SCALE) store_part<FULL>(of_scale, load_part<FULL>(of_scale, m) + sum_x[v], m);
  }
}

template <typename T, typename A, int N, bool SCALE, bool SUMS, bool STREAM>
MIXSYN_INLINE void bias_act_backward_rows(const BiasAct<T, A>& a, const A* scale, A* part_bias, A* part_scale,
                                          int64_t p) {
  constexpr int L = kLanes<A>, V = kBiasActVectors<T>;
  const int64_t C = a.channels;
  Vec<A> rows[N];
  MIXSYN_UNROLL
  for (int k = 0; k < N; ++k) rows[k] = Vec<A>{};
  int64_t c = 0;
  for (; c + V * L <= C; c += V * L)
    bias_act_backward_block<T, A, N, V, true, SCALE, SUMS, STREAM>(a, scale, part_bias, part_scale, p, c, rows);
  if (V > 1 && c + L <= C) {
    bias_act_backward_block<T, A, N, 1, true, SCALE, SUMS, false>(a, scale, part_bias, part_scale, p, c, rows);
    c += L;
  }
  if (c < C)
    bias_act_backward_block<T, A, N, 1, false, SCALE, SUMS, false>(a, scale, part_bias, part_scale, p, c, rows);
  if constexpr (SUMS) {
    MIXSYN_UNROLL
    for (int k = 0; k < N; ++k) a.sums[p + k] = lane_sum<A>(rows[k]);
  }
}

template <typename T, typename A, bool SCALE, bool SUMS, bool STREAM>
MIXSYN_INLINE void bias_act_backward_parts(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  constexpr int N = kBiasActPixels<T, STREAM>;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t image = part / a.chunks, first = part % a.chunks * a.chunk;
    const int64_t p1 = image * a.pixels + (first + a.chunk < a.pixels ? first + a.chunk : a.pixels);
    const A* scale = a.scale + image * a.scale_stride;
    A* part_bias = a.part_bias + part * a.channels;
    A* part_scale = SCALE ? a.part_scale + part * a.channels : nullptr;
    __builtin_memset(part_bias, 0, static_cast<size_t>(a.channels) * sizeof(A));
    if constexpr (SCALE) __builtin_memset(part_scale, 0, static_cast<size_t>(a.channels) * sizeof(A));
    int64_t p = image * a.pixels + first;
    for (; p + N <= p1; p += N)
      bias_act_backward_rows<T, A, N, SCALE, SUMS, STREAM>(a, scale, part_bias, part_scale, p);
    for (; p < p1; ++p) bias_act_backward_rows<T, A, 1, SCALE, SUMS, STREAM>(a, scale, part_bias, part_scale, p);
  }
  stream_fence();
}

template <typename T, typename A, bool SCALE, bool SUMS>
MIXSYN_INLINE void bias_act_backward_stream(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  bias_act_streams<T, A>(a, a.grad_x, a.channels, kBiasActBackwardLeast)
      ? bias_act_backward_parts<T, A, SCALE, SUMS, true>(a, begin, end)
      : bias_act_backward_parts<T, A, SCALE, SUMS, false>(a, begin, end);
}

template <typename T, typename A>
void bias_act_backward_pixels(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  if (a.x)
    a.sums ? bias_act_backward_stream<T, A, true, true>(a, begin, end)
           : bias_act_backward_stream<T, A, true, false>(a, begin, end);
  else
    a.sums ? bias_act_backward_stream<T, A, false, true>(a, begin, end)
           : bias_act_backward_stream<T, A, false, false>(a, begin, end);
}

// -------------------------------------------------------------------------------------------------- contiguous

// Where the chunk of an item lies, and how many pixels it has.
struct BiasActRun {
  int64_t image, channel, first, at, n;
};
template <typename T, typename A>
MIXSYN_INLINE BiasActRun bias_act_run(const BiasAct<T, A>& a, int64_t item) {
  const int64_t part = item / a.channels, channel = item % a.channels;
  const int64_t image = part / a.chunks, first = part % a.chunks * a.chunk;
  const int64_t left = a.pixels - first, at = (image * a.channels + channel) * a.pixels + first;
  return {image, channel, first, at, left < a.chunk ? left : a.chunk};
}

template <typename T, typename A, bool NOISE, bool STREAM>
MIXSYN_INLINE void bias_act_forward_runs(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const Vec<A> high = splat<A>(a.high), low = splat<A>(a.low), strength = splat<A>(a.strength);
  for (int64_t item = begin; item < end; ++item) {
    const BiasActRun run = bias_act_run(a, item);
    const T* x = a.x + run.at;
    T* y = a.result + run.at;
    const T* noise = NOISE ? a.noise + run.image * a.noise_stride + run.first : nullptr;
    const Vec<A> scale = splat<A>(a.scale[run.image * a.scale_stride + run.channel]);
    const Vec<A> bias = splat<A>(a.bias[run.channel]);
    int64_t i = 0;
    for (; i + L <= run.n; i += L) {
      if constexpr (NOISE) {  // the next channel's run
        bias_act_prefetch(x + i, a.pixels);
        if constexpr (!STREAM) __builtin_prefetch(y + i + a.pixels, 1, 2);
      }
      const Vec<A> shift = NOISE ? load(noise + i) * strength + bias : bias;
      bias_act_store<STREAM>(y + i, bias_act_value<Vec<A>>(load(x + i), scale, shift, high, low));
    }
    if (i < run.n) {
      const int64_t m = run.n - i;
      const Vec<A> shift = NOISE ? load_part<false>(noise + i, m) * strength + bias : bias;
      store_part<false>(y + i, bias_act_value<Vec<A>>(load_part<false>(x + i, m), scale, shift, high, low), m);
    }
  }
  stream_fence();
}

template <typename T, typename A>
void bias_act_forward_planes(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  if (bias_act_streams<T, A>(a, a.result, a.pixels, kBiasActForwardLeast))
    a.noise ? bias_act_forward_runs<T, A, true, true>(a, begin, end)
            : bias_act_forward_runs<T, A, false, true>(a, begin, end);
  else
    a.noise ? bias_act_forward_runs<T, A, true, false>(a, begin, end)
            : bias_act_forward_runs<T, A, false, false>(a, begin, end);
}

// m pixels of a run from i on; FULL: a whole vector.
template <typename T, typename A, bool FULL, bool SCALE, bool SUMS, bool STREAM>
MIXSYN_INLINE void bias_act_backward_step(const BiasAct<T, A>& a, const BiasActRun& run, Vec<A> scale, int64_t i,
                                          int64_t m, A* sums, bool first, Vec<A>& sum, Vec<A>& sum_x) {
  const int64_t at = run.at + i;
  const int64_t ahead = SUMS ? a.pixels : kBiasActPage<T>;
  bias_act_prefetch(a.grad + at, ahead), bias_act_prefetch(a.y + at, ahead);
  if constexpr (SCALE) bias_act_prefetch(a.x + at, ahead);
  const Vec<A> y = load_part<FULL>(a.y + at, m);
  const Vec<A> h = load_part<FULL>(a.grad + at, m) * (y >= 0 ? splat<A>(a.high) : splat<A>(a.low));
  if constexpr (FULL)
    bias_act_store<STREAM>(a.grad_x + at, h * scale);
  else
    store_part<false>(a.grad_x + at, h * scale, m);
  sum += h;
  if constexpr (SCALE) sum_x += h * load_part<FULL>(a.x + at, m);
  if constexpr (SUMS) store_part<FULL>(sums + i, first ? h : load_part<FULL>(sums + i, m) + h, m);
}

template <typename T, typename A, bool SCALE, bool SUMS, bool STREAM>
MIXSYN_INLINE void bias_act_backward_runs(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  for (int64_t item = begin; item < end; ++item) {
    const BiasActRun run = bias_act_run(a, item);
    const Vec<A> scale = splat<A>(a.scale[run.image * a.scale_stride + run.channel]);
    A* sums = SUMS ? a.sums + run.image * a.pixels + run.first : nullptr;
    Vec<A> sum = {}, sum_x = {};
    int64_t i = 0;
    for (; i + L <= run.n; i += L)
      bias_act_backward_step<T, A, true, SCALE, SUMS, STREAM>(a, run, scale, i, L, sums, item == begin, sum, sum_x);
    if (i < run.n)
      bias_act_backward_step<T, A, false, SCALE, SUMS, false>(a, run, scale, i, run.n - i, sums, item == begin, sum,
                                                              sum_x);
    a.part_bias[item] = lane_sum<A>(sum);
    if constexpr (SCALE) a.part_scale[item] = lane_sum<A>(sum_x);
  }
  stream_fence();
}

template <typename T, typename A, bool SCALE, bool SUMS>
MIXSYN_INLINE void bias_act_backward_stream_runs(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  bias_act_streams<T, A>(a, a.grad_x, a.pixels, kBiasActBackwardLeast)
      ? bias_act_backward_runs<T, A, SCALE, SUMS, true>(a, begin, end)
      : bias_act_backward_runs<T, A, SCALE, SUMS, false>(a, begin, end);
}

template <typename T, typename A>
void bias_act_backward_planes(const BiasAct<T, A>& a, int64_t begin, int64_t end) {
  if (a.x)
    a.sums ? bias_act_backward_stream_runs<T, A, true, true>(a, begin, end)
           : bias_act_backward_stream_runs<T, A, true, false>(a, begin, end);
  else
    a.sums ? bias_act_backward_stream_runs<T, A, false, true>(a, begin, end)
           : bias_act_backward_stream_runs<T, A, false, false>(a, begin, end);
}

template <typename T, typename A>
const BiasActKernels<T, A>& bias_act_kernels() {
  static const BiasActKernels<T, A> table = {bias_act_forward_pixels<T, A>, bias_act_forward_planes<T, A>,
                                             bias_act_backward_pixels<T, A>, bias_act_backward_planes<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(BiasActKernels, bias_act_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
