// Run-time choice of the instruction set; see isa.h.
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace mixsyn_fast::cpu {

InstructionSet instruction_set() {
  static const InstructionSet chosen = [] {
    InstructionSet best = InstructionSet::kBaseline;
#if defined(MIXSYN_X86_MULTIVERSION)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = InstructionSet::kAvx2;
    if (best == InstructionSet::kAvx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = InstructionSet::kAvx512;
#endif
    const char* wanted = std::getenv("MIXSYN_FAST_CPU");
    if (wanted && std::strcmp(wanted, "baseline") == 0) return InstructionSet::kBaseline;
    if (wanted && std::strcmp(wanted, "avx2") == 0 && best == InstructionSet::kAvx512) return InstructionSet::kAvx2;
    return best;
  }();
  return chosen;
}

}  // namespace mixsyn_fast::cpu
