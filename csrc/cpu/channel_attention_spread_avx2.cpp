// channel_attention_spread for processors with AVX2 and FMA.
#include "isa.h"
#include "channel_attention_spread.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(MIXSYN_X86_MULTIVERSION)
#pragma GCC target("avx2,fma,f16c")
#define MIXSYN_F16C
namespace mixsyn_fast::cpu::avx2 {
#include "vec.inl"

#include "products.inl"

#include "channel_attention_spread.inl"
}  // namespace mixsyn_fast::cpu::avx2
#endif
