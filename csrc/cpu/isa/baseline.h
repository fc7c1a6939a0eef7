// What every processor of an architecture has (SSE2 on x86), in vectors of 16 bytes, of which there are sixteen.
#pragma once

#define MIXSYN_VECTOR_BYTES 16
#define MIXSYN_PRODUCT_ROWS 2
#define MIXSYN_PRODUCT_VECTORS 4
#define MIXSYN_PRODUCT_TALL 8
#define MIXSYN_TARGET_END

#include "../portable.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE Vec<float> widen_bfloat16(const void* from) {
#if defined(__SSE2__)
  const __m128i bits = _mm_loadl_epi64(static_cast<const __m128i*>(from));
  return bits_of<Vec<float>>(_mm_unpacklo_epi16(_mm_setzero_si128(), bits));
#else
  return bits_of<Vec<float>>(portable_load_halves(from) << 16);
#endif
}

MIXSYN_INLINE void narrow_words(void* to, Words words) {
#if defined(__SSE2__)
  // words to signed numbers of 16 bits, which is all that this instruction keeps as they are
  const __m128i low = _mm_srai_epi32(_mm_slli_epi32(bits_of<__m128i>(words), 16), 16);
  _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packs_epi32(low, low));
#else
  const Halves bits = __builtin_convertvector(words, Halves);
  __builtin_memcpy(to, &bits, sizeof(bits));
#endif
}

MIXSYN_INLINE Vec<float> widen_half(const void* from) {
#if defined(__SSE2__)
  const __m128i bits = _mm_loadl_epi64(static_cast<const __m128i*>(from));
  return portable_widen_half(bits_of<Words>(_mm_unpacklo_epi16(bits, _mm_setzero_si128())));
#else
  return portable_widen_half(portable_load_halves(from));
#endif
}
MIXSYN_INLINE void narrow_half(void* to, Vec<float> v) { narrow_words(to, portable_narrow_half(v)); }

#if defined(__SSE2__)
// One, two or three floats, one double: a pair and a single one.
MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n) {
  if (n == 1) return _mm_load_ss(from);
  const __m128 two = _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return n == 2 ? two : _mm_movelh_ps(two, _mm_load_ss(from + 2));
}
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t) { return _mm_load_sd(from); }
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n) {
  if (n == 1) return _mm_store_ss(to, v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_castps_si128(v));
  if (n == 3) _mm_store_ss(to + 2, _mm_movehl_ps(v, v));
}
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t) { _mm_store_sd(to, v); }
#else
MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n) { return portable_load_first(from, n); }
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t n) { return portable_load_first(from, n); }
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n) { portable_store_first(to, v, n); }
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t n) { portable_store_first(to, v, n); }
#endif

MIXSYN_INLINE Vec<float> gather(const float* column, const int32_t* index) { return portable_gather(column, index); }
MIXSYN_INLINE Vec<double> gather(const double* column, const int32_t* index) { return portable_gather(column, index); }

MIXSYN_INLINE Vec<float> at_least(float bound, Vec<float> v) { return portable_at_least(bound, v); }
MIXSYN_INLINE Vec<float> at_most(float bound, Vec<float> v) { return portable_at_most(bound, v); }

#if defined(__SSE2__)
inline constexpr bool kStreams = true;
MIXSYN_INLINE void stream(float* to, Vec<float> v) { _mm_stream_ps(to, v); }
MIXSYN_INLINE void stream(double* to, Vec<double> v) { _mm_stream_pd(to, v); }
MIXSYN_INLINE void stream_fence() { _mm_sfence(); }
#else
inline constexpr bool kStreams = false;
MIXSYN_INLINE void stream(float* to, Vec<float> v) { __builtin_memcpy(to, &v, sizeof(v)); }
MIXSYN_INLINE void stream(double* to, Vec<double> v) { __builtin_memcpy(to, &v, sizeof(v)); }
MIXSYN_INLINE void stream_fence() {}
#endif

MIXSYN_INLINE bool any_lane(Mask<float> mask) {
#if defined(__SSE2__)
  return _mm_movemask_epi8(bits_of<__m128i>(mask)) != 0;
#else
  const Longs longs = bits_of<Longs>(mask);
  return (longs[0] | longs[1]) != 0;
#endif
}
MIXSYN_INLINE bool any_lane(Mask<double> mask) {
#if defined(__SSE2__)
  return _mm_movemask_epi8(bits_of<__m128i>(mask)) != 0;
#else
  const Longs longs = bits_of<Longs>(mask);
  return (longs[0] | longs[1]) != 0;
#endif
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
