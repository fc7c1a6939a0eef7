// Part of the CUDA emulation, see cuda_runtime.h.
#pragma once
#include "cuda_runtime.h"

struct __half {
  unsigned short bits;
};
inline float __half2float(__half v) { return static_cast<float>(cuda_bits<_Float16>(v.bits)); }
inline __half __float2half_rn(float v) { return {cuda_bits<unsigned short>(static_cast<_Float16>(v))}; }
inline __half __ushort_as_half(unsigned short v) { return {v}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
