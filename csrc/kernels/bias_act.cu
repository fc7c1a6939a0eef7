// bias_act: forward, and backward with all its sums in the pass that makes grad_x.
#include "bias_act.h"

#include "dtype.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace mixsyn_fast::kernels {
namespace {

template <typename T>
struct BiasActArgs {
  using A = acc_t<T>;
  Tiling tiling;
  int channels, pixels;  // C, H*W
  const T* x;            // (B, C, H, W), or null
  const A* bias;         // (C,) or null
  const A* scale;        // (B, C) or null
  const T* noise;        // (B or 1, H*W) or null
  int64_t noise_stride;  // H*W, or 0
  const A* strength;     // (1,)
  A high, low;
};

// V values per channel, or the constant where there are none.
template <int V, typename A>
__device__ __forceinline__ void load_channels(A (&out)[V], const A* p, int valid, A otherwise) {
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = p ? __ldg(p + (v < valid ? v : valid - 1)) : otherwise;
}

// y (B, C, H, W).
template <typename T, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, 2) bias_act_fwd_kernel(BiasActArgs<T> args, T* __restrict__ y) {
  using A = acc_t<T>;
  using Shape = TileShape<T, CL, VEC, Load::kLight>;
  constexpr int U = Shape::kU, V = Shape::kV;
  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  if (!at.active) return;
  const int step = at.step(tiling);
  const int64_t base_image = static_cast<int64_t>(at.image) * args.channels * args.pixels;
  A scale[V], bias[V];
  load_channels(scale, args.scale ? args.scale + static_cast<int64_t>(at.image) * args.channels + at.c0 : nullptr,
                at.valid, A(1));
  load_channels(bias, args.bias ? args.bias + at.c0 : nullptr, at.valid, A(0));
  const T* noise = args.noise ? args.noise + at.image * args.noise_stride : nullptr;
  const A strength = noise ? __ldg(args.strength) : A(0);
  for (int base = at.begin; base < at.end; base += tiling.lanes * U) {
    const int first = at.first(base);
    int pixel[U];
    clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
    A x[U][V];
    load_tile<U, V, CL, VEC>(x, args.x + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const A n = noise ? strength * to_acc(__ldg(noise + pixel[u])) : A(0);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = x[u][v] * scale[v] + n + bias[v];
        x[u][v] = value * (value >= A(0) ? args.high : args.low);
      }
    }
    store_tile<U, V, CL, VEC>(y + base_image, x, first, step, at.end, at.c0, at.valid, args.channels, args.pixels);
  }
}

// SCALE: sums of h * x too. SUMS: sums over channels too.
// grad, y, grad_x (B, C, H, W); part_bias, part_scale (B, pixel_blocks, C) acc;
// part_sums (channel_blocks, B, H*W) acc.
template <typename T, bool CL, bool VEC, bool SCALE, bool SUMS>
__global__ void __launch_bounds__(kThreads, 2)
    bias_act_bwd_kernel(BiasActArgs<T> args, const T* __restrict__ grad, const T* __restrict__ y,
                        T* __restrict__ grad_x, acc_t<T>* __restrict__ part_bias, acc_t<T>* __restrict__ part_scale,
                        acc_t<T>* __restrict__ part_sums, int64_t all_pixels) {
  using A = acc_t<T>;
  using Shape = TileShape<T, CL, VEC, Load::kHeavy>;
  constexpr int U = Shape::kU, V = Shape::kV;
  __shared__ A scratch[kThreads * (U > V ? U : V)];
  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  const bool in_block =
      at.lane < tiling.lanes && at.group_in_block < tiling.groups;  // also of channels beyond the last
  const int step = at.step(tiling);
  const int64_t base_image = static_cast<int64_t>(at.image) * args.channels * args.pixels;
  A scale[V] = {}, sum[V] = {}, sum_x[V] = {};
  if (at.active) {
    load_channels(scale, args.scale ? args.scale + static_cast<int64_t>(at.image) * args.channels + at.c0 : nullptr,
                  at.valid, A(1));
  }
  for (int base = at.begin; base < at.end; base += tiling.lanes * U) {  // the same turns for all threads of the block
    const int first = at.first(base);
    A h[U][V] = {}, rows[U] = {};
    if (at.active) {
      int pixel[U];
      clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
      A value[U][V];
      load_tile<U, V, CL, VEC>(h, grad + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
      load_tile<U, V, CL, VEC>(value, y + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const bool present = first + u * step < at.end;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          h[u][v] = present ? h[u][v] * (value[u][v] >= A(0) ? args.high : args.low) : A(0);
          sum[v] += h[u][v];
          if constexpr (SUMS) rows[u] += v < at.valid ? h[u][v] : A(0);
        }
      }
      if constexpr (SCALE) {
        load_tile<U, V, CL, VEC>(value, args.x + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const bool present = first + u * step < at.end;  // x of a repeated pixel may be infinite
#pragma unroll
          for (int v = 0; v < V; ++v) sum_x[v] += present ? h[u][v] * value[u][v] : A(0);
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) h[u][v] *= scale[v];
      }
      store_tile<U, V, CL, VEC>(grad_x + base_image, h, first, step, at.end, at.c0, at.valid, args.channels,
                                args.pixels);
    }
    if constexpr (SUMS) {  // over the channel groups of the block: lanes and groups change places
      sum_lanes<U>(rows, scratch, at.group_in_block, at.lane, tiling.groups, tiling.lanes, in_block);
      if (at.active && at.group_in_block == 0) {
        A* out = part_sums + blockIdx.y * all_pixels + static_cast<int64_t>(at.image) * args.pixels;
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const int p = first + u * step;
          if (p < at.end) out[p] = rows[u];
        }
      }
    }
  }
  sum_lanes<V>(sum, scratch, at.lane, at.group_in_block, tiling.lanes, tiling.groups, at.active);
  if constexpr (SCALE) sum_lanes<V>(sum_x, scratch, at.lane, at.group_in_block, tiling.lanes, tiling.groups, at.active);
  if (at.active && at.lane == 0) {
    const int64_t out = static_cast<int64_t>(blockIdx.x) * args.channels + at.c0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v < at.valid) {
        part_bias[out + v] = sum[v];
        if constexpr (SCALE) part_scale[out + v] = sum_x[v];
      }
    }
  }
}

template <typename T>
BiasActArgs<T> make_args(const BiasAct& op) {
  using A = acc_t<T>;
  BiasActArgs<T> a{};
  a.channels = static_cast<int>(op.channels);
  a.pixels = static_cast<int>(op.pixels);
  a.x = static_cast<const T*>(op.x);
  a.bias = static_cast<const A*>(op.bias);
  a.scale = static_cast<const A*>(op.scale);
  a.noise = static_cast<const T*>(op.noise);
  a.noise_stride = op.noise_per_image ? op.pixels : 0;
  a.strength = static_cast<const A*>(op.strength);
  a.high = static_cast<A>(op.high);
  a.low = static_cast<A>(op.low);
  return a;
}

// body(CL, VEC) as compile-time booleans: whether tiles of T can be moved as vectors.
template <typename T, Load LOAD, typename Body, typename... Pointers>
cudaError_t dispatch_tiles(const BiasAct& op, Body&& body, Pointers... maps) {
  bool aligned = true;
  for (const void* p : {static_cast<const void*>(maps)...}) aligned = aligned && aligned16(p);  // null is aligned
  if (op.channels_last) {
    return aligned && op.channels % TileShape<T, true, true, LOAD>::kV == 0 ? body(Bool<true>{}, Bool<true>{})
                                                                            : body(Bool<true>{}, Bool<false>{});
  }
  using Shape = TileShape<T, false, true, LOAD>;
  return aligned && op.channels % Shape::kV == 0 && op.pixels % Shape::kU == 0 ? body(Bool<false>{}, Bool<true>{})
                                                                               : body(Bool<false>{}, Bool<false>{});
}

// Sums over channels: in contiguous layout few lanes and many channels a block, so that few partial sums are left.
template <typename T, bool CL, bool VEC>
Tiling backward_tiling(const BiasAct& op, bool sums) {
  using Shape = TileShape<T, CL, VEC, Load::kHeavy>;
  return make_tiling(op.batch, op.channels, op.pixels, Shape::kU, Shape::kV, CL, kReduceBlocks, sums ? 32 : kThreads);
}

// Elements of the partial sums of channels (one of two), and of pixels.
struct BackwardParts {
  int64_t of_channels, of_pixels;
  BackwardParts(const BiasAct& op, const Tiling& t, bool sums)
      : of_channels(op.batch * t.pixel_blocks * op.channels),
        of_pixels(sums && t.channel_blocks > 1 ? t.channel_blocks * op.batch * op.pixels : 0) {}
};

}  // namespace

cudaError_t bias_act_forward(const BiasAct& op, void* y, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return dispatch_tiles<T, Load::kLight>(
        op,
        [&](auto cl, auto vec) {
          constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
          using Shape = TileShape<T, CL, VEC, Load::kLight>;
          BiasActArgs<T> args = make_args<T>(op);
          args.tiling = make_tiling(op.batch, op.channels, op.pixels, Shape::kU, Shape::kV, CL, kStreamBlocks);
          if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
          return launch(bias_act_fwd_kernel<T, CL, VEC>, args.tiling.grid(), args.tiling.threads, stream, args,
                        static_cast<T*>(y));
        },
        op.x, y);
  });
}

int64_t bias_act_backward_workspace(const BiasAct& op, bool sums) {
  if (op.batch * op.channels * op.pixels == 0) return 0;
  int64_t bytes = 0;
  dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto see = [&](const Tiling& tiling) {  // vectors or not: the pointers are not known yet
      const BackwardParts parts(op, tiling, sums);
      const int64_t need = (2 * parts.of_channels + parts.of_pixels) * static_cast<int64_t>(sizeof(acc_t<T>));
      bytes = need > bytes ? need : bytes;
    };
    if (op.channels_last) {
      see(backward_tiling<T, true, true>(op, sums)), see(backward_tiling<T, true, false>(op, sums));
    } else {
      see(backward_tiling<T, false, true>(op, sums)), see(backward_tiling<T, false, false>(op, sums));
    }
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t bias_act_backward(const BiasAct& op, const BiasActGrad& out, void* workspace, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    return dispatch_tiles<T, Load::kHeavy>(
        op,
        [&](auto cl, auto vec) {
          constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
          BiasActArgs<T> args = make_args<T>(op);
          args.tiling = backward_tiling<T, CL, VEC>(op, out.sums != nullptr);
          if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
          const BackwardParts parts(op, args.tiling, out.sums != nullptr);
          A* part_bias = static_cast<A*>(workspace);
          A* part_scale = part_bias + parts.of_channels;
          A* part_sums = parts.of_pixels ? part_scale + parts.of_channels : static_cast<A*>(out.sums);
          const int64_t all_pixels = op.batch * op.pixels;
          const auto run = [&](auto kernel) {
            return launch(kernel, args.tiling.grid(), args.tiling.threads, stream, args,
                          static_cast<const T*>(out.grad), static_cast<const T*>(out.y), static_cast<T*>(out.grad_x),
                          part_bias, part_scale, part_sums, all_pixels);
          };
          if (op.x) {
            MIXSYN_RETURN_IF_ERROR(out.sums ? run(bias_act_bwd_kernel<T, CL, VEC, true, true>)
                                            : run(bias_act_bwd_kernel<T, CL, VEC, true, false>));
          } else {
            MIXSYN_RETURN_IF_ERROR(out.sums ? run(bias_act_bwd_kernel<T, CL, VEC, false, true>)
                                            : run(bias_act_bwd_kernel<T, CL, VEC, false, false>));
          }
          const int64_t blocks = args.tiling.pixel_blocks;
          A* none = nullptr;
          MIXSYN_RETURN_IF_ERROR(sum_partials<A>(part_bias, static_cast<A*>(out.grad_bias), none, 1, op.batch * blocks,
                                                 op.channels, op.channels, stream));
          if (op.x) {
            MIXSYN_RETURN_IF_ERROR(sum_partials<A>(part_scale, static_cast<A*>(out.grad_scale), none, op.batch, blocks,
                                                   op.channels, op.channels, stream));
          }
          if (parts.of_pixels == 0) return cudaSuccess;
          return sum_partials<A>(part_sums, static_cast<A*>(out.sums), none, 1, args.tiling.channel_blocks, all_pixels,
                                 all_pixels, stream);
        },
        op.x, out.grad, out.y, out.grad_x);
  });
}

}  // namespace mixsyn_fast::kernels
