// latent_blend for processors with AVX2 and FMA.
#include "isa.h"
#include "latent_blend.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#if defined(MIXSYN_X86_MULTIVERSION)
#pragma GCC target("avx2,fma,f16c")
#define MIXSYN_F16C
namespace mixsyn_fast::cpu::avx2 {
#include "vec.inl"

#include "latent_blend.inl"
}  // namespace mixsyn_fast::cpu::avx2
#endif
