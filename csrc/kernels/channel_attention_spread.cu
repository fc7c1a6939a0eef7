// The forward kernel of channel_attention_spread, and the launchers. The backward kernel is in attention.cuh.
#include "channel_attention_spread.h"

#include "attention.cuh"

namespace mixsyn_fast::kernels {
namespace {

template <typename T>
struct Forward {
  using A = acc_t<T>;
  Plan plan;           // side 0: the result, side 1: the condition
  const T* condition;  // (B, M, P) or (B, P, M)
  const A* weight;     // (K, M)
  const A* values;     // (B, K, N)
  T* out;              // (B, N, P) or (B, P, N)
};

// For K = 16, N = 128, M = 64 a position costs 3072 multiply-adds, for 384 (half types) or 768 bytes read and written.
template <typename T, int KT>
__global__ void __launch_bounds__(kAttentionThreads, 4) channel_attention_spread_fwd_kernel(Forward<T> args) {
  using A = acc_t<T>;
  MIXSYN_DYNAMIC_SHARED(raw);
  A* shared = reinterpret_cast<A*>(raw);
  const Plan& plan = args.plan;
  const Lane lane;
  const int image = static_cast<int>(blockIdx.x) / plan.chunks;
  const int begin = static_cast<int>(blockIdx.x) % plan.chunks * plan.chunk;
  const int end = plan.pixels - begin < plan.chunk ? plan.pixels : begin + plan.chunk;
  A* coef = shared + plan.coef;
  const A* values = args.values + static_cast<int64_t>(image) * plan.maps * plan.channels[0];
  const auto stage_panel_rows = [&](const Panel& panel) {
    if (panel.side == 0) {
      stage_rows(plan, panel, values, 0, shared + panel.second);
    } else {
      stage_rows(plan, panel, args.weight, 0, shared + panel.first);
    }
  };
  if (plan.resident) {
    for (int i = 0; i < plan.panels[0] + plan.panels[1]; ++i) stage_panel_rows(panel_at(plan, i));
  }
  const T* const map[2] = {nullptr, args.condition};
  for (int p0 = begin; p0 < end; p0 += kTile) {
    A maps[KT][4] = {};
    project_tiles<false, false, T>(maps, maps, plan, map, image, p0, 0, shared, lane, stage_panel_rows,
                                   [](const Panel&, const A*) {});
    softmax_of_columns(maps, plan.maps, lane);
    store_coef(coef, maps, plan.k_tiles, lane);
    for (int i = 0; i < plan.panels[0]; ++i) {
      const Panel panel = panel_at(plan, i);
      A* tile = shared + panel.tile;
      __syncthreads();  // the coefficients are there, and the tile before has been written out
      if (!plan.resident) {
        stage_panel_rows(panel);
        __syncthreads();
      }
      blend(tile, coef, shared + panel.second, static_cast<const A*>(nullptr), static_cast<const A*>(nullptr),
            static_cast<const A*>(nullptr), A(0), plan, panel, lane);
      __syncthreads();
      unstage_tile(plan, panel, args.out, image, p0, tile);
    }
  }
}

template <typename T, int KT>
cudaError_t launch_forward(const ChannelAttentionSpread& op, void* out, cudaStream_t stream) {
  using A = acc_t<T>;
  Forward<T> f{};
  const RowSets rows{{false, true}, {true, false}};
  f.plan = make_plan<A>(op.batch, op.channels, op.condition_channels, op.pixels, op.maps,
                        static_cast<int>(ceil_div<int64_t>(op.maps, kMaps)), rows, 0);
  f.plan.channels_last = op.channels_last;
  f.plan.vector = four_at_a_time(op.channels_last, op.channels, op.condition_channels, op.pixels, op.condition, out);
  f.condition = static_cast<const T*>(op.condition);
  f.weight = static_cast<const A*>(op.weight);
  f.values = static_cast<const A*>(op.values);
  f.out = static_cast<T*>(out);
  if (f.plan.k_tiles > KT) return cudaErrorInvalidValue;
  if (f.plan.blocks > 0x7fffffffLL) return cudaErrorInvalidConfiguration;
  return launch_shared(channel_attention_spread_fwd_kernel<T, KT>, dim3(static_cast<unsigned>(f.plan.blocks)),
                       kAttentionThreads, f.plan.bytes, stream, f);
}

int64_t acc_bytes(const ChannelAttentionSpread& op) { return op.dtype == DType::kDouble ? 8 : 4; }

}  // namespace

cudaError_t channel_attention_spread_forward(const ChannelAttentionSpread& op, void* out, cudaStream_t stream) {
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return op.maps <= kMaps ? launch_forward<T, 1>(op, out, stream)
                            : launch_forward<T, kMostMaps / kMaps>(op, out, stream);
  });
}

int64_t channel_attention_spread_backward_workspace(const ChannelAttentionSpread& op,
                                                    const ChannelAttentionSpreadGrads& io) {
  int64_t columns = 0;
  if (io.grad_values) columns += op.maps * op.channels;
  if (io.grad_weight) columns += op.maps * op.condition_channels;
  return blocks_of(op.batch, op.pixels) * columns * acc_bytes(op);
}

cudaError_t channel_attention_spread_backward(const ChannelAttentionSpread& op, const ChannelAttentionSpreadGrads& io,
                                              void* workspace, cudaStream_t stream) {
  return dispatch_type(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    const int64_t blocks = blocks_of(op.batch, op.pixels);
    const int64_t n = op.channels, m = op.condition_channels;
    A* free = static_cast<A*>(workspace);
    Backward<T> args{};
    args.map[0] = static_cast<const T*>(io.grad), args.map[1] = static_cast<const T*>(op.condition);
    args.first[1] = static_cast<const A*>(op.weight);
    args.second = static_cast<const A*>(op.values);
    args.grad[1] = static_cast<T*>(io.grad_condition);
    if (io.grad_values) args.partial[0] = free, free += blocks * op.maps * n;
    if (io.grad_weight) args.partial[1] = free;
    const bool vector = four_at_a_time(op.channels_last, n, m, op.pixels, io.grad, op.condition, io.grad_condition);
    MIXSYN_RETURN_IF_ERROR(
        (run_backward<T, true>(args, sizes_of(n, m, op.pixels, op.maps, op.channels_last, vector), op.batch, stream)));
    if (io.grad_values) {
      MIXSYN_RETURN_IF_ERROR(sum_partials(args.partial[0], static_cast<A*>(io.grad_values), static_cast<A*>(nullptr),
                                          op.batch, blocks / op.batch, op.maps * n, op.maps * n, stream));
    }
    if (io.grad_weight) {
      MIXSYN_RETURN_IF_ERROR(sum_partials(args.partial[1], static_cast<A*>(io.grad_weight), static_cast<A*>(nullptr), 1,
                                          blocks, op.maps * m, op.maps * m, stream));
    }
    return cudaSuccess;
  });
}

}  // namespace mixsyn_fast::kernels
