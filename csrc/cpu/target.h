// From here on a file is compiled for the instruction set MIXSYN_ISA. Every header with inline functions comes before the
// pragma (so the header of an op comes before this one): the linker keeps one copy of such a function for all instruction sets.
// For the same reason kernels hold no lambda and call no helper that is not inlined: both would lose the target.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MIXSYN_IS_baseline 0
#define MIXSYN_IS_avx2 2
#define MIXSYN_IS_avx512 3
#define MIXSYN_IS_(isa) MIXSYN_IS_##isa
#define MIXSYN_IS(isa) MIXSYN_IS_(isa)

#if MIXSYN_IS(MIXSYN_ISA) == 3
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define MIXSYN_AVX512  // a vector of 64 bytes is one register, of which there are thirty-two
#define MIXSYN_F16C
#elif MIXSYN_IS(MIXSYN_ISA) == 2
#pragma GCC target("avx2,fma,f16c")
#define MIXSYN_AVX2  // a vector of 64 bytes is two registers of sixteen
#define MIXSYN_F16C
#endif
