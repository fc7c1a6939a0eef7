// region_norm: statistics and forward.
#include "region_norm.h"

#include "reduce.cuh"
#include "region_norm.cuh"
#include "vec.cuh"

namespace mixsyn_fast::kernels {
namespace {

// --- statistics, first stage: mean and M2 of every channel over the pixels of one block ---
// partial_mean, partial_m2 (B, pixel_blocks, C) acc.
template <typename T, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, 2)
    region_norm_stats_kernel(Args<T, T> args, acc_t<T>* __restrict__ partial_mean, acc_t<T>* __restrict__ partial_m2) {
  using A = acc_t<T>;
  using Shape = TileShape<T, CL, VEC, Load::kLight>;
  constexpr int U = Shape::kU, V = Shape::kV;
  __shared__ A scratch_mean[kThreads * V];
  __shared__ A scratch_m2[kThreads * V];
  __shared__ A scratch_n[kThreads];

  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  const int step = at.step(tiling);
  A n = 0, mean[V] = {}, m2[V] = {};
  if (at.active) {
    const T* image = args.x + static_cast<int64_t>(at.image) * args.channels * args.pixels;
    const T* noise = args.noise ? args.noise + static_cast<int64_t>(at.image) * args.pixels : nullptr;
    for (int base = at.begin; base < at.end; base += tiling.lanes * U) {
      const int first = at.first(base);
      int pixel[U];
      clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
      A x[U][V];
      load_tile<U, V, CL, VEC>(x, image, pixel, at.c0, at.valid, args.channels, args.pixels);
      if (noise) add_noise<VEC>(args, x, noise, pixel, at.c0, at.valid);
      int present = 0;
#pragma unroll
      for (int u = 0; u < U; ++u) present += first + u * step < at.end ? 1 : 0;
      if (present == 0) continue;
      // the mean and M2 of the tile's pixels, then Chan's update with factors shared by all channels
      const A m = static_cast<A>(present), inverse = A(1) / m;
      const A share = m / (n + m), weight = n * share;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A sum = 0, squares = 0;
#pragma unroll
        for (int u = 0; u < U; ++u) sum += first + u * step < at.end ? x[u][v] : A(0);
        const A tile_mean = sum * inverse;
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const A d = first + u * step < at.end ? x[u][v] - tile_mean : A(0);
          squares += d * d;
        }
        const A delta = tile_mean - mean[v];
        mean[v] += delta * share;
        m2[v] += squares + delta * delta * weight;
      }
      n += m;
    }
  }

  // lanes of the block, by a tree
  const int slot = at.lane * tiling.groups + at.group_in_block;
  if (at.active) {
    scratch_n[slot] = n;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      scratch_mean[v * kThreads + slot] = mean[v];
      scratch_m2[v * kThreads + slot] = m2[v];
    }
  }
  for (int count = tiling.lanes; count > 1;) {
    const int half = (count + 1) / 2;
    __syncthreads();
    if (at.active && at.lane + half < count) {
      const int other = slot + half * tiling.groups;
      const A m = scratch_n[other];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        merge_moments(n, mean[v], m2[v], m, scratch_mean[v * kThreads + other], scratch_m2[v * kThreads + other]);
        scratch_mean[v * kThreads + slot] = mean[v];
        scratch_m2[v * kThreads + slot] = m2[v];
      }
      n += m;
      scratch_n[slot] = n;
    }
    count = half;
  }
  if (at.active && at.lane == 0) {
    const int64_t out = static_cast<int64_t>(blockIdx.x) * args.channels + at.c0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v < at.valid) {
        partial_mean[out + v] = mean[v];
        partial_m2[out + v] = m2[v];
      }
    }
  }
}

// --- statistics, second stage: the blocks of every group, in a fixed order ---
// mean = sum n_k mean_k / n and M2 = sum (M2_k + n_k (mean_k - mean)^2): two passes, so that no read waits
// for another.
// partial_mean, partial_m2 (groups, parts, C) acc, part k holding min(chunk, pixels - (k % pixel_blocks) *
// chunk) values; mean, m2 (groups, C) acc; count (1,) acc or null.
template <typename A>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    region_norm_stats_merge_kernel(const A* __restrict__ partial_mean, const A* __restrict__ partial_m2,
                                   A* __restrict__ mean_out, A* __restrict__ m2_out, A* __restrict__ count_out,
                                   int parts, int channels, int pixels, int chunk, int pixel_blocks, int column_blocks,
                                   bool divide) {
  __shared__ A scratch[kSumColumns * kSumRows];
  const int x = static_cast<int>(threadIdx.x) % kSumColumns, y = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t group = blockIdx.x / column_blocks;
  const int c = static_cast<int>(blockIdx.x % column_blocks) * kSumColumns + x;
  const bool exists = c < channels;
  const int64_t base = group * parts * channels + (exists ? c : 0);
  const A n = static_cast<A>(parts / pixel_blocks) * static_cast<A>(pixels);
  const A origin = __ldg(partial_mean + base);  // means are added relative to the first: no digits are lost to it
  const auto size = [&](int k) {
    const int left = pixels - (k % pixel_blocks) * chunk;
    return static_cast<A>(left < chunk ? left : chunk);
  };
  A sum = 0;
#pragma unroll 4
  for (int k = y; k < parts; k += kSumRows) {
    sum += size(k) * (__ldg(partial_mean + base + static_cast<int64_t>(k) * channels) - origin);
  }
  const A mean = origin + sum_rows(sum, scratch, x, y) / n;
  A squares = 0;
#pragma unroll 4
  for (int k = y; k < parts; k += kSumRows) {
    const int64_t at = base + static_cast<int64_t>(k) * channels;
    const A delta = __ldg(partial_mean + at) - mean;
    squares += __ldg(partial_m2 + at) + size(k) * delta * delta;
  }
  const A m2 = sum_rows(squares, scratch, x, y);
  if (y == 0 && exists) {
    mean_out[group * channels + c] = mean;
    m2_out[group * channels + c] = divide ? m2 / n : m2;
    if (count_out && group == 0 && c == 0) count_out[0] = n;
  }
}

// --- statistics, third stage: channels that share them ---
// mean, m2 (B, C) acc: of `pixels` values each; *_out (B, C): of all values of `shared` adjacent channels, at each of them.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    region_norm_stats_share_kernel(const A* __restrict__ mean, const A* __restrict__ m2, A* __restrict__ mean_out,
                                   A* __restrict__ m2_out, int64_t total, int shared, A pixels, bool divide) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= total) return;
  const int64_t first = i / shared * shared;  // C is a multiple of `shared`
  const A origin = __ldg(mean + first);       // means are added relative to it: no digits are lost
  A sum = 0, squares = 0;
  for (int k = 1; k < shared; ++k) sum += __ldg(mean + first + k) - origin;
  const A together = origin + sum / static_cast<A>(shared);
  for (int k = 0; k < shared; ++k) {
    const A delta = __ldg(mean + first + k) - together;
    squares += __ldg(m2 + first + k) + pixels * delta * delta;
  }
  mean_out[i] = together;
  m2_out[i] = divide ? squares / (pixels * static_cast<A>(shared)) : squares;
}

// --- forward ---
// Without parameters, and with 4 channels a thread, there are registers for four pixels; else for two.
template <typename T, Mode MODE, bool CL, bool VEC>
using ForwardShape = TileShape<T, CL, VEC, MODE == Mode::kPlain || sizeof(T) != 2 ? Load::kLight : Load::kMedium>;

// y (B, C, H, W).
template <typename T, typename P, Mode MODE, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, 2) region_norm_fwd_kernel(Args<T, P> args, T* __restrict__ y) {
  using A = acc_t<T>;
  using Shape = ForwardShape<T, MODE, CL, VEC>;
  constexpr int U = Shape::kU, V = Shape::kV;
  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  if (!at.active) return;
  const int step = at.step(tiling);
  const int64_t base_image = static_cast<int64_t>(at.image) * args.channels * args.pixels;
  const int64_t base_pixel = static_cast<int64_t>(at.image) * args.pixels;
  A mean[V], rstd[V];
  load_norm(args, at.image, at.c0, at.valid, mean, rstd);
  for (int base = at.begin; base < at.end; base += tiling.lanes * U) {
    const int first = at.first(base);
    int pixel[U];
    clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
    A x[U][V], gamma[U][V], beta[U][V];
    load_tile<U, V, CL, VEC>(x, args.x + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
    load_modulation<MODE, U, V, CL, VEC>(args, at.image, base_image, args.index + base_pixel, pixel, at.c0, at.valid,
                                         gamma, beta);
    if (args.noise) add_noise<VEC>(args, x, args.noise + base_pixel, pixel, at.c0, at.valid);
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A value = (x[u][v] - mean[v]) * rstd[v];
        if constexpr (MODE != Mode::kPlain) value = value * gamma[u][v] + beta[u][v];
        x[u][v] = value;
      }
    }
    activate(x, args.slope, args.silu);
    store_tile<U, V, CL, VEC>(y + base_image, x, first, step, at.end, at.c0, at.valid, args.channels, args.pixels);
  }
}

// The same for every instance of the op's type, so that the size of the workspace needs no pointers.
template <typename T, bool CL, bool VEC>
Tiling stats_tiling(const RegionNorm& op) {
  using Shape = TileShape<T, CL, VEC, Load::kLight>;
  return make_tiling(op.batch, op.channels, op.pixels, Shape::kU, Shape::kV, CL, kReduceBlocks);
}

}  // namespace

int64_t region_norm_stats_workspace(const RegionNorm& op) {
  if (op.batch * op.channels * op.pixels == 0) return 0;
  int64_t parts = 0;
  dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    for (const bool vector : {false, true}) {
      dispatch_layout(op.channels_last, vector, [&](auto cl, auto vec) {
        const int64_t blocks = stats_tiling<T, decltype(cl)::value, decltype(vec)::value>(op).pixel_blocks;
        parts = blocks > parts ? blocks : parts;
        return cudaSuccess;
      });
    }
    return cudaSuccess;
  });
  return 2 * op.batch * (parts + (op.shared > 1)) * op.channels * acc_bytes(op);
}

cudaError_t region_norm_stats(const RegionNorm& op, void* mean, void* m2, void* count, bool divide, void* workspace,
                              cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    RegionNorm bare = op;  // parameters play no part here, nor in the choice of vectors
    bare.table = bare.scale = bare.shift = nullptr;
    return dispatch_layout(op.channels_last, vectorizable<T>(bare), [&](auto cl, auto vec) {
      constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
      Args<T, T> args = make_args<T, T>(bare);
      args.tiling = stats_tiling<T, CL, VEC>(op);
      if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
      const int64_t parts = op.batch * args.tiling.pixel_blocks;
      A* partial_mean = static_cast<A*>(workspace);
      A* partial_m2 = partial_mean + parts * op.channels;
      MIXSYN_RETURN_IF_ERROR(launch(region_norm_stats_kernel<T, CL, VEC>, args.tiling.grid(), args.tiling.threads,
                                    stream, args, partial_mean, partial_m2));
      const int64_t groups = op.per_instance ? op.batch : 1;
      const int column_blocks = static_cast<int>(ceil_div<int64_t>(op.channels, kSumColumns));
      const int64_t all = groups * op.channels;
      A* own_mean = op.shared > 1 ? partial_m2 + parts * op.channels : static_cast<A*>(mean);  // of every channel
      A* own_m2 = op.shared > 1 ? own_mean + all : static_cast<A*>(m2);
      MIXSYN_RETURN_IF_ERROR(launch(region_norm_stats_merge_kernel<A>,
                                    dim3(static_cast<unsigned>(groups * column_blocks)), kSumColumns * kSumRows, stream,
                                    partial_mean, partial_m2, own_mean, own_m2, static_cast<A*>(count),
                                    static_cast<int>(parts / groups), args.channels, args.pixels, args.tiling.chunk,
                                    args.tiling.pixel_blocks, column_blocks, divide && op.shared == 1));
      if (op.shared == 1) return cudaSuccess;
      return launch(region_norm_stats_share_kernel<A>, dim3(static_cast<unsigned>(ceil_div<int64_t>(all, kThreads))),
                    kThreads, stream, own_mean, own_m2, static_cast<A*>(mean), static_cast<A*>(m2), all,
                    static_cast<int>(op.shared), static_cast<A>(op.pixels), divide);
    });
  });
}

cudaError_t region_norm_forward(const RegionNorm& op, void* y, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    return dispatch_params<T>(op, [&](auto param, auto mode) {
      using P = typename decltype(param)::type;
      constexpr Mode MODE = decltype(mode)::value;
      return dispatch_layout(op.channels_last, vectorizable<T>(op, y), [&](auto cl, auto vec) {
        constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
        using Shape = ForwardShape<T, MODE, CL, VEC>;
        Args<T, P> args = make_args<T, P>(op);
        args.tiling = make_tiling(op.batch, op.channels, op.pixels, Shape::kU, Shape::kV, CL, kStreamBlocks);
        if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
        return launch(region_norm_fwd_kernel<T, P, MODE, CL, VEC>, args.tiling.grid(), args.tiling.threads, stream,
                      args, static_cast<T*>(y));
      });
    });
  });
}

}  // namespace mixsyn_fast::kernels
