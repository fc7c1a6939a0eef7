// Launchers of the region_norm kernels: raw pointers and a stream, no torch header.
//
//   y = act(xhat * gamma + beta),  xhat = (x + noise * noise_scale - mean) / sqrt(variance + eps)
//
// with (gamma, beta) a row of `table` chosen per pixel by `index`, or without index per image, or the maps (`scale`,
// `shift`), or absent; act is LeakyReLU(slope), the identity at slope 1, or SiLU. All launches are asynchronous on `stream`, allocate
// nothing, never synchronise and can be captured in a CUDA graph. All sums have a fixed order: results are
// bitwise repeatable.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

// Largest number of pixels of a batch (B*H*W): pixel numbers and their sums with a block's span stay below
// 2^31.
constexpr int64_t kMaxPixels = int64_t{1} << 30;

// "acc" is double where dtype is kDouble, else float.
struct RegionNorm {
  int64_t batch = 0;                  // B
  int64_t channels = 0;               // C
  int64_t pixels = 0;                 // H*W
  int64_t rows = 0;                   // R, rows of the table
  DType dtype = DType::kFloat;        // of x, noise, noise_scale, grad, outputs
  bool acc_params = false;            // table, scale, shift are acc instead of dtype
  bool channels_last = true;          // memory of every map: (B, H*W, C), else (B, C, H*W)
  const void* x = nullptr;            // (B, C, H, W)
  const void* mean = nullptr;         // (B or 1, C) acc; null: 0
  const void* variance = nullptr;     // (B or 1, C) acc, biased; null: xhat is x + noise itself
  bool per_instance = false;          // mean, variance and sums have B rows
  int64_t shared = 1;                 // adjacent channels that share statistics (group norm, per_instance), which
                                      // stand at each of them
  const int32_t* index = nullptr;     // (B, H, W) in [0, R), or null
  const void* table = nullptr;        // (R, 2C): gamma, beta; without index R is 1, or B: the row of each image
  const void* scale = nullptr;        // (B, C, H, W), or null
  const void* shift = nullptr;        // (B, C, H, W), given with scale
  const void* noise = nullptr;        // (B, H, W), or null
  const void* noise_scale = nullptr;  // (C,), given with noise
  double eps = 0;
  double slope = 1;
  bool silu = false;  // SiLU, in place of LeakyReLU

  bool by_image() const { return table != nullptr && index == nullptr; }  // the table has no index
};

// --- statistics: mean and M2 (or variance) of x + noise * noise_scale over each group ---
int64_t region_norm_stats_workspace(const RegionNorm& op);  // bytes
// mean (G, C) acc, m2 (G, C) acc: sum of squared deviations, divided by the count if `divide`;
// count (1,) acc: values per group, or null (as where channels share statistics).
cudaError_t region_norm_stats(const RegionNorm& op, void* mean, void* m2, void* count, bool divide, void* workspace,
                              cudaStream_t stream);

// --- forward: y (B, C, H, W) in x's dtype and layout; mean and variance in `op` ---
cudaError_t region_norm_forward(const RegionNorm& op, void* y, cudaStream_t stream);

// --- backward sums: sum_g = sum of ghat, sum_gx = sum of ghat * xhat over each group, (G, C) acc ---
// Both null where nobody wants them. grad_table (R, 2C) acc: of a table without index; required with it, else null.
int64_t region_norm_backward_sums_workspace(const RegionNorm& op);
cudaError_t region_norm_backward_sums(const RegionNorm& op, const void* grad, void* sum_g, void* sum_gx,
                                      void* grad_table, void* workspace, cudaStream_t stream);

// --- gradient of a table with index, channels_last only ---
// keys (B*H*W,) int32: `index` sorted; order (B*H*W,) int64: the pixel b*H*W + p of each key, ascending
// within a key.
// grad_table (R, 2C) acc, zeroed by the caller: rows of no pixel are not written.
// sum_g, sum_gx (1, C) acc or both null: the sums above over the whole batch, at no extra pass.
int64_t region_norm_backward_table_workspace(const RegionNorm& op);
cudaError_t region_norm_backward_table(const RegionNorm& op, const void* grad, const int32_t* keys,
                                       const int64_t* order, void* grad_table, void* sum_g, void* sum_gx,
                                       void* workspace, cudaStream_t stream);

// --- gradient of the input ---
struct RegionNormGradInput {
  const void* grad = nullptr;   // (B, C, H, W)
  const void* sum_g = nullptr;  // (G, C) acc, or null with sum_gx: statistics were given, not computed
  const void* sum_gx = nullptr;
  double count = 1;            // values per group
  void* grad_x = nullptr;      // (B, C, H, W)
  void* grad_scale = nullptr;  // (B, C, H, W) in x's dtype, or null with grad_shift
  void* grad_shift = nullptr;
  void* grad_noise_scale = nullptr;  // (C,) acc; required with noise
};
int64_t region_norm_backward_input_workspace(const RegionNorm& op);  // 0 without noise
cudaError_t region_norm_backward_input(const RegionNorm& op, const RegionNormGradInput& out, void* workspace,
                                       cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
