// Instruction sets of this machine, asked once.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MIXSYN_X86_MULTIVERSION
#include <immintrin.h>
#endif

namespace mixsyn_fast::cpu {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// MIXSYN_FAST_CPU=avx512|avx2|baseline lowers the choice (tests of the other paths); it never raises it.
InstructionSet instruction_set();

}  // namespace mixsyn_fast::cpu

// Calls avx512::NAME(), avx2::NAME() or baseline::NAME() (with template arguments in NAME): the kernels of this machine.
#if defined(MIXSYN_X86_MULTIVERSION)
#define MIXSYN_BEST_OF(...)                                                             \
  (::mixsyn_fast::cpu::instruction_set() == ::mixsyn_fast::cpu::InstructionSet::kAvx512 \
       ? ::mixsyn_fast::cpu::avx512::__VA_ARGS__()                                      \
   : ::mixsyn_fast::cpu::instruction_set() == ::mixsyn_fast::cpu::InstructionSet::kAvx2 \
       ? ::mixsyn_fast::cpu::avx2::__VA_ARGS__()                                        \
       : ::mixsyn_fast::cpu::baseline::__VA_ARGS__())
#else
#define MIXSYN_BEST_OF(...) (::mixsyn_fast::cpu::baseline::__VA_ARGS__())
#endif
