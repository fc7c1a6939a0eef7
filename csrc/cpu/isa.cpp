// Run-time choice of the instruction set; see isa.h.
#include "isa.h"

#include <cstdlib>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "region_norm.h"

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

template <typename T, typename A>
const RegionNormKernels<T, A>& region_norm_kernels() {
#if defined(MIXSYN_X86_MULTIVERSION)
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::kernels<T, A>();
    case InstructionSet::kAvx2:
      return avx2::kernels<T, A>();
    default:
      break;
  }
#endif
  return baseline::kernels<T, A>();
}

template const RegionNormKernels<double, double>& region_norm_kernels();
template const RegionNormKernels<float, float>& region_norm_kernels();
template const RegionNormKernels<c10::Half, float>& region_norm_kernels();
template const RegionNormKernels<c10::BFloat16, float>& region_norm_kernels();

}  // namespace mixsyn_fast::cpu
