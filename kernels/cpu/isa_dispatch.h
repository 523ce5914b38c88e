// Tables of functions that exist once per instruction set of this machine's
// architecture (isa_kernels.bzl compiles them).
//
// QUIRE_DECLARE_ISA_TABLES(Type, kName) declares `const Type kName` in the
// namespaces of all of them; QUIRE_ISA_TABLE(isa, kName) is the one of `isa`.
// Plain declarations: see simd.h for why kernels include little else.
#ifndef QUIRE_KERNELS_CPU_ISA_DISPATCH_H_
#define QUIRE_KERNELS_CPU_ISA_DISPATCH_H_

#define QUIRE_DECLARE_ISA_TABLE(isa_namespace, Type, kName) \
  namespace isa_namespace {                                 \
  extern const Type kName;                                  \
  }

#if defined(__x86_64__)
#define QUIRE_DECLARE_ISA_TABLES(Type, kName)      \
  QUIRE_DECLARE_ISA_TABLE(cpu_scalar, Type, kName) \
  QUIRE_DECLARE_ISA_TABLE(cpu_avx2, Type, kName)   \
  QUIRE_DECLARE_ISA_TABLE(cpu_avx512, Type, kName) \
  QUIRE_DECLARE_ISA_TABLE(cpu_avx512_bf16, Type, kName)
#define QUIRE_ISA_TABLE(isa, kName)                   \
  ((isa) == Isa::kAvx512Bf16 ? cpu_avx512_bf16::kName \
   : (isa) == Isa::kAvx512   ? cpu_avx512::kName      \
   : (isa) == Isa::kAvx2     ? cpu_avx2::kName        \
                             : cpu_scalar::kName)
#elif defined(__aarch64__)
#define QUIRE_DECLARE_ISA_TABLES(Type, kName)      \
  QUIRE_DECLARE_ISA_TABLE(cpu_scalar, Type, kName) \
  QUIRE_DECLARE_ISA_TABLE(cpu_neon, Type, kName)   \
  QUIRE_DECLARE_ISA_TABLE(cpu_neon_bf16, Type, kName)
#define QUIRE_ISA_TABLE(isa, kName)               \
  ((isa) == Isa::kNeonBf16 ? cpu_neon_bf16::kName \
   : (isa) == Isa::kNeon   ? cpu_neon::kName      \
                           : cpu_scalar::kName)
#else
#define QUIRE_DECLARE_ISA_TABLES(Type, kName) \
  QUIRE_DECLARE_ISA_TABLE(cpu_scalar, Type, kName)
#define QUIRE_ISA_TABLE(isa, kName) (cpu_scalar::kName)
#endif

#endif  // QUIRE_KERNELS_CPU_ISA_DISPATCH_H_
