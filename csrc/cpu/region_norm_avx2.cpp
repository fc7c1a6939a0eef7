// region_norm for processors with AVX2 and FMA.
#include "isa.h"
#include "region_norm.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#if defined(MIXSYN_X86_MULTIVERSION)
#pragma GCC target("avx2,fma,f16c")
#define MIXSYN_F16C
#define MIXSYN_GATHER_AVX2
namespace mixsyn_fast::cpu::avx2 {
#include "vec.inl"

#include "region_norm.inl"
}  // namespace mixsyn_fast::cpu::avx2
#endif
