// Operations on vectors of the machine's width that are alike on all of them.
#pragma once

#include "target.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// All lanes the same; the compiler makes one instruction of this, and of a scalar times a vector.
template <typename A>
MIXSYN_INLINE Vec<A> splat(A value) {
  return value - Vec<A>{};
}

// Loads and stores of the element type T as vectors of its accumulation type A.
MIXSYN_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
MIXSYN_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
MIXSYN_INLINE Vec<float> load(const c10::BFloat16* p) { return widen_bfloat16(p); }
MIXSYN_INLINE Vec<float> load(const c10::Half* p) { return widen_half(p); }

MIXSYN_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
MIXSYN_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }
MIXSYN_INLINE void store(c10::BFloat16* p, Vec<float> v) {
  const Words words = bits_of<Words>(v);
  // round to nearest, ties to even; a NaN stays a quiet NaN
  const Words rounded = (words + 0x7FFFu + ((words >> 16) & 1u)) >> 16;
  narrow_words(p, v == v ? rounded : (words >> 16) | 0x40u);
}
MIXSYN_INLINE void store(c10::Half* p, Vec<float> v) { narrow_half(p, v); }

// The first n elements only, 0 < n < kLanes; the other lanes are zero.
template <typename A>
MIXSYN_INLINE Vec<A> load_n(const A* p, int64_t n) {
  return load_first(p, n);
}
template <typename T>
MIXSYN_INLINE Vec<float> load_halves_n(const T* p, int64_t n) {
  T buffer[kLanes<float>] = {};
  for (int i = 0; i < kLanes<float>; ++i)
    if (i < n) buffer[i] = p[i];
  return load(buffer);
}
MIXSYN_INLINE Vec<float> load_n(const c10::BFloat16* p, int64_t n) { return load_halves_n(p, n); }
MIXSYN_INLINE Vec<float> load_n(const c10::Half* p, int64_t n) { return load_halves_n(p, n); }

template <typename T, typename V>
MIXSYN_INLINE void store_n(T* p, V v, int64_t n) {
  if constexpr (sizeof(T) > 2) {
    store_first(p, v, n);
  } else {
    T buffer[kLanes<float>];
    store(buffer, v);
    for (int i = 0; i < kLanes<float>; ++i)
      if (i < n) p[i] = buffer[i];
  }
}

// Elements that may end inside the vector or before it (n <= 0: nothing is touched); FULL promises a whole one.
template <bool FULL, typename T>
MIXSYN_INLINE auto load_part(const T* p, int64_t n) {
  using V = decltype(load(p));
  if constexpr (FULL) {
    return load(p);
  } else {
    return n >= kLanes<std::conditional_t<std::is_same_v<T, double>, double, float>> ? load(p)
           : n > 0                                                                   ? load_n(p, n)
                                                                                     : V{};
  }
}
template <bool FULL, typename T, typename V>
MIXSYN_INLINE void store_part(T* p, V v, int64_t n) {
  if constexpr (FULL) {
    store(p, v);
  } else {
    if (n >= static_cast<int64_t>(sizeof(V) / sizeof(v[0])))
      store(p, v);
    else if (n > 0)
      store_n(p, v, n);
  }
}

// Whether a result of so many elements, written in rows of `stride`, is worth streaming, and can be. `least`, in bytes: more
// than caches hold until it is read.
template <typename A>
MIXSYN_INLINE bool streams(const A* to, int64_t stride, int64_t elements, int64_t least) {
  return kStreams && elements * static_cast<int64_t>(sizeof(A)) >= least && reinterpret_cast<uintptr_t>(to) % 64 == 0 &&
         stride % kLine<A> == 0;
}

// Lanes of a and, from kLanes on, of b.
template <int... LANES, typename V>
MIXSYN_INLINE V shuffle(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, LANES...);
#else
  typedef std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t> Lane;
  typedef Lane Lanes __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Lanes{LANES...});
#endif
}

// Patterns of which every instruction set has an instruction: they repeat in every 16 bytes ("block"), or move blocks.
enum class Pattern {
  kLowPairs,    // a0 b0 a1 b1 of a block of four, a0 b0 of a block of two
  kHighPairs,   // a2 b2 a3 b3, a1 b1
  kLowHalves,   // a0 a1 b0 b1
  kHighHalves,  // a2 a3 b2 b3
  kEvenBlocks,  // blocks 0, 2, .. of a, then of b
  kOddBlocks,   // blocks 1, 3, .. of a, then of b
};
template <Pattern P, int L, int B>
constexpr int pattern_lane(int i) {  // L lanes, B of them in a block
  const int block = i / B * B, at = i % B;
  switch (P) {
    case Pattern::kLowPairs:
      return (at % 2 ? L : 0) + block + at / 2;
    case Pattern::kHighPairs:
      return (at % 2 ? L : 0) + block + B / 2 + at / 2;
    case Pattern::kLowHalves:
      return (at < B / 2 ? 0 : L) + block + at % (B / 2);
    case Pattern::kHighHalves:
      return (at < B / 2 ? 0 : L) + block + B / 2 + at % (B / 2);
    case Pattern::kEvenBlocks:
      return (i < L / 2 ? 0 : L) + 2 * block % L + at;
    default:
      return (i < L / 2 ? 0 : L) + 2 * block % L + B + at;
  }
}
template <Pattern P, typename V, int... I>
MIXSYN_INLINE V rearrange_(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof(V) / sizeof(a[0]), B = 16 / sizeof(a[0]);
  return shuffle<pattern_lane<P, L, B>(I)...>(a, b);
}
template <Pattern P, typename V>
MIXSYN_INLINE V rearrange(V a, V b) {
  return rearrange_<P>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>{});
}

// Rows to columns of kLanes x kLanes elements: within blocks of 16 bytes first, then the blocks.
template <typename A>
MIXSYN_INLINE void transpose(Vec<A>* rows) {
  constexpr int L = kLanes<A>, B = 16 / static_cast<int>(sizeof(A)), Q = L / B;
  Vec<A> t[L];
  MIXSYN_UNROLL
  for (int i = 0; i < L; i += 2) {
    t[i] = rearrange<Pattern::kLowPairs>(rows[i], rows[i + 1]);
    t[i + 1] = rearrange<Pattern::kHighPairs>(rows[i], rows[i + 1]);
  }
  if constexpr (B == 4) {
    MIXSYN_UNROLL
    for (int i = 0; i < L; i += 4) {
      rows[i] = rearrange<Pattern::kLowHalves>(t[i], t[i + 2]);
      rows[i + 1] = rearrange<Pattern::kHighHalves>(t[i], t[i + 2]);
      rows[i + 2] = rearrange<Pattern::kLowHalves>(t[i + 1], t[i + 3]);
      rows[i + 3] = rearrange<Pattern::kHighHalves>(t[i + 1], t[i + 3]);
    }
    MIXSYN_UNROLL
    for (int i = 0; i < L; ++i) t[i] = rows[i];
  }
  MIXSYN_UNROLL
  for (int j = 0; j < B; ++j) {  // block q of row B g + j goes to row B q + j, block g
    if constexpr (Q == 1) {
      rows[j] = t[j];
    } else if constexpr (Q == 2) {
      rows[j] = rearrange<Pattern::kEvenBlocks>(t[j], t[B + j]);
      rows[B + j] = rearrange<Pattern::kOddBlocks>(t[j], t[B + j]);
    } else {
      const Vec<A> even = rearrange<Pattern::kEvenBlocks>(t[j], t[B + j]);
      const Vec<A> odd = rearrange<Pattern::kOddBlocks>(t[j], t[B + j]);
      const Vec<A> more_even = rearrange<Pattern::kEvenBlocks>(t[2 * B + j], t[3 * B + j]);
      const Vec<A> more_odd = rearrange<Pattern::kOddBlocks>(t[2 * B + j], t[3 * B + j]);
      rows[j] = rearrange<Pattern::kEvenBlocks>(even, more_even);
      rows[B + j] = rearrange<Pattern::kEvenBlocks>(odd, more_odd);
      rows[2 * B + j] = rearrange<Pattern::kOddBlocks>(even, more_even);
      rows[3 * B + j] = rearrange<Pattern::kOddBlocks>(odd, more_odd);
    }
  }
}

// Lane i beside lane i ^ STEP.
template <int STEP, typename V, int... I>
MIXSYN_INLINE V exchanged_(V v, std::integer_sequence<int, I...>) {
  return shuffle<(I ^ STEP)...>(v, v);
}
template <int STEP, typename A>
MIXSYN_INLINE Vec<A> exchanged(Vec<A> v) {
  return exchanged_<STEP>(v, std::make_integer_sequence<int, kLanes<A>>{});
}

// Sum and maximum of the lanes, as a tree.
template <typename A, int STEP = kLanes<A> / 2>
MIXSYN_INLINE A lane_sum(Vec<A> v) {
  if constexpr (STEP == 0) {
    return v[0];
  } else {
    return lane_sum<A, STEP / 2>(v + exchanged<STEP, A>(v));
  }
}
template <typename A, int STEP = kLanes<A> / 2>
MIXSYN_INLINE A lane_max(Vec<A> v) {  // of a NaN and a number: either
  if constexpr (STEP == 0) {
    return v[0];
  } else {
    const Vec<A> other = exchanged<STEP, A>(v);
    return lane_max<A, STEP / 2>(other > v ? other : v);
  }
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
