// Launchers of the bias_act kernels: raw pointers and a stream, no torch header.
//
//   y = factor(u) * u,  u = x * scale + noise * strength + bias,  factor = high where u >= 0, else low
//
// All launches are asynchronous on `stream`, allocate nothing, never synchronise and can be captured in a CUDA
// graph. All sums have a fixed order: results are bitwise repeatable.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

// Largest number of pixels of a batch (B*H*W) and of channels: their sums with a block's span stay below 2^31.
constexpr int64_t kMaxBiasActSize = int64_t{1} << 30;

// "acc" is double where dtype is kDouble, else float.
struct BiasAct {
  int64_t batch = 0;               // B
  int64_t channels = 0;            // C
  int64_t pixels = 0;              // H*W
  DType dtype = DType::kFloat;     // of x, noise, grad, y
  bool channels_last = true;       // memory of every map: (B, H*W, C), else (B, C, H*W)
  const void* x = nullptr;         // (B, C, H, W); backward: null where the scale's gradient is not wanted
  const void* bias = nullptr;      // (C,) acc, or null
  const void* scale = nullptr;     // (B, C) acc, or null
  const void* noise = nullptr;     // (B or 1, H, W), or null
  bool noise_per_image = false;    // noise has B rows
  const void* strength = nullptr;  // (1,) acc, given with noise
  double high = 1, low = 1;        // backward: factors of the gradient where y >= 0, and elsewhere
};

// y (B, C, H, W) in x's dtype and layout.
cudaError_t bias_act_forward(const BiasAct& op, void* y, cudaStream_t stream);

// With h = factor(y) * grad.
struct BiasActGrad {
  const void* grad = nullptr;  // (B, C, H, W)
  const void* y = nullptr;     // (B, C, H, W)
  void* grad_x = nullptr;      // (B, C, H, W): h * scale
  void* grad_bias = nullptr;   // (C,) acc: sum of h over images and pixels
  void* grad_scale = nullptr;  // (B, C) acc: sum of h * x over pixels; given with x
  void* sums = nullptr;        // (B, H, W) acc: sum of h over channels, or null
};
int64_t bias_act_backward_workspace(const BiasAct& op, bool sums);  // bytes
cudaError_t bias_act_backward(const BiasAct& op, const BiasActGrad& out, void* workspace, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
