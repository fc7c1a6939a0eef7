// spatial_attention_pool for processors with AVX2 and FMA.
#include "isa.h"
#include "spatial_attention_pool.h"

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

#include "spatial_attention_pool.inl"
}  // namespace mixsyn_fast::cpu::avx2
#endif
