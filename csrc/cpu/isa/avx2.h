// AVX2 with FMA and F16C: vectors of 32 bytes, of which there are sixteen.
#pragma once

#define MIXSYN_AVX2
#define MIXSYN_VECTOR_BYTES 32
#define MIXSYN_PRODUCT_ROWS 6
#define MIXSYN_PRODUCT_VECTORS 2
#define MIXSYN_PRODUCT_TALL 12

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define MIXSYN_TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,fma,f16c")
#define MIXSYN_TARGET_END
#endif

#include "../portable.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE Vec<float> widen_bfloat16(const void* from) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  return bits_of<Vec<float>>(_mm256_slli_epi32(words, 16));
}
MIXSYN_INLINE void narrow_words(void* to, Words words) {
  // both halves of every 16 bytes to halves of 8 bytes, which are then brought together
  const __m256i low = _mm256_and_si256(bits_of<__m256i>(words), _mm256_set1_epi32(0xFFFF));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

MIXSYN_INLINE Vec<float> widen_half(const void* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
}
MIXSYN_INLINE void narrow_half(void* to, Vec<float> v) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// Sixteen ones and sixteen zeros: from 16 - n on, a mask of the first n of at most sixteen.
inline constexpr int32_t kFirst[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
MIXSYN_INLINE __m256i first_words(int64_t n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirst + 16 - n));
}
MIXSYN_INLINE __m256i first_longs(int64_t n) { return first_words(2 * n); }

MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n) { return _mm256_maskload_ps(from, first_words(n)); }
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t n) { return _mm256_maskload_pd(from, first_longs(n)); }
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n) { _mm256_maskstore_ps(to, first_words(n), v); }
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t n) { _mm256_maskstore_pd(to, first_longs(n), v); }

// Masked, though all lanes are wanted: the other form leaves its target undefined, of which GCC warns.
MIXSYN_INLINE Vec<float> gather(const float* column, const int32_t* index) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), column, at, _mm256_castsi256_ps(_mm256_set1_epi32(-1)), 4);
}
MIXSYN_INLINE Vec<double> gather(const double* column, const int32_t* index) {
  const __m128i at = _mm_loadu_si128(reinterpret_cast<const __m128i*>(index));
  return _mm256_mask_i32gather_pd(_mm256_setzero_pd(), column, at, _mm256_castsi256_pd(_mm256_set1_epi64x(-1)), 8);
}

// The second where one is a NaN.
MIXSYN_INLINE Vec<float> at_least(float bound, Vec<float> v) { return _mm256_max_ps(_mm256_set1_ps(bound), v); }
MIXSYN_INLINE Vec<float> at_most(float bound, Vec<float> v) { return _mm256_min_ps(_mm256_set1_ps(bound), v); }

inline constexpr bool kStreams = true;
MIXSYN_INLINE void stream(float* to, Vec<float> v) { _mm256_stream_ps(to, v); }
MIXSYN_INLINE void stream(double* to, Vec<double> v) { _mm256_stream_pd(to, v); }
MIXSYN_INLINE void stream_fence() { _mm_sfence(); }

MIXSYN_INLINE bool any_lane(Mask<float> mask) { return _mm256_movemask_epi8(bits_of<__m256i>(mask)) != 0; }
MIXSYN_INLINE bool any_lane(Mask<double> mask) { return _mm256_movemask_epi8(bits_of<__m256i>(mask)) != 0; }

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
