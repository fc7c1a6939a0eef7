// AVX-512 (F, BW, DQ, VL): vectors of 64 bytes, of which there are thirty-two, and masks in registers of their own.
#pragma once

#define MIXSYN_AVX512
#define MIXSYN_VECTOR_BYTES 64
#define MIXSYN_PRODUCT_ROWS 8
#define MIXSYN_PRODUCT_VECTORS 2
#define MIXSYN_PRODUCT_TALL 16

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#define MIXSYN_TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define MIXSYN_TARGET_END
#endif

#include "../portable.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE Vec<float> widen_bfloat16(const void* from) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  return bits_of<Vec<float>>(_mm512_slli_epi32(words, 16));
}
MIXSYN_INLINE void narrow_words(void* to, Words words) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bits_of<__m512i>(words)));
}

MIXSYN_INLINE Vec<float> widen_half(const void* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
MIXSYN_INLINE void narrow_half(void* to, Vec<float> v) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from);
}
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), from);
}
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), v);
}
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << n) - 1u), v);
}

// Masked, though all lanes are wanted: the other form leaves its target undefined, of which GCC warns.
MIXSYN_INLINE Vec<float> gather(const float* column, const int32_t* index) {
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xFFFF, _mm512_loadu_si512(index), column, 4);
}
MIXSYN_INLINE Vec<double> gather(const double* column, const int32_t* index) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xFF, at, column, 8);
}

// The second where one is a NaN; of a comparison and a choice the compiler does not make this.
MIXSYN_INLINE Vec<float> at_least(float bound, Vec<float> v) { return _mm512_max_ps(_mm512_set1_ps(bound), v); }
MIXSYN_INLINE Vec<float> at_most(float bound, Vec<float> v) { return _mm512_min_ps(_mm512_set1_ps(bound), v); }

inline constexpr bool kStreams = true;
MIXSYN_INLINE void stream(float* to, Vec<float> v) { _mm512_stream_ps(to, v); }
MIXSYN_INLINE void stream(double* to, Vec<double> v) { _mm512_stream_pd(to, v); }
MIXSYN_INLINE void stream_fence() { _mm_sfence(); }

MIXSYN_INLINE bool any_lane(Mask<float> mask) {
  return _mm512_test_epi32_mask(bits_of<__m512i>(mask), bits_of<__m512i>(mask)) != 0;
}
MIXSYN_INLINE bool any_lane(Mask<double> mask) {
  return _mm512_test_epi32_mask(bits_of<__m512i>(mask), bits_of<__m512i>(mask)) != 0;
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
