// SiLU and its derivative on vectors. What bounds the kernels that call them are fused multiply-adds: here seven of them,
// and a division, which has a unit of its own and is done before they are.
#pragma once

#include "products.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// exp(-v) for |v| <= 87, where it is a normal number and so is its reciprocal: 2^(n + f) with an integer n and |f| <= 1/2.
// Products are fused with the sums behind them, so f has one rounding; 2^f is a polynomial with 1 at 0 (minimax, relative
// error 9e-8, of which a sigmoid keeps at most the half), to whose exponent n is added.
MIXSYN_INLINE Vec<float> silu_exp(Vec<float> v) {
  const Vec<float> shifted = v * -1.44269504f + 12582912.0f;
  const Vec<float> n = shifted - 12582912.0f;
  const Vec<float> f = v * -1.44269504f - n;
  Vec<float> q = splat(0.00132647273f);
  q = q * f + 0.00967151299f;
  q = q * f + 0.0555073358f;
  q = q * f + 0.240222424f;
  q = q * f + 0.693147004f;
  q = q * f + 1.0f;
  return bits_of<Vec<float>>(bits_of<Words>(q) + (bits_of<Words>(shifted) << 23));
}
MIXSYN_INLINE Vec<double> silu_exp(Vec<double> v) { return products_exp(-v); }

// Below the bound SiLU and its derivative are zero but for 1e-35 (1e-303), and are taken there, minus infinity included;
// above, the sigmoid is 1. A NaN stays one.
constexpr float kSiluBound = 87;
constexpr double kSiluDoubleBound = 708;
MIXSYN_INLINE Vec<float> silu_low(Vec<float> v) { return at_least(-kSiluBound, v); }
MIXSYN_INLINE Vec<float> silu_high(Vec<float> v) { return at_most(kSiluBound, v); }
MIXSYN_INLINE Vec<double> silu_low(Vec<double> v) { return portable_at_least(-kSiluDoubleBound, v); }
MIXSYN_INLINE Vec<double> silu_high(Vec<double> v) { return portable_at_most(kSiluDoubleBound, v); }

// v s with the sigmoid s = 1 / (1 + exp(-v)).
template <typename V>
MIXSYN_INLINE V silu(V v) {
  v = silu_low(v);
  return v / (silu_exp(silu_high(v)) + 1);
}

// s + s (v - v s).
template <typename V>
MIXSYN_INLINE V silu_slope(V v) {
  v = silu_high(silu_low(v));
  const V share = 1 / (silu_exp(v) + 1);
  return share * (v - v * share) + share;
}

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
