// Launchers of masked_roi_pool: maximum or mean of the features over every region of a label map, and its
// gradient; raw pointers and a stream, no torch header.
//
// One pass over the features serves all regions and channels; the work does not depend on the number of
// regions but for the output. All launches are asynchronous on `stream`, allocate nothing, never synchronise
// and can be captured in a CUDA graph. No result depends on the order in which threads run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

// Pixels of a batch (B*H*W), regions, and channels at most.
constexpr int64_t kMaxPoolPixels = int64_t{1} << 30;
constexpr int64_t kMaxPoolRegions = int64_t{1} << 22;
constexpr int64_t kMaxPoolChannels = int64_t{1} << 20;

// "acc" is double where dtype is kDouble, else float.
struct MaskedRoiPool {
  int64_t batch = 0;                // B
  int64_t channels = 0;             // C
  int64_t pixels = 0;               // H*W
  int64_t regions = 0;              // K
  DType dtype = DType::kFloat;      // of features, pooled and both gradients
  bool channels_last = true;        // memory of features and grad_features: (B, H*W, C), else (B, C, H*W)
  const void* features = nullptr;   // (B, C, H, W); not read by the gradient
  const int32_t* labels = nullptr;  // (B, H, W) in [-1, K); -1: no region
};

// Memory that a forward launcher needs besides its results, in bytes; the first part must hold zeros.
struct PoolWorkspace {
  int64_t zeroed = 0;
  int64_t scratch = 0;
};

PoolWorkspace masked_roi_pool_max_workspace(const MaskedRoiPool& op);
PoolWorkspace masked_roi_pool_mean_workspace(const MaskedRoiPool& op);

// pooled (B, K, C): 0 where the region is absent; position (B, K, C): y * W + x of the first maximum or of the
// first NaN, -1 where the region is absent.
cudaError_t masked_roi_pool_max(const MaskedRoiPool& op, void* pooled, int32_t* position, void* zeroed,
                                cudaStream_t stream);

// pooled (B, K, C): 0 where the region is absent; area (B, K) acc: pixels of the region. C may be 0.
cudaError_t masked_roi_pool_mean(const MaskedRoiPool& op, void* pooled, void* area, void* zeroed, void* scratch,
                                 cudaStream_t stream);

// grad_features (B, C, H, W) from grad (B, K, C): at `position` (B, K, C) alone, or, where position is null,
// grad / area (B, K) acc in every pixel of the region.
cudaError_t masked_roi_pool_backward(const MaskedRoiPool& op, const void* grad, const int32_t* position,
                                     const void* area, void* grad_features, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
