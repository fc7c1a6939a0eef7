// What isa/<name>.h takes where its instruction set has nothing better: the compiler's vector extension, and loops over lanes.
#pragma once

#include "types.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

MIXSYN_INLINE Words portable_load_halves(const void* from) {
  Halves bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return __builtin_convertvector(bits, Words);
}

// float16 by integer arithmetic: the exponent moves by 112 and fills up for infinities and NaN; a subnormal is read as the
// last bits of a number from 0.5 on.
MIXSYN_INLINE Vec<float> portable_widen_half(Words bits) {
  const Words magnitude = bits & 0x7FFFu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words small = bits_of<Words>(bits_of<Vec<float>>(magnitude | (126u << 23)) - 0.5f);
  const Words value = magnitude < 0x400u ? small : magnitude < 0x7C00u ? normal : normal | 0x7F800000u;
  return bits_of<Vec<float>>(value | (bits & 0x8000u) << 16);
}

// Round to nearest, ties to even; a NaN becomes the quiet one. Subnormals are rounded by adding 0.5.
MIXSYN_INLINE Words portable_narrow_half(Vec<float> v) {
  const Words bits = bits_of<Words>(v), magnitude = bits & 0x7FFFFFFFu;
  const Words most = magnitude < 0x47800000u ? magnitude : Words{} + 0x47800000u;  // 65536 becomes infinity
  const Words normal = ((most + 0xFFFu + ((most >> 13) & 1u)) >> 13) - (112u << 10);
  const Words small = bits_of<Words>(bits_of<Vec<float>>(magnitude) + 0.5f) - 0x3F000000u;
  const Words value = magnitude < 0x38800000u ? small : magnitude <= 0x7F800000u ? normal : Words{} + 0x7E00u;
  return value | ((bits >> 16) & 0x8000u);
}

template <typename A>
MIXSYN_INLINE Vec<A> portable_load_first(const A* from, int64_t n) {
  A lanes[kLanes<A>] = {};
  for (int i = 0; i < kLanes<A>; ++i)
    if (i < n) lanes[i] = from[i];
  Vec<A> v;
  __builtin_memcpy(&v, lanes, sizeof(v));
  return v;
}

template <typename A>
MIXSYN_INLINE void portable_store_first(A* to, Vec<A> v, int64_t n) {
  A lanes[kLanes<A>];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < kLanes<A>; ++i)
    if (i < n) to[i] = lanes[i];
}

// A comparison with a NaN is false.
template <typename A>
MIXSYN_INLINE Vec<A> portable_at_least(A bound, Vec<A> v) {
  return v < bound ? bound - Vec<A>{} : v;
}
template <typename A>
MIXSYN_INLINE Vec<A> portable_at_most(A bound, Vec<A> v) {
  return v > bound ? bound - Vec<A>{} : v;
}

template <typename A>
MIXSYN_INLINE Vec<A> portable_gather(const A* column, const int32_t* index) {
  Vec<A> v = {};
  for (int i = 0; i < kLanes<A>; ++i) v[i] = column[index[i]];
  return v;
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
