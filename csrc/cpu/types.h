// Vectors of the machine's width by the compiler's vector extension, and what isa/<name>.h has to define for them. In the
// namespace of their instruction set.
#pragma once

namespace mixsyn_fast::cpu::MIXSYN_ISA {

template <typename A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
};
template <typename A>
using Vec = typename VecOf<A>::type;
template <typename A>
using Mask = typename VecOf<A>::mask;  // of a comparison: all bits of a lane, or none
template <typename A>
inline constexpr int kLanes = MIXSYN_VECTOR_BYTES / static_cast<int>(sizeof(A));
// What the torch side pads to, whatever the instruction set is: one, two or four vectors.
template <typename A>
inline constexpr int kLine = 64 / static_cast<int>(sizeof(A));

typedef uint32_t Words __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
typedef uint64_t Longs __attribute__((vector_size(MIXSYN_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(MIXSYN_VECTOR_BYTES / 2)));

template <typename To, typename From>
MIXSYN_INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// ---------------------------------------------------------------------------------- of each instruction set

// kLanes<float> elements of half the width, from and to memory. Narrowed words: the lower half of each.
MIXSYN_INLINE Vec<float> widen_bfloat16(const void* from);
MIXSYN_INLINE void narrow_words(void* to, Words words);
MIXSYN_INLINE Vec<float> widen_half(const void* from);
MIXSYN_INLINE void narrow_half(void* to, Vec<float> v);

// The first n lanes, 0 < n < kLanes; others are zero, their memory is not touched.
MIXSYN_INLINE Vec<float> load_first(const float* from, int64_t n);
MIXSYN_INLINE Vec<double> load_first(const double* from, int64_t n);
MIXSYN_INLINE void store_first(float* to, Vec<float> v, int64_t n);
MIXSYN_INLINE void store_first(double* to, Vec<double> v, int64_t n);

// column[index[i]] for all lanes.
MIXSYN_INLINE Vec<float> gather(const float* column, const int32_t* index);
MIXSYN_INLINE Vec<double> gather(const double* column, const int32_t* index);

// Whether any lane of a comparison's result is set.
MIXSYN_INLINE bool any_lane(Mask<float> mask);
MIXSYN_INLINE bool any_lane(Mask<double> mask);

// The larger, or the smaller, of a bound and v; of a NaN in v the NaN.
MIXSYN_INLINE Vec<float> at_least(float bound, Vec<float> v);
MIXSYN_INLINE Vec<float> at_most(float bound, Vec<float> v);

// A store that does not read the line before nor keep it: for results that no cache would hold until they are used. Only to
// multiples of 64 bytes, whole lines one vector after the other; stream_fence() ends a series of them.
MIXSYN_INLINE void stream(float* to, Vec<float> v);
MIXSYN_INLINE void stream(double* to, Vec<double> v);
MIXSYN_INLINE void stream_fence();

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
