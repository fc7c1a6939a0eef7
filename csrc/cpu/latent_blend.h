// Arguments and entry points of the CPU kernels of latent_blend, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mixsyn_fast::cpu {

// One problem. A is the arithmetic's type: double for double, else float. S = sum of channels, D = depth.
template <typename T, typename A>
struct LatentBlend {
  int64_t layers = 0;                 // L
  int64_t size = 0;                   // S
  int64_t depth = 0;                  // D, a multiple of every width
  const int64_t* channels = nullptr;  // (L) widths
  const int64_t* offsets = nullptr;   // (L) first channel of a layer
  bool q_on_b = true;
  const T* a = nullptr;       // (B, S)
  const T* b = nullptr;       // (B, S)
  const T* logits = nullptr;  // (B, L, D)
  T* blended = nullptr;       // (B, S)
  T* q = nullptr;             // (B, S)
  // backward
  const T* grad = nullptr;    // (B, S), or null
  const T* grad_q = nullptr;  // (B, S), or null
  T* grad_a = nullptr;        // (B, S)
  T* grad_b = nullptr;        // (B, S)
  T* grad_logits = nullptr;   // (B, L, D)
};

template <typename T, typename A>
struct LatentBlendKernels {
  // an item is one layer of one image: (B * L)
  void (*forward)(const LatentBlend<T, A>&, int64_t begin, int64_t end);
  void (*backward)(const LatentBlend<T, A>&, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(LatentBlendKernels, latent_blend_kernels)

}  // namespace mixsyn_fast::cpu
