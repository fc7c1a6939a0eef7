// region_norm: backward. With g' = grad * act'(pre), ghat = g' * gamma and N values per group,
//
//   grad_x     = rstd * (ghat - sum(ghat) / N - xhat * sum(ghat * xhat) / N)
//   grad_table = per row, [sum of g' * xhat | sum of g'] over the pixels of the row
#include "reduce.cuh"
#include "region_norm.cuh"
#include "region_norm.h"
#include "vec.cuh"

namespace mixsyn_fast::kernels {
namespace {

// x <- xhat, grad <- g', in place. gamma and beta are unused in mode kPlain.
template <Mode MODE, int U, int V, typename A>
__device__ __forceinline__ void to_xhat_and_g(A (&x)[U][V], A (&grad)[U][V], const A (&gamma)[U][V],
                                              const A (&beta)[U][V], const A (&mean)[V], const A (&rstd)[V], A slope,
                                              bool silu) {
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      x[u][v] = (x[u][v] - mean[v]) * rstd[v];
      A pre = x[u][v];
      if constexpr (MODE != Mode::kPlain) pre = pre * gamma[u][v] + beta[u][v];
      grad[u][v] = before_activation(grad[u][v], pre, slope, silu);
    }
  }
}

// --- sums over the pixels of one block ---
// grad (B, C, H, W); partial (B, pixel_blocks, 2C) acc: sum of ghat, then sum of ghat * xhat; in mode kRow, where gamma is
// the same for all pixels of an image, of g' in place of ghat.
template <typename T, typename P, Mode MODE, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, 2)
    region_norm_bwd_sums_kernel(Args<T, P> args, const T* __restrict__ grad, acc_t<T>* __restrict__ partial) {
  using A = acc_t<T>;
  using Shape = TileShape<T, CL, VEC, Load::kHeavy>;
  constexpr int U = Shape::kU, V = Shape::kV;
  __shared__ A scratch[kThreads * V];
  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  const int step = at.step(tiling);
  A sum_g[V] = {}, sum_gx[V] = {};
  if (at.active) {
    const int64_t base_image = static_cast<int64_t>(at.image) * args.channels * args.pixels;
    const int64_t base_pixel = static_cast<int64_t>(at.image) * args.pixels;
    A mean[V], rstd[V];
    load_norm(args, at.image, at.c0, at.valid, mean, rstd);
    for (int base = at.begin; base < at.end; base += tiling.lanes * U) {
      const int first = at.first(base);
      int pixel[U];
      clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
      A x[U][V], g[U][V], gamma[U][V], beta[U][V];
      load_tile<U, V, CL, VEC>(x, args.x + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
      load_tile<U, V, CL, VEC>(g, grad + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
      load_modulation<MODE, U, V, CL, VEC>(args, at.image, base_image, args.index + base_pixel, pixel, at.c0, at.valid,
                                           gamma, beta);
      if (args.noise) add_noise<VEC>(args, x, args.noise + base_pixel, pixel, at.c0, at.valid);
      to_xhat_and_g<MODE>(x, g, gamma, beta, mean, rstd, args.slope, args.silu);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const bool present = first + u * step < at.end;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          A ghat = g[u][v];
          if constexpr (MODE == Mode::kTable || MODE == Mode::kMaps) ghat *= gamma[u][v];
          sum_g[v] += present ? ghat : A(0);
          sum_gx[v] += present ? ghat * x[u][v] : A(0);
        }
      }
    }
  }
  sum_lanes<V>(sum_g, scratch, at.lane, at.group_in_block, tiling.lanes, tiling.groups, at.active);
  sum_lanes<V>(sum_gx, scratch, at.lane, at.group_in_block, tiling.lanes, tiling.groups, at.active);
  if (at.active && at.lane == 0) {
    A* out = partial + static_cast<int64_t>(blockIdx.x) * 2 * args.channels + at.c0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v < at.valid) {
        out[v] = sum_g[v];
        out[args.channels + v] = sum_gx[v];
      }
    }
  }
}

// --- what channels or images share ---
// From sums of every image and channel, own_g and own_gx (B, C): sum_g, sum_gx (B, C), or (1, C) where statistics are of the
// batch, and the gradient of a table without index. table (R, 2C) or null: then the sums are of ghat, else of g'.
template <typename A, typename P>
__global__ void __launch_bounds__(kThreads)
    region_norm_bwd_share_kernel(const A* __restrict__ own_g, const A* __restrict__ own_gx, const P* __restrict__ table,
                                 A* __restrict__ sum_g, A* __restrict__ sum_gx, A* __restrict__ grad_table, int batch,
                                 int channels, int shared, int image_row, bool per_instance) {
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (c >= channels) return;
  const int first = c / shared * shared;
  A row_g = 0, row_gx = 0, all_g = 0, all_gx = 0;
  for (int b = 0; b < batch; ++b) {
    const int64_t image = static_cast<int64_t>(b) * channels;
    const P* row = table ? table + 2 * image * image_row : nullptr;
    row_g += __ldg(own_g + image + c), row_gx += __ldg(own_gx + image + c);
    if (grad_table && (image_row || b == batch - 1)) {
      A* out = grad_table + 2 * image * image_row + c;
      out[0] = row_gx, out[channels] = row_g;
      row_g = row_gx = A(0);
    }
    if (!sum_g) continue;
    for (int k = first; k < first + shared; ++k) {
      const A gamma = row ? to_acc(__ldg(row + k)) : A(1);
      all_g += gamma * __ldg(own_g + image + k), all_gx += gamma * __ldg(own_gx + image + k);
    }
    if (per_instance || b == batch - 1) {
      const int64_t at = per_instance ? image + c : c;
      sum_g[at] = all_g, sum_gx[at] = all_gx;
      all_g = all_gx = A(0);
    }
  }
}

// --- table gradient, first stage ---
// The pixels sorted by row are cut into parts of `length` consecutive ones; a lane walks one part and sums
// the run of each row. A run that lies within the part is finished and goes to grad_table. A run that began
// in an earlier part goes to `head`, one that begins here and goes on in the next part to `tail`; the second
// stage joins those.
struct TableParts {
  int length;  // pixels of a part
  int parts;   // number of parts
  int total;   // B*H*W
  int blocks;  // blocks along the parts
};

// keys (B*H*W,): rows, ascending; order (B*H*W,): their pixels; grad (B, C, H, W) channels_last;
// grad_table (R, 2C); head, tail (parts, 2C); partial (blocks, 2C) sums of ghat and ghat * xhat, or null. All
// acc.
template <typename T, typename P, bool VEC>
__global__ void __launch_bounds__(kThreads, 2)
    region_norm_bwd_table_kernel(Args<T, P> args, TableParts part, const T* __restrict__ grad,
                                 const int32_t* __restrict__ keys, const int64_t* __restrict__ order,
                                 acc_t<T>* __restrict__ grad_table, acc_t<T>* __restrict__ head,
                                 acc_t<T>* __restrict__ tail, acc_t<T>* __restrict__ partial) {
  using A = acc_t<T>;
  constexpr int V = TileShape<T, true, VEC, Load::kHeavy>::kV;
  constexpr int U = VEC ? 2 : 4;
  __shared__ A scratch[kThreads * V];
  const Tiling& tiling = args.tiling;
  const int id = static_cast<int>(threadIdx.x);
  const int lane = id / tiling.groups, group_in_block = id % tiling.groups;
  const int c0 = (static_cast<int>(blockIdx.y) * tiling.groups + group_in_block) * V;
  const bool active = lane < tiling.lanes && c0 < args.channels;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * tiling.lanes + lane;
  const int channels = args.channels;
  A all_g[V] = {}, all_gx[V] = {};

  if (active && j < part.parts) {
    const int begin = static_cast<int>(j) * part.length;
    const int end = part.total - begin < part.length ? part.total : begin + part.length;
    A sum_g[V] = {}, sum_gx[V] = {};  // of the current run: g' and g' * xhat
    A mean[V], rstd[V];
    int image = 0;
    load_norm(args, 0, c0, V, mean, rstd);
    int row = __ldg(keys + begin), run_begin = begin;

    const auto finish_run = [&](int run_end) {
      const bool starts = run_begin > begin || begin == 0 || __ldg(keys + begin - 1) != row;
      const bool ends = run_end < end || end == part.total || __ldg(keys + end) != row;
      A* out = !starts ? head + j * 2 * channels
               : ends  ? grad_table + static_cast<int64_t>(row) * 2 * channels
                       : tail + j * 2 * channels;
      store_row<VEC, V>(out + c0, sum_gx, V);
      store_row<VEC, V>(out + channels + c0, sum_g, V);
    };

    for (int position = begin; position < end; position += U) {
      int key[U];
      int64_t pixel[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int p = position + u < end ? position + u : end - 1;
        key[u] = __ldg(keys + p);
        pixel[u] = __ldg(order + p);
      }
      A x[U][V], g[U][V], gamma[U][V], beta[U][V], noise[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
        load_row<VEC, Cache::kOnce, V>(x[u], args.x + pixel[u] * channels + c0, V);
        load_row<VEC, Cache::kOnce, V>(g[u], grad + pixel[u] * channels + c0, V);
        const P* p = table_row(args, key[u]) + c0;
        load_row<VEC, Cache::kReuse, V>(gamma[u], p, V);
        load_row<VEC, Cache::kReuse, V>(beta[u], p + channels, V);
        noise[u] = args.noise ? to_acc(__ldg(args.noise + pixel[u])) : A(0);
      }
      if (args.noise) {
        A noise_scale[V];
        load_row<VEC, Cache::kReuse, V>(noise_scale, args.noise_scale + c0, V);
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
          for (int v = 0; v < V; ++v) x[u][v] += noise[u] * noise_scale[v];
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (position + u < end) {
          if (key[u] != row) {
            finish_run(position + u);
            row = key[u];
            run_begin = position + u;
#pragma unroll
            for (int v = 0; v < V; ++v) sum_g[v] = sum_gx[v] = A(0);
          }
          if (args.group_stride != 0) {  // statistics per image
            const int now = static_cast<int>(pixel[u] / args.pixels);
            if (now != image) {
              image = now;
              load_norm(args, image, c0, V, mean, rstd);
            }
          }
#pragma unroll
          for (int v = 0; v < V; ++v) {
            const A xhat = (x[u][v] - mean[v]) * rstd[v];
            const A pre = xhat * gamma[u][v] + beta[u][v];
            const A gp = before_activation(g[u][v], pre, args.slope, args.silu);
            sum_g[v] += gp;
            sum_gx[v] += gp * xhat;
            all_g[v] += gp * gamma[u][v];
            all_gx[v] += gp * gamma[u][v] * xhat;
          }
        }
      }
    }
    finish_run(end);
  }

  if (partial) {  // the same for every thread
    sum_lanes<V>(all_g, scratch, lane, group_in_block, tiling.lanes, tiling.groups, active);
    sum_lanes<V>(all_gx, scratch, lane, group_in_block, tiling.lanes, tiling.groups, active);
    if (active && lane == 0) {
      A* out = partial + static_cast<int64_t>(blockIdx.x) * 2 * channels + c0;
      store_row<VEC, V>(out, all_g, V);
      store_row<VEC, V>(out + channels, all_gx, V);
    }
  }
}

// --- table gradient, second stage: runs that begin in one part and go on in the next ---
// Each block looks at kJoinParts parts (most have no such run) and kSumColumns columns.
// keys, head, tail, grad_table as above; columns = 2C; grid (blocks of parts, blocks of columns).
constexpr int kJoinParts = 16;

template <typename A>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    region_norm_bwd_join_kernel(TableParts part, const int32_t* __restrict__ keys, const A* __restrict__ head,
                                const A* __restrict__ tail, A* __restrict__ grad_table, int columns) {
  __shared__ A scratch[kSumColumns * kSumRows];
  __shared__ int last_part[kJoinParts];  // the part where the run that begins in this part ends, or -1
  __shared__ int run_row[kJoinParts];
  const int id = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kJoinParts;
  if (id < kJoinParts) {
    const int j = first + id;
    int last = -1, row = 0;
    if (j < part.parts - 1) {  // from the last part nothing goes on
      const int begin = j * part.length, end = begin + part.length;
      row = __ldg(keys + end - 1);
      const bool goes_on = __ldg(keys + end) == row;
      const bool began_before = begin > 0 && __ldg(keys + begin) == row && __ldg(keys + begin - 1) == row;
      if (goes_on && !began_before) {
        // the run's last pixel by bisection: keys[low] == row, and keys[high] > row or high is the end
        int low = end, high = part.total;
        while (high - low > 1) {
          const int middle = low + (high - low) / 2;
          if (__ldg(keys + middle) == row)
            low = middle;
          else
            high = middle;
        }
        last = low / part.length;
      }
    }
    last_part[id] = last;
    run_row[id] = row;
  }
  __syncthreads();
  const int x = id % kSumColumns, y = id / kSumColumns;
  const int column = static_cast<int>(blockIdx.y) * kSumColumns + x;
  for (int t = 0; t < kJoinParts; ++t) {
    const int j = first + t, last = last_part[t];  // the same for all threads
    if (last < 0) continue;
    A sum = A(0);
    if (column < columns) {
#pragma unroll 4
      for (int k = j + 1 + y; k <= last; k += kSumRows) sum += __ldg(head + static_cast<int64_t>(k) * columns + column);
    }
    sum = sum_rows(sum, scratch, x, y);
    if (y == 0 && column < columns) {
      grad_table[static_cast<int64_t>(run_row[t]) * columns + column] =
          __ldg(tail + static_cast<int64_t>(j) * columns + column) + sum;
    }
  }
}

// --- gradient of the input ---
template <typename T>
struct GradInput {
  const T* grad;           // (B, C, H, W)
  const acc_t<T>* sum_g;   // (G, C) or null
  const acc_t<T>* sum_gx;  // (G, C)
  acc_t<T> inverse_count;
  T* grad_x;          // (B, C, H, W)
  T* grad_scale;      // (B, C, H, W) or null
  T* grad_shift;      // (B, C, H, W)
  acc_t<T>* partial;  // (B, pixel_blocks, C): sums of grad_x * noise; null without noise
};

template <typename T, typename P, Mode MODE, bool CL, bool VEC>
__global__ void __launch_bounds__(kThreads, 2) region_norm_bwd_input_kernel(Args<T, P> args, GradInput<T> io) {
  using A = acc_t<T>;
  using Shape = TileShape<T, CL, VEC, Load::kHeavy>;
  constexpr int U = Shape::kU, V = Shape::kV;
  __shared__ A scratch[kThreads * V];
  const Tiling& tiling = args.tiling;
  const Position<U, V, CL> at(tiling, args.channels, args.pixels);
  const int step = at.step(tiling);
  A sum_noise[V] = {};
  if (at.active) {
    const int64_t base_image = static_cast<int64_t>(at.image) * args.channels * args.pixels;
    const int64_t base_pixel = static_cast<int64_t>(at.image) * args.pixels;
    A mean[V], rstd[V], mean_g[V], mean_gx[V];
    load_norm(args, at.image, at.c0, at.valid, mean, rstd);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t i = at.image * args.group_stride + at.c0 + (v < at.valid ? v : at.valid - 1);
      mean_g[v] = io.sum_g ? __ldg(io.sum_g + i) * io.inverse_count : A(0);
      mean_gx[v] = io.sum_g ? __ldg(io.sum_gx + i) * io.inverse_count : A(0);
    }
    for (int base = at.begin; base < at.end; base += tiling.lanes * U) {
      const int first = at.first(base);
      int pixel[U];
      clamp_pixels<U, CL, VEC>(pixel, first, step, at.end);
      A x[U][V], g[U][V], gamma[U][V], beta[U][V];
      load_tile<U, V, CL, VEC>(x, args.x + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
      load_tile<U, V, CL, VEC>(g, io.grad + base_image, pixel, at.c0, at.valid, args.channels, args.pixels);
      load_modulation<MODE, U, V, CL, VEC>(args, at.image, base_image, args.index + base_pixel, pixel, at.c0, at.valid,
                                           gamma, beta);
      if (args.noise) add_noise<VEC>(args, x, args.noise + base_pixel, pixel, at.c0, at.valid);
      to_xhat_and_g<MODE>(x, g, gamma, beta, mean, rstd, args.slope, args.silu);
      if constexpr (MODE == Mode::kMaps) {
        if (io.grad_scale) {
          store_tile<U, V, CL, VEC>(io.grad_shift + base_image, g, first, step, at.end, at.c0, at.valid, args.channels,
                                    args.pixels);
#pragma unroll
          for (int u = 0; u < U; ++u) {
#pragma unroll
            for (int v = 0; v < V; ++v) beta[u][v] = g[u][v] * x[u][v];
          }
          store_tile<U, V, CL, VEC>(io.grad_scale + base_image, beta, first, step, at.end, at.c0, at.valid,
                                    args.channels, args.pixels);
        }
      }
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          A ghat = g[u][v];
          if constexpr (MODE != Mode::kPlain) ghat *= gamma[u][v];
          if (io.sum_g) ghat = ghat - mean_g[v] - x[u][v] * mean_gx[v];
          g[u][v] = ghat * rstd[v];
        }
      }
      if (args.noise) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
          const A noise = to_acc(__ldg(args.noise + base_pixel + pixel[u]));
          const bool present = first + u * step < at.end;
#pragma unroll
          for (int v = 0; v < V; ++v) sum_noise[v] += present ? g[u][v] * noise : A(0);
        }
      }
      store_tile<U, V, CL, VEC>(io.grad_x + base_image, g, first, step, at.end, at.c0, at.valid, args.channels,
                                args.pixels);
    }
  }
  if (args.noise) {  // the same for every thread
    sum_lanes<V>(sum_noise, scratch, at.lane, at.group_in_block, tiling.lanes, tiling.groups, at.active);
    if (at.active && at.lane == 0) {
      A* out = io.partial + static_cast<int64_t>(blockIdx.x) * args.channels + at.c0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (v < at.valid) out[v] = sum_noise[v];
      }
    }
  }
}

template <typename T, bool CL, bool VEC>
Tiling backward_tiling(const RegionNorm& op, int64_t target) {
  using Shape = TileShape<T, CL, VEC, Load::kHeavy>;
  return make_tiling(op.batch, op.channels, op.pixels, Shape::kU, Shape::kV, CL, target);
}

// With noise the kernel also reduces, so it is cut into fewer blocks.
int64_t input_target(const RegionNorm& op) { return op.noise ? kReduceBlocks : kStreamBlocks; }

// Largest number of pixel blocks per image over the instances that the op's pointers may select.
int64_t most_pixel_blocks(const RegionNorm& op, int64_t target) {
  int64_t most = 0;
  dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    for (const bool vector : {false, true}) {
      dispatch_layout(op.channels_last, vector, [&](auto cl, auto vec) {
        const int64_t n = backward_tiling<T, decltype(cl)::value, decltype(vec)::value>(op, target).pixel_blocks;
        most = n > most ? n : most;
        return cudaSuccess;
      });
    }
    return cudaSuccess;
  });
  return most;
}

// Lanes x channel groups of the walk over the sorted pixels, and the parts they walk. About 2^16 threads.
template <typename T, bool VEC>
Tiling table_tiling(const RegionNorm& op, TableParts* part) {
  constexpr int V = TileShape<T, true, VEC, Load::kHeavy>::kV;
  Tiling t = make_tiling(1, op.channels, kMaxPixels, 1, V, true, 1);  // only the shape of the block is used
  const int64_t total = op.batch * op.pixels;
  const int64_t groups = ceil_div<int64_t>(op.channels, V);
  int64_t length = 8;
  while (length < 256 && length * 65536 < total * groups) length *= 2;
  part->length = static_cast<int>(length);
  part->total = static_cast<int>(total);
  part->parts = static_cast<int>(ceil_div<int64_t>(total, length));
  part->blocks = static_cast<int>(ceil_div<int64_t>(part->parts, t.lanes));
  return t;
}

}  // namespace

int64_t region_norm_backward_sums_workspace(const RegionNorm& op) {
  if (op.batch * op.channels * op.pixels == 0) return 0;
  const int64_t own = op.by_image() || op.shared > 1;  // sums of every image and channel come first
  return op.batch * (most_pixel_blocks(op, kReduceBlocks) + own) * 2 * op.channels * acc_bytes(op);
}

cudaError_t region_norm_backward_sums(const RegionNorm& op, const void* grad, void* sum_g, void* sum_gx,
                                      void* grad_table, void* workspace, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    return dispatch_params<T>(op, [&](auto param, auto mode) {
      using P = typename decltype(param)::type;
      constexpr Mode MODE = decltype(mode)::value;
      return dispatch_layout(op.channels_last, vectorizable<T>(op, grad), [&](auto cl, auto vec) {
        constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
        Args<T, P> args = make_args<T, P>(op);
        args.tiling = backward_tiling<T, CL, VEC>(op, kReduceBlocks);
        if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
        A* partial = static_cast<A*>(workspace);
        MIXSYN_RETURN_IF_ERROR(launch(region_norm_bwd_sums_kernel<T, P, MODE, CL, VEC>, args.tiling.grid(),
                                      args.tiling.threads, stream, args, static_cast<const T*>(grad), partial));
        const bool shares = MODE == Mode::kRow || op.shared > 1;
        const int64_t groups = op.per_instance || shares ? op.batch : 1;
        A* own_g = shares ? partial + op.batch * args.tiling.pixel_blocks * 2 * op.channels : static_cast<A*>(sum_g);
        A* own_gx = shares ? own_g + op.batch * op.channels : static_cast<A*>(sum_gx);
        MIXSYN_RETURN_IF_ERROR(sum_partials(partial, own_g, own_gx, groups,
                                            op.batch * args.tiling.pixel_blocks / groups, 2 * op.channels, op.channels,
                                            stream));
        if (!shares) return cudaSuccess;
        const P* rows = MODE == Mode::kRow ? args.table : nullptr;
        return launch(region_norm_bwd_share_kernel<A, P>,
                      dim3(static_cast<unsigned>(ceil_div<int64_t>(op.channels, kThreads))), kThreads, stream, own_g,
                      own_gx, rows, static_cast<A*>(sum_g), static_cast<A*>(sum_gx), static_cast<A*>(grad_table),
                      static_cast<int>(op.batch), args.channels, static_cast<int>(op.shared), args.image_row,
                      op.per_instance);
      });
    });
  });
}

int64_t region_norm_backward_table_workspace(const RegionNorm& op) {
  if (op.batch * op.channels * op.pixels == 0) return 0;
  int64_t most = 0;
  dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    TableParts narrow{}, wide{};
    table_tiling<T, false>(op, &narrow);
    table_tiling<T, true>(op, &wide);
    const int64_t a = 2 * int64_t{narrow.parts} + narrow.blocks, b = 2 * int64_t{wide.parts} + wide.blocks;
    most = a > b ? a : b;
    return cudaSuccess;
  });
  return most * 2 * op.channels * acc_bytes(op);
}

cudaError_t region_norm_backward_table(const RegionNorm& op, const void* grad, const int32_t* keys,
                                       const int64_t* order, void* grad_table, void* sum_g, void* sum_gx,
                                       void* workspace, cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  if (!op.channels_last || op.table == nullptr || op.index == nullptr) return cudaErrorInvalidValue;
  return dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    const auto run = [&](auto param, auto vec) {
      using P = typename decltype(param)::type;
      constexpr bool VEC = decltype(vec)::value;
      TableParts part{};
      Args<T, P> args = make_args<T, P>(op);
      args.tiling = table_tiling<T, VEC>(op, &part);
      if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
      const int64_t columns = 2 * op.channels;
      A* head = static_cast<A*>(workspace);
      A* tail = head + part.parts * columns;
      A* partial = sum_g ? tail + part.parts * columns : nullptr;
      const dim3 grid(static_cast<unsigned>(part.blocks), static_cast<unsigned>(args.tiling.channel_blocks), 1);
      MIXSYN_RETURN_IF_ERROR(launch(region_norm_bwd_table_kernel<T, P, VEC>, grid, args.tiling.threads, stream, args,
                                    part, static_cast<const T*>(grad), keys, order, static_cast<A*>(grad_table), head,
                                    tail, partial));
      const int64_t column_blocks = ceil_div<int64_t>(columns, kSumColumns);
      if (column_blocks > 65535) return cudaErrorInvalidConfiguration;
      const dim3 join(static_cast<unsigned>(ceil_div(part.parts, kJoinParts)), static_cast<unsigned>(column_blocks), 1);
      MIXSYN_RETURN_IF_ERROR(launch(region_norm_bwd_join_kernel<A>, join, kSumColumns * kSumRows, stream, part, keys,
                                    head, tail, static_cast<A*>(grad_table), static_cast<int>(columns)));
      if (!sum_g) return cudaSuccess;
      return sum_partials(partial, static_cast<A*>(sum_g), static_cast<A*>(sum_gx), 1, part.blocks, columns,
                          op.channels, stream);
    };
    const bool vector = vectorizable<T>(op, grad, grad_table, workspace);
    if constexpr (!std::is_same<T, A>::value) {
      if (op.acc_params) return vector ? run(Type<A>{}, Bool<true>{}) : run(Type<A>{}, Bool<false>{});
    }
    return vector ? run(Type<T>{}, Bool<true>{}) : run(Type<T>{}, Bool<false>{});
  });
}

int64_t region_norm_backward_input_workspace(const RegionNorm& op) {
  if (op.noise == nullptr || op.batch * op.channels * op.pixels == 0) return 0;
  return op.batch * most_pixel_blocks(op, input_target(op)) * op.channels * acc_bytes(op);
}

cudaError_t region_norm_backward_input(const RegionNorm& op, const RegionNormGradInput& out, void* workspace,
                                       cudaStream_t stream) {
  if (op.batch * op.channels * op.pixels == 0) return cudaSuccess;
  return dispatch_type(op, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    return dispatch_params<T>(op, [&](auto param, auto mode) {
      using P = typename decltype(param)::type;
      constexpr Mode MODE = decltype(mode)::value;
      const bool vector = vectorizable<T>(op, out.grad, out.grad_x, out.grad_scale, out.grad_shift);
      return dispatch_layout(op.channels_last, vector, [&](auto cl, auto vec) {
        constexpr bool CL = decltype(cl)::value, VEC = decltype(vec)::value;
        Args<T, P> args = make_args<T, P>(op);
        args.tiling = backward_tiling<T, CL, VEC>(op, input_target(op));
        if (!args.tiling.fits()) return cudaErrorInvalidConfiguration;
        GradInput<T> io{};
        io.grad = static_cast<const T*>(out.grad);
        io.sum_g = static_cast<const A*>(out.sum_g);
        io.sum_gx = static_cast<const A*>(out.sum_gx);
        io.inverse_count = static_cast<A>(1.0 / out.count);
        io.grad_x = static_cast<T*>(out.grad_x);
        io.grad_scale = static_cast<T*>(out.grad_scale);
        io.grad_shift = static_cast<T*>(out.grad_shift);
        io.partial = op.noise ? static_cast<A*>(workspace) : nullptr;
        MIXSYN_RETURN_IF_ERROR(launch(region_norm_bwd_input_kernel<T, P, MODE, CL, VEC>, args.tiling.grid(),
                                      args.tiling.threads, stream, args, io));
        if (!op.noise) return cudaSuccess;
        return sum_partials(io.partial, static_cast<A*>(out.grad_noise_scale), static_cast<A*>(nullptr), 1,
                            op.batch * args.tiling.pixel_blocks, op.channels, op.channels, stream);
      });
    });
  });
}

}  // namespace mixsyn_fast::kernels
