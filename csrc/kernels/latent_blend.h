// Launchers of latent_blend: two style codes blended channel by channel, each with the coefficient of its
// decisive logit; all layers in one kernel. Raw pointers and a stream, no torch header.
//
// Asynchronous on `stream`; no allocation, no synchronisation, no copy to the device (the layers travel with
// the kernel's arguments); can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace mixsyn_fast::kernels {

constexpr int kMaxStyleLayers = 64;
constexpr int64_t kMaxStyleChannels = int64_t{1} << 30;

struct StyleLayers {
  int count = 0;                        // L
  int begin[kMaxStyleLayers + 1] = {};  // first channel of every layer, then S
  int group[kMaxStyleLayers] = {};      // logits of a channel of the layer, D / width
};

struct LatentBlend {
  int64_t batch = 0;            // B
  int64_t channels = 0;         // S
  int64_t depth = 0;            // D
  DType dtype = DType::kFloat;  // of everything
  bool q_on_b = true;           // a + q (b - a), else b + q (a - b)
  StyleLayers layers;
  const void* a = nullptr;       // (B, S)
  const void* b = nullptr;       // (B, S)
  const void* logits = nullptr;  // (B, L, D)
};

// blended, q (B, S)
cudaError_t latent_blend_forward(const LatentBlend& op, void* blended, void* q, cudaStream_t stream);

// grad, grad_q (B, S) or null; grad_a, grad_b (B, S); grad_logits (B, L, D), written completely.
cudaError_t latent_blend_backward(const LatentBlend& op, const void* grad, const void* grad_q, void* grad_a,
                                  void* grad_b, void* grad_logits, cudaStream_t stream);

}  // namespace mixsyn_fast::kernels
