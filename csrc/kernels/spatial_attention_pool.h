// Launchers of the spatial_attention_pool kernels: raw pointers and a stream, no torch header.
//
//   logits[k, p] = weight_features[k] . features[:, p] + weight_condition[k] . condition[:, p]
//   maps[k, :] = softmax of logits[k, :] over the unmasked positions;  values[k] = sum_p maps[k, p] features[:, p]
//
// All launches are asynchronous on `stream`, allocate nothing, never synchronise and can be captured in a CUDA
// graph. All sums have a fixed order: results are bitwise repeatable.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

// "acc" is double where dtype is kDouble, else float. Sizes are >= 1, except that channels may be 0.
struct SpatialAttentionPool {
  int64_t batch = 0;                       // B
  int64_t pixels = 0;                      // P = H*W
  int64_t maps = 0;                        // K, at most 64
  int64_t feature_channels = 0;            // N
  int64_t condition_channels = 0;          // M
  DType dtype = DType::kFloat;             // of features, condition, maps and their gradients
  bool channels_last = false;              // memory of features and condition: (B, P, C), else (B, C, P)
  const void* features = nullptr;          // (B, N, H, W)
  const void* condition = nullptr;         // (B, M, H, W)
  const void* weight_features = nullptr;   // (K, N) acc
  const void* weight_condition = nullptr;  // (K, M) acc
  const unsigned char* mask = nullptr;     // (B, P), 0: the position takes no part in the softmax; or null
};

int64_t spatial_attention_pool_workspace(const SpatialAttentionPool& op);  // bytes
// values (B, K, N) acc, condition_mean (B, M) acc, lse (B, K) acc; maps (B, K, P) in dtype, which cost one more pass
// over features and condition, or null.
cudaError_t spatial_attention_pool_forward(const SpatialAttentionPool& op, void* values, void* condition_mean,
                                           void* lse, void* maps, void* workspace, cudaStream_t stream);

struct SpatialAttentionPoolGrads {
  const void* grad_values = nullptr;  // (B, K, N) acc
  const void* grad_mean = nullptr;    // (B, M) acc
  const void* grad_maps = nullptr;    // (B, K, P) in dtype, or null; costs one more pass
  const void* values = nullptr;       // (B, K, N) acc
  const void* lse = nullptr;          // (B, K) acc
  // null: not needed
  void* grad_features = nullptr;          // as features
  void* grad_condition = nullptr;         // as condition
  void* grad_weight_features = nullptr;   // (K, N) acc
  void* grad_weight_condition = nullptr;  // (K, M) acc
};
int64_t spatial_attention_pool_backward_workspace(const SpatialAttentionPool& op, const SpatialAttentionPoolGrads& io);
cudaError_t spatial_attention_pool_backward(const SpatialAttentionPool& op, const SpatialAttentionPoolGrads& io,
                                            void* workspace, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
