// Instruction sets of the CPU kernels. The build compiles cpu/<op>.cpp once for each (MIXSYN_ISA=<name>) inside a namespace
// of that name; the best one that the processor has is chosen at run time. Which there are stands here (_build.py reads
// MIXSYN_ISAS and MIXSYN_NATIVE_ISA with the preprocessor), how the kernels use one in isa/<name>.h.
#pragma once

// MIXSYN_ISAS: what this compiler can compile, best first. MIXSYN_NATIVE_ISA: the best that -march=native promises.
// MIXSYN_RUNS_<name>: whether the processor has it, asked at run time.
#define MIXSYN_RUNS_baseline true
#define MIXSYN_RUNS_neon true  // every 64-bit Arm processor has it
#if defined(__x86_64__) && defined(__GNUC__)
#define MIXSYN_ISAS avx512 avx2 baseline
#define MIXSYN_RUNS_avx2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define MIXSYN_RUNS_avx512                                                                        \
  (MIXSYN_RUNS_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && \
   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MIXSYN_NATIVE_ISA avx512
#else
#define MIXSYN_NATIVE_ISA avx2
#endif
#endif
#elif defined(__aarch64__)
#define MIXSYN_ISAS neon
#define MIXSYN_NATIVE_ISA neon
#else
#define MIXSYN_ISAS baseline
#endif
#ifndef MIXSYN_NATIVE_ISA
#define MIXSYN_NATIVE_ISA baseline
#endif

// MIXSYN_EACH_ISA(X, ...) comes from the build: X(name, ...) for every instruction set in this shared object, best first.
#ifdef MIXSYN_EACH_ISA

namespace mixsyn_fast::cpu {

enum class InstructionSet { baseline, neon, avx2, avx512 };  // named like the namespaces

// The best compiled one that this processor has, asked once. MIXSYN_FAST_CPU=avx512|avx2|neon|baseline lowers the choice (tests of
// the other paths); it never raises it.
InstructionSet instruction_set();

}  // namespace mixsyn_fast::cpu

// In the header of an op: declares <name><T, A>(), the kernels of this machine, and what it chooses from.
#define MIXSYN_CPU_KERNELS(Kernels, name)                \
  MIXSYN_EACH_ISA(MIXSYN_DECLARE_KERNELS, Kernels, name) \
  template <typename T, typename A>                      \
  const Kernels<T, A>& name() {                          \
    switch (instruction_set()) {                         \
      MIXSYN_EACH_ISA(MIXSYN_CHOOSE_KERNELS, name)       \
      default:                                           \
        __builtin_unreachable();                         \
    }                                                    \
  }
#define MIXSYN_DECLARE_KERNELS(isa, Kernels, name) \
  namespace isa {                                  \
  template <typename T, typename A>                \
  const Kernels<T, A>& name();                     \
  }
#define MIXSYN_CHOOSE_KERNELS(isa, name) \
  case InstructionSet::isa:              \
    return isa::name<T, A>();

// At the end of cpu/<op>.cpp: compiles them for every type of elements and its type of arithmetic.
#define MIXSYN_CPU_INSTANTIATE(Kernels, name)                                 \
  template const Kernels<double, double>& name<double, double>();             \
  template const Kernels<float, float>& name<float, float>();                 \
  template const Kernels<c10::Half, float>& name<c10::Half, float>();         \
  template const Kernels<c10::BFloat16, float>& name<c10::BFloat16, float>(); \
  MIXSYN_TARGET_END

#endif
