// CPU kernels of latent_blend; isa.h says how they are compiled.
#include "latent_blend.h"

#include "vec.h"

namespace mixsyn_fast::cpu::MIXSYN_ISA {

// exp(x) for x <= 0 (NaN stays NaN, -inf gives 0), to about one unit in the last place.
MIXSYN_INLINE Vec<float> latent_blend_exp(Vec<float> x) {
  typedef Mask<float> Bits;
  x = x < -104.0f ? splat<float>(-104.0f) : x;  // exp(-104) rounds to 0
  // x = n ln 2 + r, |r| <= ln 2 / 2; the addend rounds to an integer and leaves it in the low bits
  const Vec<float> magic = splat<float>(12582912.0f);
  const Vec<float> shifted = x * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // the series of exp; its first term left out is below 6e-9
  Vec<float> p = splat<float>(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits bits = bits_of<Bits>(shifted) - 0x4B400000;
  // 2^n in two factors: n reaches -150, an exponent only -126
  const Bits half = bits >> 1, low = (half + 127) << 23, high = (bits - half + 127) << 23;
  return p * bits_of<Vec<float>>(low) * bits_of<Vec<float>>(high);
}
MIXSYN_INLINE Vec<double> latent_blend_exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// n values of a run of groups: element `within` of each of the groups of g values that start at p.
template <typename T, typename A>
MIXSYN_INLINE Vec<A> latent_blend_column(const T* p, int64_t group, int64_t within, int64_t n) {
  Vec<A> v = {};
  const int count = n < kLanes<A> ? static_cast<int>(n) : kLanes<A>;
  for (int i = 0; i < count; ++i) v[i] = static_cast<A>(p[i * group + within]);
  return v;
}

// The logit that decides each of n channels, and (INDEX) where in its group it lies: the first of the largest where `up`, else
// the first of the smallest; a NaN of the group before all.
template <bool INDEX, typename T, typename A>
MIXSYN_INLINE Vec<A> latent_blend_decisive(const T* logits, int64_t group, Mask<A> up, int64_t n, Mask<A>& index) {
  if (group == 1) {
    if constexpr (INDEX) index = Mask<A>{};
    return load_part<false>(logits, n);
  }
  const Vec<A> first = latent_blend_column<T, A>(logits, group, 0, n);
  Vec<A> best = up ? first : -first;  // its largest is wanted in either case
  Mask<A> where = {};
  for (int64_t t = 1; t < group; ++t) {
    const Vec<A> value = latent_blend_column<T, A>(logits, group, t, n);
    const Vec<A> key = up ? value : -value;
    const Mask<A> keep = (key <= best) | (best != best);
    best = keep ? best : key;
    if constexpr (INDEX) where = keep ? where : Mask<A>{} + static_cast<decltype(where[0] + 0)>(t);
  }
  if constexpr (INDEX) index = where;
  return up ? best : -best;
}

template <typename T, typename A>
void latent_blend_forward(const LatentBlend<T, A>& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const Vec<A> zero = {}, one = splat<A>(A(1));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / p.layers, layer = item % p.layers;
    const int64_t width = p.channels[layer], at = image * p.size + p.offsets[layer], group = p.depth / width;
    const T* logits = p.logits + item * p.depth;
    for (int64_t c = 0; c < width; c += L) {
      const int64_t n = width - c;
      const Vec<A> a = load_part<false>(p.a + at + c, n), b = load_part<false>(p.b + at + c, n);
      const Mask<A> above = b > a, up = p.q_on_b ? above : ~above;
      Mask<A> unused;
      const Vec<A> x = latent_blend_decisive<false, T, A>(logits + c * group, group, up, n, unused);
      const Vec<A> e = latent_blend_exp(x < zero ? x : -x);
      const Vec<A> q = (x < zero ? e : one) / (one + e);
      store_part<false>(p.q + at + c, q, n);
      store_part<false>(p.blended + at + c, p.q_on_b ? a + q * (b - a) : b + q * (a - b), n);
    }
  }
}

template <typename T, typename A>
void latent_blend_backward(const LatentBlend<T, A>& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  const Vec<A> zero = {}, one = splat<A>(A(1));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / p.layers, layer = item % p.layers;
    const int64_t width = p.channels[layer], at = image * p.size + p.offsets[layer], group = p.depth / width;
    const T* logits = p.logits + item * p.depth;
    T* grad_logits = p.grad_logits + item * p.depth;
    if (group > 1) __builtin_memset(grad_logits, 0, static_cast<size_t>(p.depth) * sizeof(T));
    for (int64_t c = 0; c < width; c += L) {
      const int64_t n = width - c;
      const Vec<A> a = load_part<false>(p.a + at + c, n), b = load_part<false>(p.b + at + c, n);
      const Mask<A> above = b > a, up = p.q_on_b ? above : ~above;
      Mask<A> index;
      const Vec<A> x = latent_blend_decisive<true, T, A>(logits + c * group, group, up, n, index);
      const Vec<A> e = latent_blend_exp(x < zero ? x : -x);
      const Vec<A> inverse = one / (one + e);
      const Vec<A> q = (x < zero ? e : one) * inverse, rest = (x < zero ? one : e) * inverse;
      const Vec<A> g = p.grad ? load_part<false>(p.grad + at + c, n) : zero;
      const Vec<A> g_q = p.grad_q ? load_part<false>(p.grad_q + at + c, n) : zero;
      store_part<false>(p.grad_a + at + c, g * (p.q_on_b ? rest : q), n);
      store_part<false>(p.grad_b + at + c, g * (p.q_on_b ? q : rest), n);
      // where no gradient comes, none goes, as in the reference: an infinite code times zero would be NaN
      const Vec<A> through = p.grad ? g * (p.q_on_b ? b - a : a - b) : zero;
      const Vec<A> grad_logit = q * rest * (through + g_q);
      if (group == 1) {
        store_part<false>(grad_logits + c, grad_logit, n);
      } else {
        for (int i = 0; i < L && i < n; ++i) grad_logits[(c + i) * group + index[i]] = static_cast<T>(grad_logit[i]);
      }
    }
  }
}

template <typename T, typename A>
const LatentBlendKernels<T, A>& latent_blend_kernels() {
  static const LatentBlendKernels<T, A> table = {latent_blend_forward<T, A>, latent_blend_backward<T, A>};
  return table;
}

MIXSYN_CPU_INSTANTIATE(LatentBlendKernels, latent_blend_kernels)

}  // namespace mixsyn_fast::cpu::MIXSYN_ISA
