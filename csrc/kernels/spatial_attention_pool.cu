// The forward kernels of spatial_attention_pool, and the launchers. The backward kernel is in attention.cuh.
#include "spatial_attention_pool.h"

#include "attention.cuh"

namespace mixsyn_fast::kernels {
namespace {

template <typename T>
struct Forward {
  using A = acc_t<T>;
  Plan plan;
  const T* map[2];            // features, condition: (B, C, P) or (B, P, C)
  const A* weight[2];         // (K, C)
  const unsigned char* mask;  // (B, P) or null
  int groups, k_splits;       // further blocks per chunk: groups of channel tiles of the features, sixteens of maps
  A* partial_values;          // (blocks, K, N): sums of exp(logit - maximum) feature
  A* partial_maximum;         // (blocks, K)
  A* partial_sum;             // (blocks, K): sums of exp(logit - maximum)
  A* partial_mean;            // (blocks, M): sums of the condition
  // the pass that writes maps or sums over them: exp(logit - origin) * factor
  const A* origin;     // (B, K): the maximum of the logits, or their log-sum-exp
  const A* factor;     // (B, K): or null for 1
  T* maps;             // (B, K, P) or null
  const T* grad_maps;  // (B, K, P) or null
  A* partial_offset;   // (blocks, K): sums of maps * grad_maps
};

// Where a block stands. Blocks of one chunk are neighbours, so that all but the first find its positions in L2.
struct Place {
  int64_t chunk;  // among the chunks of all images
  int group, k0, image, begin, end;
  __device__ __forceinline__ Place(const Plan& plan, int groups, int k_splits) {
    int64_t block = blockIdx.x;
    group = static_cast<int>(block % groups);
    block /= groups;
    k0 = static_cast<int>(block % k_splits) * kMaps;
    chunk = block / k_splits;
    image = static_cast<int>(chunk / plan.chunks);
    begin = static_cast<int>(chunk % plan.chunks) * plan.chunk;
    end = plan.pixels - begin < plan.chunk ? plan.pixels : begin + plan.chunk;
  }
};

template <typename T>
__device__ __forceinline__ bool takes_part(const Forward<T>& args, int image, int p) {
  return p < args.plan.pixels &&
         (args.mask == nullptr || __ldg(args.mask + static_cast<int64_t>(image) * args.plan.pixels + p) != 0);
}

// TPW: channel tiles per warp that are summed. Every thread knows the running maxima of its two rows of the fragments;
// they are the same in all warps.
template <typename T, int TPW>
__global__ void __launch_bounds__(kAttentionThreads, 4) spatial_attention_pool_fwd_kernel(Forward<T> args) {
  using A = acc_t<T>;
  MIXSYN_DYNAMIC_SHARED(raw);
  A* shared = reinterpret_cast<A*>(raw);
  const Plan& plan = args.plan;
  const Lane lane;
  const Place at(plan, args.groups, args.k_splits);
  const int group_tile = at.group * TPW * kWarps;
  const bool adds_mean = at.group == 0 && at.k0 == 0 && plan.channels[1] > 0;
  A* coef = shared + plan.coef;         // (16, kCoefStride)
  A* exchange = shared + plan.extra;    // (kWarps, 16): maxima, at last sums
  A* mean = exchange + kWarps * kMaps;  // (M,): a channel has one thread
  const int id = static_cast<int>(threadIdx.x);
  const auto stage_panel_rows = [&](const Panel& panel) {
    stage_rows(plan, panel, of_side(args.weight, panel.side), at.k0, shared + panel.first);
  };
  if (plan.resident) {
    for (int i = 0; i < plan.panels[0] + plan.panels[1]; ++i) stage_panel_rows(panel_at(plan, i));
  }
  if (adds_mean) {
    // a thread owns the channels c with c % kAttentionThreads == id, whatever panel they come in
    for (int c = id; c < plan.channels[1]; c += kAttentionThreads) mean[c] = A(0);
  }
  const auto add_mean = [&](const Panel& panel, const A* tile) {
    if (!adds_mean || panel.side == 0) return;
    const int stride = panel.stride;
    const int first = (id + kAttentionThreads - panel.c0 % kAttentionThreads) % kAttentionThreads;
    for (int c = first; c < panel.width; c += kAttentionThreads) {
      A sum = A(0);
#pragma unroll 8
      for (int p = 0; p < kTile; ++p) sum += tile[p * stride + c];
      mean[panel.c0 + c] += sum;
    }
  };
  A most[2] = {minus_infinity<A>(), minus_infinity<A>()}, total[2] = {A(0), A(0)};
  A sums[TPW][4] = {};
  for (int p0 = at.begin; p0 < at.end; p0 += kTile) {
    A logits[1][4] = {};
    project_tiles<true, false, T>(logits, logits, plan, args.map, at.image, p0, 0, shared, lane, stage_panel_rows,
                                  add_mean);
    bool part[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) part[i] = takes_part(args, at.image, p0 + lane.warp * 8 + 2 * lane.member + i);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const A left = part[0] ? logits[0][2 * half] : minus_infinity<A>();
      const A right = part[1] ? logits[0][2 * half + 1] : minus_infinity<A>();
      const A highest = max_of_row(fmax(left, right));
      if (lane.member == 0) exchange[lane.warp * kMaps + lane.group + 8 * half] = highest;
    }
    __syncthreads();
    A rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      A highest = most[half];
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        highest = fmax(highest, exchange[warp * kMaps + lane.group + 8 * half]);
      }
      const A origin = highest == minus_infinity<A>() ? A(0) : highest;  // nothing took part so far
      rescale[half] = exp(most[half] - origin);
      most[half] = highest;
      A sum = A(0);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        logits[0][2 * half + i] = part[i] ? exp(logits[0][2 * half + i] - origin) : A(0);
        sum += logits[0][2 * half + i];
      }
      total[half] = total[half] * rescale[half] + sum;
    }
    store_coef(coef, logits, 1, lane);
#pragma unroll
    for (int j = 0; j < TPW; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[j][i] *= rescale[i / 2];
    }
    if (plan.resident) __syncthreads();
    for (int i = 0; i < plan.panels[0]; ++i) {
      const Panel panel = panel_at(plan, i);
      if (panel.first_tile >= group_tile + TPW * kWarps || panel.first_tile + panel.tiles <= group_tile) continue;
      A* tile = shared + panel.tile;
      if (!plan.resident) {
        __syncthreads();
        stage_tile(plan, panel, args.map[0], at.image, p0, tile);
        __syncthreads();
      }
      accumulate<TPW, kExact<T>>(sums, coef, tile, panel, panel.stride, group_tile, lane);
    }
  }
  // a row's sum is spread over the lanes of its row and over the warps
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const A sum = sum_of_row(total[half]);
    if (lane.member == 0) exchange[lane.warp * kMaps + lane.group + 8 * half] = sum;
  }
  __syncthreads();
  if (at.group == 0 && lane.warp == 0 && lane.member == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.group + 8 * half;
      A sum = A(0);
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += exchange[warp * kMaps + row];
      if (at.k0 + row < plan.maps) {
        args.partial_maximum[at.chunk * plan.maps + at.k0 + row] = most[half];
        args.partial_sum[at.chunk * plan.maps + at.k0 + row] = sum;
      }
    }
  }
  A* values = args.partial_values + at.chunk * plan.maps * plan.channels[0];
  store_sums(sums, values, static_cast<A*>(nullptr), plan, at.k0, group_tile, lane);
  if (adds_mean) {
    for (int c = id; c < plan.channels[1]; c += kAttentionThreads) {
      args.partial_mean[at.chunk * plan.channels[1] + c] = mean[c];
    }
  }
}

// The partial results of the blocks of an image, in a fixed order. A block makes kSumColumns columns of one row of
// values; the last blocks make the means.
template <typename A>
__global__ void __launch_bounds__(kSumColumns* kSumRows, 1)
    spatial_attention_pool_merge_kernel(const A* __restrict__ partial_values, const A* __restrict__ partial_maximum,
                                        const A* __restrict__ partial_sum, const A* __restrict__ partial_mean,
                                        A* __restrict__ values, A* __restrict__ lse, A* __restrict__ mean,
                                        A* __restrict__ maximum, A* __restrict__ factor, int64_t batch, int chunks,
                                        int maps, int channels, int mean_channels, int column_blocks,
                                        A inverse_pixels) {
  __shared__ A scratch[kSumColumns * kSumRows];
  const int x = static_cast<int>(threadIdx.x) % kSumColumns;
  const int y = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t value_blocks = batch * maps * column_blocks;
  if (static_cast<int64_t>(blockIdx.x) >= value_blocks) {  // the same for the whole block
    const int mean_blocks = (mean_channels + kSumColumns - 1) / kSumColumns;
    const int64_t block = blockIdx.x - value_blocks;
    const int64_t image = block / mean_blocks;
    const int c = static_cast<int>(block % mean_blocks) * kSumColumns + x;
    A sum = A(0);
    if (c < mean_channels) {
      for (int i = y; i < chunks; i += kSumRows) sum += __ldg(partial_mean + (image * chunks + i) * mean_channels + c);
    }
    sum = sum_rows(sum, scratch, x, y);
    if (y == 0 && c < mean_channels) mean[image * mean_channels + c] = sum * inverse_pixels;
    return;
  }
  const int64_t row = blockIdx.x / column_blocks;  // image * maps + map
  const int64_t image = row / maps;
  const int k = static_cast<int>(row % maps);
  const int c = static_cast<int>(blockIdx.x % column_blocks) * kSumColumns + x;
  A most = minus_infinity<A>();
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += kSumColumns * kSumRows) {
    most = fmax(most, __ldg(partial_maximum + (image * chunks + i) * maps + k));
  }
  scratch[threadIdx.x] = most;
  for (int half = kSumColumns * kSumRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      scratch[threadIdx.x] = fmax(scratch[threadIdx.x], scratch[threadIdx.x + half]);
    }
  }
  __syncthreads();
  most = scratch[0];
  const A origin = most == minus_infinity<A>() ? A(0) : most;
  A total = A(0), sum = A(0);
  for (int i = y; i < chunks; i += kSumRows) {
    const int64_t at = (image * chunks + i) * maps + k;
    const A weight = exp(__ldg(partial_maximum + at) - origin);
    total += weight * __ldg(partial_sum + at);
    if (c < channels) sum += weight * __ldg(partial_values + at * channels + c);
  }
  total = sum_rows(total, scratch, x, y);
  sum = sum_rows(sum, scratch, x, y);
  // all masked: nothing was added up
  if (y == 0 && c < channels) values[row * channels + c] = total == A(0) ? A(0) : sum / total;
  if (threadIdx.x == 0 && blockIdx.x % column_blocks == 0) {
    lse[row] = most + log(total);
    maximum[row] = origin;
    factor[row] = total == A(0) ? A(0) : A(1) / total;
  }
}

// maps (B, K, P), or partial sums over the positions of maps * grad_maps.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 4) spatial_attention_pool_maps_kernel(Forward<T> args) {
  using A = acc_t<T>;
  MIXSYN_DYNAMIC_SHARED(raw);
  A* shared = reinterpret_cast<A*>(raw);
  const Plan& plan = args.plan;
  const Lane lane;
  const Place at(plan, args.groups, args.k_splits);
  A* exchange = shared + plan.extra;  // (kWarps, 16)
  const auto stage_panel_rows = [&](const Panel& panel) {
    stage_rows(plan, panel, of_side(args.weight, panel.side), at.k0, shared + panel.first);
  };
  if (plan.resident) {
    for (int i = 0; i < plan.panels[0] + plan.panels[1]; ++i) stage_panel_rows(panel_at(plan, i));
  }
  A total[2] = {A(0), A(0)};
  for (int p0 = at.begin; p0 < at.end; p0 += kTile) {
    A logits[1][4] = {};
    project_tiles<true, false, T>(logits, logits, plan, args.map, at.image, p0, 0, shared, lane, stage_panel_rows,
                                  [](const Panel&, const A*) {});
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = at.k0 + lane.group + 8 * (i / 2), p = p0 + lane.warp * 8 + 2 * lane.member + i % 2;
      if (k >= plan.maps || p >= plan.pixels) continue;
      const int64_t row = static_cast<int64_t>(at.image) * plan.maps + k;
      A map = takes_part(args, at.image, p) ? exp(logits[0][i] - __ldg(args.origin + row)) : A(0);
      if (args.factor != nullptr) map *= __ldg(args.factor + row);
      if (args.maps != nullptr) args.maps[row * plan.pixels + p] = from_acc<T>(map);
      if (args.grad_maps != nullptr) total[i / 2] += map * to_acc(__ldg(args.grad_maps + row * plan.pixels + p));
    }
  }
  if (args.partial_offset == nullptr) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const A sum = sum_of_row(total[half]);
    if (lane.member == 0) exchange[lane.warp * kMaps + lane.group + 8 * half] = sum;
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  if (row < kMaps && at.k0 + row < plan.maps) {
    A sum = A(0);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += exchange[warp * kMaps + row];
    args.partial_offset[at.chunk * plan.maps + at.k0 + row] = sum;
  }
}

template <typename T>
Forward<T> make_forward(const SpatialAttentionPool& op) {
  using A = acc_t<T>;
  Forward<T> f{};
  f.k_splits = static_cast<int>(ceil_div<int64_t>(op.maps, kMaps));
  f.groups = 1;
  const RowSets rows{{true, true}, {false, false}};
  f.plan = make_plan<A>(op.batch, op.feature_channels, op.condition_channels, op.pixels, op.maps, 1, rows,
                        kWarps * kMaps + op.condition_channels);
  f.plan.channels_last = op.channels_last;
  f.plan.vector = four_at_a_time(op.channels_last, op.feature_channels, op.condition_channels, op.pixels, op.features,
                                 op.condition);
  f.map[0] = static_cast<const T*>(op.features), f.map[1] = static_cast<const T*>(op.condition);
  f.weight[0] = static_cast<const A*>(op.weight_features), f.weight[1] = static_cast<const A*>(op.weight_condition);
  f.mask = op.mask;
  return f;
}

template <typename T, typename Kernel>
cudaError_t launch_forward(Kernel kernel, const Forward<T>& f, cudaStream_t stream) {
  const int64_t blocks = f.plan.blocks * f.groups * f.k_splits;
  if (blocks > 0x7fffffffLL) return cudaErrorInvalidConfiguration;
  return launch_shared(kernel, dim3(static_cast<unsigned>(blocks)), kAttentionThreads, f.plan.bytes, stream, f);
}

int64_t acc_bytes(const SpatialAttentionPool& op) { return op.dtype == DType::kDouble ? 8 : 4; }

// channel tiles per warp: 128 channels with few (64 of type double), 256 in a group with many
template <typename A>
constexpr int kFewTiles = sizeof(A) == 8 ? 2 : 4;

}  // namespace

int64_t spatial_attention_pool_workspace(const SpatialAttentionPool& op) {
  const int64_t partial = op.maps * (op.feature_channels + 2) + op.condition_channels;
  return (blocks_of(op.batch, op.pixels) * partial + 2 * op.batch * op.maps) * acc_bytes(op);
}

cudaError_t spatial_attention_pool_forward(const SpatialAttentionPool& op, void* values, void* condition_mean,
                                           void* lse, void* maps, void* workspace, cudaStream_t stream) {
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    Forward<T> f = make_forward<T>(op);
    const int64_t blocks = f.plan.blocks;
    f.partial_values = static_cast<A*>(workspace);
    f.partial_maximum = f.partial_values + blocks * op.maps * op.feature_channels;
    f.partial_sum = f.partial_maximum + blocks * op.maps;
    f.partial_mean = f.partial_sum + blocks * op.maps;
    A* maximum = f.partial_mean + blocks * op.condition_channels;
    A* factor = maximum + op.batch * op.maps;
    const int64_t tiles = ceil_div<int64_t>(op.feature_channels, 8);
    constexpr int kFew = kFewTiles<A>, kMany = 2 * kFew;
    if (tiles <= kFew * kWarps) {
      MIXSYN_RETURN_IF_ERROR(launch_forward(spatial_attention_pool_fwd_kernel<T, kFew>, f, stream));
    } else {
      f.groups = static_cast<int>(ceil_div<int64_t>(tiles, kMany * kWarps));
      MIXSYN_RETURN_IF_ERROR(launch_forward(spatial_attention_pool_fwd_kernel<T, kMany>, f, stream));
    }
    const int64_t columns = ceil_div<int64_t>(op.feature_channels, kSumColumns);
    const int64_t column_blocks = columns > 0 ? columns : 1;
    const int64_t merge = op.batch * (op.maps * column_blocks + ceil_div<int64_t>(op.condition_channels, kSumColumns));
    if (merge > 0x7fffffffLL) return cudaErrorInvalidConfiguration;
    MIXSYN_RETURN_IF_ERROR(launch(
        spatial_attention_pool_merge_kernel<A>, dim3(static_cast<unsigned>(merge)), kSumColumns * kSumRows, stream,
        f.partial_values, f.partial_maximum, f.partial_sum, f.partial_mean, static_cast<A*>(values),
        static_cast<A*>(lse), static_cast<A*>(condition_mean), maximum, factor, op.batch, f.plan.chunks,
        static_cast<int>(op.maps), static_cast<int>(op.feature_channels), static_cast<int>(op.condition_channels),
        static_cast<int>(column_blocks), static_cast<A>(1.0 / static_cast<double>(op.pixels))));
    if (maps == nullptr) return cudaSuccess;
    // not from the log-sum-exp: where logits are large, its rounding would show in the maps
    f.groups = 1;
    f.origin = maximum, f.factor = factor;
    f.maps = static_cast<T*>(maps);
    return launch_forward(spatial_attention_pool_maps_kernel<T>, f, stream);
  });
}

int64_t spatial_attention_pool_backward_workspace(const SpatialAttentionPool& op, const SpatialAttentionPoolGrads& io) {
  const int64_t blocks = blocks_of(op.batch, op.pixels);
  int64_t elements = 0;
  if (io.grad_weight_features) elements += blocks * op.maps * op.feature_channels;
  if (io.grad_weight_condition) elements += blocks * op.maps * op.condition_channels;
  if (io.grad_maps) elements += (blocks + op.batch) * op.maps;
  return elements * acc_bytes(op);
}

cudaError_t spatial_attention_pool_backward(const SpatialAttentionPool& op, const SpatialAttentionPoolGrads& io,
                                            void* workspace, cudaStream_t stream) {
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    const int64_t blocks = blocks_of(op.batch, op.pixels);
    const int64_t n = op.feature_channels, m = op.condition_channels;
    A* free = static_cast<A*>(workspace);
    Backward<T> args{};
    args.map[0] = static_cast<const T*>(op.features), args.map[1] = static_cast<const T*>(op.condition);
    args.first[0] = static_cast<const A*>(op.weight_features),
    args.first[1] = static_cast<const A*>(op.weight_condition);
    args.second = static_cast<const A*>(io.grad_values);
    args.grad[0] = static_cast<T*>(io.grad_features), args.grad[1] = static_cast<T*>(io.grad_condition);
    if (io.grad_weight_features) args.partial[0] = free, free += blocks * op.maps * n;
    if (io.grad_weight_condition) args.partial[1] = free, free += blocks * op.maps * m;
    args.mask = op.mask;
    args.values = static_cast<const A*>(io.values);
    args.lse = static_cast<const A*>(io.lse);
    args.grad_maps = static_cast<const T*>(io.grad_maps);
    args.grad_mean = static_cast<const A*>(io.grad_mean);
    args.inverse_pixels = static_cast<A>(1.0 / static_cast<double>(op.pixels));
    if (io.grad_maps) {
      Forward<T> f = make_forward<T>(op);
      f.origin = args.lse;
      f.grad_maps = args.grad_maps;
      f.partial_offset = free;
      A* offset = free + blocks * op.maps;
      MIXSYN_RETURN_IF_ERROR(launch_forward(spatial_attention_pool_maps_kernel<T>, f, stream));
      MIXSYN_RETURN_IF_ERROR(sum_partials(f.partial_offset, offset, static_cast<A*>(nullptr), op.batch,
                                          blocks / op.batch, op.maps, op.maps, stream));
      args.maps_offset = offset;
    }
    const bool vector = four_at_a_time(op.channels_last, n, m, op.pixels, op.features, op.condition, io.grad_features,
                                       io.grad_condition);
    MIXSYN_RETURN_IF_ERROR(
        (run_backward<T, false>(args, sizes_of(n, m, op.pixels, op.maps, op.channels_last, vector), op.batch, stream)));
    for (int side = 0; side < 2; ++side) {
      if (args.partial[side] == nullptr) continue;
      A* sum = static_cast<A*>(side == 0 ? io.grad_weight_features : io.grad_weight_condition);
      const int64_t columns = op.maps * (side == 0 ? n : m);
      MIXSYN_RETURN_IF_ERROR(
          sum_partials(args.partial[side], sum, static_cast<A*>(nullptr), 1, blocks, columns, columns, stream));
    }
    return cudaSuccess;
  });
}

}  // namespace mixsyn_fast::kernels
