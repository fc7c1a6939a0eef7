// Launchers of the channel_attention_spread kernels: raw pointers and a stream, no torch header.
//
//   maps[:, p] = softmax of weight . condition[:, p] over the K maps;  out[:, p] = sum_k maps[k, p] values[k]
//
// All launches are asynchronous on `stream`, allocate nothing, never synchronise and can be captured in a CUDA
// graph. All sums have a fixed order: results are bitwise repeatable.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

// "acc" is double where dtype is kDouble, else float. Sizes are >= 1, except that channels may be 0.
struct ChannelAttentionSpread {
  int64_t batch = 0;                // B
  int64_t pixels = 0;               // P = H*W
  int64_t maps = 0;                 // K, at most 64
  int64_t channels = 0;             // N
  int64_t condition_channels = 0;   // M
  DType dtype = DType::kFloat;      // of condition, out and their gradients
  bool channels_last = false;       // memory of condition and out: (B, P, C), else (B, C, P)
  const void* values = nullptr;     // (B, K, N) acc
  const void* condition = nullptr;  // (B, M, H, W)
  const void* weight = nullptr;     // (K, M) acc
};

// out (B, N, H, W) in dtype, as condition.
cudaError_t channel_attention_spread_forward(const ChannelAttentionSpread& op, void* out, cudaStream_t stream);

struct ChannelAttentionSpreadGrads {
  const void* grad = nullptr;  // (B, N, H, W), as condition
  // null: not needed
  void* grad_values = nullptr;     // (B, K, N) acc
  void* grad_condition = nullptr;  // as condition
  void* grad_weight = nullptr;     // (K, M) acc
};
int64_t channel_attention_spread_backward_workspace(const ChannelAttentionSpread& op,
                                                    const ChannelAttentionSpreadGrads& io);  // bytes
cudaError_t channel_attention_spread_backward(const ChannelAttentionSpread& op, const ChannelAttentionSpreadGrads& io,
                                              void* workspace, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
