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
