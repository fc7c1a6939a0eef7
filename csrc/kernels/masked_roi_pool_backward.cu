// masked_roi_pool: the gradient, one pass over the output. A pixel asks its region's row of the table of
// positions whether it was taken (maximum), or takes its share of the row (mean). What belongs to a run of equal
// labels is read once, when the run begins.
#include "masked_roi_pool.cuh"

namespace mixsyn_fast::kernels {
namespace {

// Channels of a block of the contiguous kernel.
constexpr int kGradChannels = 16;

template <typename T>
struct GradArgs {
  const T* grad;            // (B, K, C)
  const int32_t* position;  // (B, K, C), or null
  const acc_t<T>* area;     // (B, K), or null
  T* grad_features;         // (B, C, H, W)
};

// channels_last
template <typename T, int V, bool MAX>
__global__ void __launch_bounds__(kThreads, 3) masked_roi_pool_backward_kernel(PoolArgs<T> args, GradArgs<T> grads) {
  using A = acc_t<T>;
  constexpr int U = 8;
  const Position<1, V, true> at(args.tiling, args.channels, args.pixels);
  if (!at.active) return;
  T* image = grads.grad_features + static_cast<int64_t>(at.image) * args.pixels * args.channels + at.c0;
  const int32_t* labels = args.labels + static_cast<int64_t>(at.image) * args.pixels;
  const int64_t first_row = static_cast<int64_t>(at.image) * args.regions;
  const Span span(args.tiling, at);
  int current = -1;
  A value[V] = {};    // of the run: the gradient, or its share
  int where[V] = {};  // of the run: the pixel that was taken
  for (int base = span.begin; base < span.end; base += U) {
    int label[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      label[u] = __ldg(labels + (base + u < span.end ? base + u : span.end - 1));
    }
    check_labels(label, args.regions);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int pixel = base + u;
      if (pixel >= span.end) break;
      if (label[u] != current) {
        current = label[u];
        if (current < 0) {
#pragma unroll
          for (int v = 0; v < V; ++v) value[v] = A(0), where[v] = -1;
        } else {
          const int64_t row = (first_row + current) * args.channels + at.c0;
#pragma unroll
          for (int v = 0; v < V; ++v) {
            value[v] = to_acc(__ldg(grads.grad + row + v));
            if constexpr (MAX) where[v] = __ldg(grads.position + row + v);
          }
          if constexpr (!MAX) {
            const A area = __ldg(grads.area + first_row + current);
#pragma unroll
            for (int v = 0; v < V; ++v) value[v] /= area;
          }
        }
      }
      A out[V];
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = !MAX || where[v] == pixel ? value[v] : A(0);
      store_channels<V>(image + static_cast<int64_t>(pixel) * args.channels, out);
    }
  }
}

// contiguous: a thread owns W consecutive pixels and the kGradChannels channels of its block.
template <typename T, int W, bool MAX>
__global__ void __launch_bounds__(kThreads, 2)
    masked_roi_pool_backward_rows_kernel(PoolArgs<T> args, GradArgs<T> grads, int blocks_per_image) {
  using A = acc_t<T>;
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x % blocks_per_image) * kThreads + static_cast<int64_t>(threadIdx.x)) * W;
  if (first >= args.pixels) return;
  const int pixel = static_cast<int>(first);
  int label[W];
  A area[W];
#pragma unroll
  for (int w = 0; w < W; ++w) label[w] = __ldg(args.labels + image * args.pixels + pixel + w);
  check_labels(label, args.regions);
  if constexpr (!MAX) {
#pragma unroll
    for (int w = 0; w < W; ++w) {
      area[w] = label[w] < 0 ? A(1) : __ldg(grads.area + image * args.regions + label[w]);
    }
  }
  const int c0 = static_cast<int>(blockIdx.y) * kGradChannels;
  const int last = args.channels - c0 < kGradChannels ? args.channels : c0 + kGradChannels;
#pragma unroll 2
  for (int c = c0; c < last; ++c) {
    const int64_t column = image * args.regions * args.channels + c;
    A out[W];
    A value = A(0);
    int where = -1;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      if (w == 0 || label[w] != label[w - 1]) {
        value = A(0), where = -1;
        if (label[w] >= 0) {
          const int64_t at = column + static_cast<int64_t>(label[w]) * args.channels;
          value = to_acc(__ldg(grads.grad + at));
          if constexpr (MAX) {
            where = __ldg(grads.position + at);
          } else {
            value /= area[w];
          }
        }
      }
      out[w] = !MAX || where == pixel + w ? value : A(0);
    }
    store_row<(W > 1), W>(grads.grad_features + (image * args.channels + c) * args.pixels + pixel, out, W);
  }
}

}  // namespace

cudaError_t masked_roi_pool_backward(const MaskedRoiPool& op, const void* grad, const int32_t* position,
                                     const void* area, void* grad_features, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    PoolArgs<T> args = make_pool_args<T>(op);
    const GradArgs<T> grads{static_cast<const T*>(grad), position, static_cast<const acc_t<T>*>(area),
                            static_cast<T*>(grad_features)};
    if (op.channels_last) {
      return dispatch_width<T>(op.channels, grad_features, [&](auto width) {
        constexpr int V = decltype(width)::value;
        args.tiling = make_span_tiling<V>(op);
        if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
        return launch(
            position ? masked_roi_pool_backward_kernel<T, V, true> : masked_roi_pool_backward_kernel<T, V, false>,
            args.tiling.grid(), args.tiling.threads, stream, args, grads);
      });
    }
    const auto rows = [&](auto width) {
      constexpr int W = decltype(width)::value;
      const int64_t blocks = ceil_div<int64_t>(op.pixels, kThreads * W);
      const int64_t channel_blocks = ceil_div<int64_t>(op.channels, kGradChannels);
      if (op.batch * blocks > 0x7fffffffLL || channel_blocks > 65535) return cudaErrorInvalidConfiguration;
      const dim3 grid(static_cast<unsigned>(op.batch * blocks), static_cast<unsigned>(channel_blocks));
      return launch(position ? masked_roi_pool_backward_rows_kernel<T, W, true>
                             : masked_roi_pool_backward_rows_kernel<T, W, false>,
                    grid, kThreads, stream, args, grads, static_cast<int>(blocks));
    };
    constexpr int W = 16 / static_cast<int>(sizeof(T));
    return aligned16(grad_features) && op.pixels % W == 0 ? rows(Int<W>{}) : rows(Int<1>{});
  });
}

}  // namespace mixsyn_fast::kernels
