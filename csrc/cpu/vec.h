// 64-byte vectors by the compiler's vector extension: 16 floats or 8 doubles, split by the compiler where the
// instruction set has narrower registers. In the namespace of its instruction set.
#pragma once

#include "target.h"

#define MIXSYN_INLINE static inline __attribute__((always_inline))

namespace mixsyn_fast::cpu::MIXSYN_ISA {

template <typename A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef int32_t mask __attribute__((vector_size(64)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef int64_t mask __attribute__((vector_size(64)));
};
template <typename A>
using Vec = typename VecOf<A>::type;
template <typename A>
inline constexpr int kLanes = 64 / static_cast<int>(sizeof(A));

typedef uint16_t HalfBits __attribute__((vector_size(32)));
typedef uint32_t WordBits __attribute__((vector_size(64)));

template <typename A>
MIXSYN_INLINE Vec<A> splat(A value) {
  Vec<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = value;
  return v;
}

template <typename A>
MIXSYN_INLINE A lane_sum(Vec<A> v) {
  A sum = 0;
  for (int i = 0; i < kLanes<A>; ++i) sum += v[i];
  return sum;
}

// Loads and stores of the element type T as vectors of its accumulation type A.
MIXSYN_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, 64);
  return v;
}
MIXSYN_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, 64);
  return v;
}
MIXSYN_INLINE Vec<float> load(const c10::BFloat16* p) {
  HalfBits bits;
  __builtin_memcpy(&bits, p, 32);
  WordBits words = __builtin_convertvector(bits, WordBits) << 16;
  Vec<float> v;
  __builtin_memcpy(&v, &words, 64);
  return v;
}
MIXSYN_INLINE Vec<float> load(const c10::Half* p) {
#if defined(MIXSYN_F16C)
  __m128i bits[2];
  __builtin_memcpy(bits, p, 32);
  __m256 parts[2] = {_mm256_cvtph_ps(bits[0]), _mm256_cvtph_ps(bits[1])};
  Vec<float> v;
  __builtin_memcpy(&v, parts, 64);
  return v;
#else
  Vec<float> v;
  for (int i = 0; i < 16; ++i) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}
MIXSYN_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, 64); }
MIXSYN_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, 64); }
MIXSYN_INLINE void store(c10::BFloat16* p, Vec<float> v) {
  WordBits words;
  __builtin_memcpy(&words, &v, 64);
  // round to nearest, ties to even; a NaN stays a quiet NaN
  WordBits rounded = (words + 0x7FFFu + ((words >> 16) & 1u)) >> 16;
  auto is_nan = (words & 0x7FFFFFFFu) > 0x7F800000u;
  rounded = is_nan ? ((words >> 16) | 0x40u) : rounded;
  HalfBits bits = __builtin_convertvector(rounded, HalfBits);
  __builtin_memcpy(p, &bits, 32);
}
MIXSYN_INLINE void store(c10::Half* p, Vec<float> v) {
#if defined(MIXSYN_F16C)
  __m256 parts[2];
  __builtin_memcpy(parts, &v, 64);
  __m128i bits[2] = {_mm256_cvtps_ph(parts[0], _MM_FROUND_TO_NEAREST_INT),
                     _mm256_cvtps_ph(parts[1], _MM_FROUND_TO_NEAREST_INT)};
  __builtin_memcpy(p, bits, 32);
#else
  for (int i = 0; i < 16; ++i) p[i] = c10::Half(v[i]);
#endif
}

// The first n elements only; the other lanes are zero.
template <typename T>
MIXSYN_INLINE auto load_n(const T* p, int64_t n) {
  T buffer[64 / sizeof(T) > 16 ? 16 : 64 / sizeof(T)] = {};
  constexpr int64_t kCount = static_cast<int64_t>(sizeof(buffer) / sizeof(T));
  for (int64_t i = 0; i < n && i < kCount; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <typename T, typename V>
MIXSYN_INLINE void store_n(T* p, V v, int64_t n) {
  T buffer[64 / sizeof(T) > 16 ? 16 : 64 / sizeof(T)];
  constexpr int64_t kCount = static_cast<int64_t>(sizeof(buffer) / sizeof(T));
  store(buffer, v);
  for (int64_t i = 0; i < n && i < kCount; ++i) p[i] = buffer[i];
}

// Full vectors take the plain load; FULL is known at compile time in the tiles that matter.
template <bool FULL, typename T>
MIXSYN_INLINE auto load_part(const T* p, int64_t n) {
  if constexpr (FULL) {
    return load(p);
  } else {
    return n >= kLanes<std::conditional_t<std::is_same_v<T, double>, double, float>> ? load(p) : load_n(p, n);
  }
}
template <bool FULL, typename T, typename V>
MIXSYN_INLINE void store_part(T* p, V v, int64_t n) {
  if constexpr (FULL) {
    store(p, v);
  } else {
    if (n >= static_cast<int64_t>(sizeof(V) / sizeof(v[0])))
      store(p, v);
    else
      store_n(p, v, n);
  }
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
