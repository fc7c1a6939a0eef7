// 64-bit Arm: vectors of 16 bytes, of which there are thirty-two, with fused products and float16 conversions.
#pragma once

#define MIXSYN_VECTOR_BYTES 16
#define MIXSYN_PRODUCT_ROWS 8
#define MIXSYN_PRODUCT_VECTORS 2
#define MIXSYN_PRODUCT_TALL 12
#define MIXSYN_TARGET_END

#include "../portable.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE Vec<float> widen_bfloat16(const void* from) {
  return bits_of<Vec<float>>(vshll_n_u16(vld1_u16(static_cast<const uint16_t*>(from)), 16));
}
MIXSYN_INLINE void narrow_words(void* to, Words words) {
  vst1_u16(static_cast<uint16_t*>(to), vmovn_u32(bits_of<uint32x4_t>(words)));
}

MIXSYN_INLINE Vec<float> widen_half(const void* from) {
  float16x4_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return bits_of<Vec<float>>(vcvt_f32_f16(bits));
}
MIXSYN_INLINE void narrow_half(void* to, Vec<float> v) {
  const float16x4_t bits = vcvt_f16_f32(bits_of<float32x4_t>(v));
  __builtin_memcpy(to, &bits, sizeof(bits));
}

MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n) { return portable_load_first(from, n); }
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t n) { return portable_load_first(from, n); }
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n) { portable_store_first(to, v, n); }
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t n) { portable_store_first(to, v, n); }

MIXSYN_INLINE Vec<float> gather(const float* column, const int32_t* index) { return portable_gather(column, index); }
MIXSYN_INLINE Vec<double> gather(const double* column, const int32_t* index) { return portable_gather(column, index); }

MIXSYN_INLINE Vec<float> at_least(float bound, Vec<float> v) { return portable_at_least(bound, v); }
MIXSYN_INLINE Vec<float> at_most(float bound, Vec<float> v) { return portable_at_most(bound, v); }

inline constexpr bool kStreams = false;  // there is none for one vector
MIXSYN_INLINE void stream(float* to, Vec<float> v) { __builtin_memcpy(to, &v, sizeof(v)); }
MIXSYN_INLINE void stream(double* to, Vec<double> v) { __builtin_memcpy(to, &v, sizeof(v)); }
MIXSYN_INLINE void stream_fence() {}

MIXSYN_INLINE bool any_lane(Mask<float> mask) { return vmaxvq_u32(bits_of<uint32x4_t>(mask)) != 0; }
MIXSYN_INLINE bool any_lane(Mask<double> mask) { return vmaxvq_u32(bits_of<uint32x4_t>(mask)) != 0; }

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
