// latent_blend for processors with AVX-512.
#include "isa.h"
#include "latent_blend.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#if defined(MIXSYN_X86_MULTIVERSION)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define MIXSYN_F16C
namespace mixsyn_fast::cpu::avx512 {
#include "vec.inl"

#include "latent_blend.inl"
}  // namespace mixsyn_fast::cpu::avx512
#endif
