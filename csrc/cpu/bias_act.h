// Arguments and entry points of the CPU kernels of bias_act, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mixsyn_fast::cpu {

// One problem. A is the arithmetic's type: double for double, else float. A "part" is a chunk of the pixels of one image.
template <typename T, typename A>
struct BiasAct {
  int64_t batch = 0, channels = 0, pixels = 0;
  int64_t chunk = 1, chunks = 0;  // pixels per part, parts per image
  const A* scale = nullptr;       // (B, C), or (C) ones
  int64_t scale_stride = 0;       // C, or 0: one row for all images
  A high = 1, low = 1;            // factor of u (backward: of the gradient) where y >= 0, and elsewhere
  // forward
  const T* x = nullptr;     // (B, C, H*W), or (B, H*W, C) in channels_last; backward: null without the scale's gradient
  const A* bias = nullptr;  // (C)
  const T* noise = nullptr;  // (B, H*W), or (H*W), or null
  int64_t noise_stride = 0;  // H*W, or 0
  A strength = 0;
  T* result = nullptr;  // as x
  // backward
  const T* grad = nullptr;  // as x
  const T* y = nullptr;     // as x
  T* grad_x = nullptr;      // as x
  A* part_bias = nullptr;   // (parts, C): sums of h
  A* part_scale = nullptr;  // (parts, C): sums of h * x, with x
  A* sums = nullptr;        // (B, H*W): sums of h over channels, or null
};

template <typename T, typename A>
struct BiasActKernels {
  // channels_last: items are pixels (B * H*W)
  void (*forward_pixels)(const BiasAct<T, A>&, int64_t begin, int64_t end);
  // contiguous: items are (part, channel)
  void (*forward_planes)(const BiasAct<T, A>&, int64_t begin, int64_t end);
  // channels_last: items are parts
  void (*backward_pixels)(const BiasAct<T, A>&, int64_t begin, int64_t end);
  // contiguous: items are (part, channel); with `sums` those of one part, whose sums over these channels are written
  void (*backward_planes)(const BiasAct<T, A>&, int64_t begin, int64_t end);
};

MIXSYN_CPU_KERNELS(BiasActKernels, bias_act_kernels)

}  // namespace mixsyn_fast::cpu
