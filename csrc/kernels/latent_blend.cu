// latent_blend: a thread owns a channel and scans the logits of its group, g = D / width of them side by side;
// neighbouring threads own neighbouring groups. Groups of whole 16 bytes are read and written as such (g = 8 in
// 16-bit types, 4 in float32), smaller ones element by element, which a warp does side by side.
//
// The op moves a few megabytes at most: what counts is that it is one kernel, and that no thread waits for
// another.
#include "latent_blend.h"

#include "dtype.cuh"
#include "vec.cuh"

namespace mixsyn_fast::kernels {
namespace {

template <typename T>
struct BlendArgs {
  int64_t batch;
  int channels, depth;  // S, D
  bool q_on_b, vector;  // vector: logits (and their gradient) start at a multiple of 16 bytes
  const T* a;           // (B, S)
  const T* b;           // (B, S)
  const T* logits;      // (B, L, D)
};

// Layer of a channel: the last one that begins at or before it.
__device__ __forceinline__ int layer_of(const StyleLayers& layers, int channel) {
  int low = 0, high = layers.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (layers.begin[middle] <= channel)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The first largest (or smallest) logit of a group, or its first NaN.
template <typename A>
struct Decisive {
  A value = A(0);
  int index = -1;
  bool largest;

  __device__ __forceinline__ explicit Decisive(bool largest) : largest(largest) {}
  __device__ __forceinline__ void see(A x, int i) {
    const bool better = largest ? !(x <= value) : !(x >= value);  // also where one of them is NaN
    if (index < 0 || (better && value == value)) value = x, index = i;
  }
};

// group (g,)
template <typename T>
__device__ __forceinline__ Decisive<acc_t<T>> find_decisive(const T* group, int g, bool vector, bool largest) {
  constexpr int W = 16 / static_cast<int>(sizeof(T));
  Decisive<acc_t<T>> found(largest);
  if (vector && g % W == 0) {
    for (int i = 0; i < g; i += W) {
      const Words<T, W> words = load_words<T, W, Cache::kReuse>(group + i);
#pragma unroll
      for (int w = 0; w < W; ++w) found.see(words.get(w), i + w);
    }
  } else {
    for (int i = 0; i < g; ++i) found.see(to_acc(__ldg(group + i)), i);
  }
  return found;
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// Where a channel of an image finds its numbers.
template <typename T>
struct Channel {
  int64_t at, group_at;  // in (B, S) and in (B, L, D)
  int g;
  __device__ __forceinline__ Channel(const BlendArgs<T>& args, const StyleLayers& layers, int64_t image, int channel) {
    const int layer = layer_of(layers, channel);
    g = layers.group[layer];
    at = image * args.channels + channel;
    group_at = (image * layers.count + layer) * args.depth + static_cast<int64_t>(channel - layers.begin[layer]) * g;
  }
};

// blended, q (B, S)
template <typename T>
__global__ void __launch_bounds__(kThreads)
    latent_blend_fwd_kernel(BlendArgs<T> args, StyleLayers layers, T* __restrict__ blended, T* __restrict__ q_out) {
  using A = acc_t<T>;
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= args.channels) return;
  for (int64_t image = blockIdx.y; image < args.batch; image += gridDim.y) {
    const Channel<T> my(args, layers, image, channel);
    const A a = to_acc(__ldg(args.a + my.at)), b = to_acc(__ldg(args.b + my.at));
    const bool largest = (b > a) == args.q_on_b;
    const A q = sigmoid(find_decisive(args.logits + my.group_at, my.g, args.vector, largest).value);
    blended[my.at] = from_acc<T>(args.q_on_b ? a + q * (b - a) : b + q * (a - b));
    q_out[my.at] = from_acc<T>(q);
  }
}

// grad, grad_q (B, S) or null; grad_a, grad_b (B, S); grad_logits (B, L, D)
template <typename T>
__global__ void __launch_bounds__(kThreads)
    latent_blend_bwd_kernel(BlendArgs<T> args, StyleLayers layers, const T* __restrict__ grad,
                            const T* __restrict__ grad_q, T* __restrict__ grad_a, T* __restrict__ grad_b,
                            T* __restrict__ grad_logits) {
  using A = acc_t<T>;
  constexpr int W = 16 / static_cast<int>(sizeof(T));
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= args.channels) return;
  for (int64_t image = blockIdx.y; image < args.batch; image += gridDim.y) {
    const Channel<T> my(args, layers, image, channel);
    const A a = to_acc(__ldg(args.a + my.at)), b = to_acc(__ldg(args.b + my.at));
    const bool largest = (b > a) == args.q_on_b;
    const Decisive<A> found = find_decisive(args.logits + my.group_at, my.g, args.vector, largest);
    const A q = sigmoid(found.value);
    const A g = grad ? to_acc(__ldg(grad + my.at)) : A(0);
    const A dq = g * (args.q_on_b ? b - a : a - b) + (grad_q ? to_acc(__ldg(grad_q + my.at)) : A(0));
    const A dlogit = q * (A(1) - q) * dq;
    const A rest = g * (A(1) - q), share = g * q;
    grad_a[my.at] = from_acc<T>(args.q_on_b ? rest : share);
    grad_b[my.at] = from_acc<T>(args.q_on_b ? share : rest);
    T* group = grad_logits + my.group_at;
    if (args.vector && my.g % W == 0) {
      for (int i = 0; i < my.g; i += W) {
        Words<T, W> words;
#pragma unroll
        for (int w = 0; w < W; ++w) words.set(w, i + w == found.index ? dlogit : A(0));
        store_words<T, W>(group + i, words);
      }
    } else {
      for (int i = 0; i < my.g; ++i) group[i] = from_acc<T>(i == found.index ? dlogit : A(0));
    }
  }
}

template <typename T>
BlendArgs<T> make_args(const LatentBlend& op, const void* grad_logits) {
  BlendArgs<T> args{};
  args.batch = op.batch;
  args.channels = static_cast<int>(op.channels);
  args.depth = static_cast<int>(op.depth);
  args.q_on_b = op.q_on_b;
  args.vector =
      aligned16(op.logits) && aligned16(grad_logits) && op.depth % (16 / static_cast<int64_t>(sizeof(T))) == 0;
  args.a = static_cast<const T*>(op.a);
  args.b = static_cast<const T*>(op.b);
  args.logits = static_cast<const T*>(op.logits);
  return args;
}

dim3 blend_grid(const LatentBlend& op) {
#ifdef MIXSYN_EMULATE_CUDA
  constexpr int64_t kMostRows = 2;  // so that small shapes make blocks loop
#else
  constexpr int64_t kMostRows = 65535;
#endif
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(op.channels, kThreads)),
              static_cast<unsigned>(op.batch < kMostRows ? op.batch : kMostRows));
}

}  // namespace

cudaError_t latent_blend_forward(const LatentBlend& op, void* blended, void* q, cudaStream_t stream) {
  if (op.batch * op.channels == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(latent_blend_fwd_kernel<T>, blend_grid(op), kThreads, stream, make_args<T>(op, nullptr), op.layers,
                  static_cast<T*>(blended), static_cast<T*>(q));
  });
}

cudaError_t latent_blend_backward(const LatentBlend& op, const void* grad, const void* grad_q, void* grad_a,
                                  void* grad_b, void* grad_logits, cudaStream_t stream) {
  if (op.batch * op.channels == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(latent_blend_bwd_kernel<T>, blend_grid(op), kThreads, stream, make_args<T>(op, grad_logits),
                  op.layers, static_cast<const T*>(grad), static_cast<const T*>(grad_q), static_cast<T*>(grad_a),
                  static_cast<T*>(grad_b), static_cast<T*>(grad_logits));
  });
}

}  // namespace mixsyn_fast::kernels
