// From here on a file is compiled for the instruction set MIXSYN_ISA. Every header with inline functions comes before the
// pragma (so the header of an op comes before this one): the linker keeps one copy of such a function for all instruction sets.
// For the same reason kernels hold no lambda and call no helper that is not inlined: both would lose the target.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MIXSYN_INLINE static inline __attribute__((always_inline))

// Register blocks are functions of their own: inlined into the loops around them, the compiler runs out of registers.
#define MIXSYN_BLOCK static __attribute__((noinline))

// Before a loop over an array of vectors that must become registers.
#if defined(__clang__)
#define MIXSYN_UNROLL _Pragma("unroll")
#else
#define MIXSYN_UNROLL _Pragma("GCC unroll 16")
#endif

// isa/<MIXSYN_ISA>.h: the pragma, the width and number of registers (below), and every function that types.h declares.
//   MIXSYN_VECTOR_BYTES   16, 32 or 64
//   MIXSYN_PRODUCT_ROWS, MIXSYN_PRODUCT_VECTORS   of the register block of a product, a register for every vector
//   MIXSYN_PRODUCT_TALL   rows of a block that is one vector wide
//   MIXSYN_TARGET_END     ends what its pragma began
#define MIXSYN_QUOTED_(text) #text
#define MIXSYN_QUOTED(text) MIXSYN_QUOTED_(text)
// clang-format off: it would put spaces into the path
#include MIXSYN_QUOTED(isa/MIXSYN_ISA.h)
// clang-format on
