// Part of the CUDA emulation, see cuda_runtime.h.
#pragma once
#include <torch/headeronly/util/Half.h>

#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};
inline float __half2float(__half v) { return c10::Half(v.bits, c10::Half::from_bits()); }
inline __half __float2half_rn(float v) { return {c10::Half(v).x}; }
inline __half __ushort_as_half(unsigned short v) { return {v}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
