// simt.h under nvcc: each name is one instruction or a few. tests/gpu compares
// every one with its emulation on random bits.
//
// On sm_75 copies are plain loads and stores, and a matrix product of 16-bit
// floats is two of half the depth: correct rather than fast.
#ifndef QUIRE_KERNELS_CUDA_SIMT_DEVICE_H_
#define QUIRE_KERNELS_CUDA_SIMT_DEVICE_H_

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "kernels/cuda/simt/types.h"
#include "kernels/dtype.h"

#define SIMT_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_NO_UNROLL _Pragma("unroll 1")
#define SIMT_DEVICE __device__ __forceinline__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define SIMT_HAS_SMALL_SHARED true
#else
#define SIMT_HAS_SMALL_SHARED false
#endif
// Where this GPU has no such instruction, nor is there code for what follows.
#define SIMT_ABSENT()        \
  do {                       \
    __trap();                \
    __builtin_unreachable(); \
  } while (false)
#define SIMT_SHARED(T, name, n) __shared__ T name[n]
#define SIMT_DYNAMIC_SHARED(name) \
  extern __shared__ __align__(1024) unsigned char name[]

namespace quire::simt {

// ---------------------------------------------------------------- threads

SIMT_DEVICE uint32_t ThreadX() { return threadIdx.x; }
SIMT_DEVICE uint32_t NumThreads() { return blockDim.x; }
SIMT_DEVICE uint32_t CtaX() { return blockIdx.x; }
SIMT_DEVICE uint32_t CtaY() { return blockIdx.y; }
SIMT_DEVICE uint32_t CtaZ() { return blockIdx.z; }
SIMT_DEVICE uint32_t NumCtasX() { return gridDim.x; }
SIMT_DEVICE uint32_t NumCtasY() { return gridDim.y; }

SIMT_DEVICE void SyncThreads() { __syncthreads(); }
SIMT_DEVICE void SyncNamed(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
SIMT_DEVICE void ArriveNamed(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
SIMT_DEVICE void SyncWarp(uint32_t mask = kAllLanes) { __syncwarp(mask); }
SIMT_DEVICE void SyncGrid(uint32_t* /*counter*/) {
  cooperative_groups::this_grid().sync();
}

SIMT_DEVICE void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
SIMT_DEVICE void LaunchNext() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---------------------------------------------------------------- warps

template <typename T>
SIMT_DEVICE T Shuffle(T value, int from, uint32_t mask = kAllLanes) {
  return __shfl_sync(mask, value, from);
}
template <typename T>
SIMT_DEVICE T ShuffleXor(T value, int lane_mask, uint32_t mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
template <typename T>
SIMT_DEVICE T ShuffleDown(T value, int delta, uint32_t mask = kAllLanes) {
  return __shfl_down_sync(mask, value, delta);
}
SIMT_DEVICE uint32_t Ballot(bool predicate, uint32_t mask = kAllLanes) {
  return __ballot_sync(mask, predicate);
}
SIMT_DEVICE uint32_t ReduceAdd(uint32_t value, uint32_t mask = kAllLanes) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(mask, value);
#else
  for (int i = 16; i > 0; i /= 2) value += __shfl_xor_sync(mask, value, i);
  return value;
#endif
}
SIMT_DEVICE uint32_t ReduceMax(uint32_t value, uint32_t mask = kAllLanes) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(mask, value);
#else
  for (int i = 16; i > 0; i /= 2) {
    value = max(value, __shfl_xor_sync(mask, value, i));
  }
  return value;
#endif
}

// ---------------------------------------------------------------- copies

SIMT_DEVICE uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The compiler moves no access to memory across.
SIMT_DEVICE void KeepMemoryOrder() { asm volatile("" ::: "memory"); }
SIMT_DEVICE Bytes16 Load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
// Weights are read once per step: they must not push activations out of L1.
// Not `.nc`: of what nobody writes the assembler takes it that no wait matters
// to it, and moves loads that stand before WaitForPrevious behind it.
SIMT_DEVICE Bytes16 LoadStream16(const void* p) {
  Bytes16 r;
  asm volatile(
#if __CUDA_ARCH__ >= 800
      "ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
#else
      "ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
#endif
      : "=r"(r.words[0]), "=r"(r.words[1]), "=r"(r.words[2]), "=r"(r.words[3])
      : "l"(p));
  return r;
}
SIMT_DEVICE void Store16(void* p, const Bytes16& b) {
  *static_cast<uint4*>(p) =
      make_uint4(b.words[0], b.words[1], b.words[2], b.words[3]);
}
// Of shared memory: what the pointer is made of tells the compiler.
template <typename T>
SIMT_DEVICE T LoadShared(const T* p) {
  return *p;
}
template <typename T>
SIMT_DEVICE void StoreShared(T* p, T value) {
  *p = value;
}
SIMT_DEVICE Bytes16 LoadShared16(const void* p) { return Load16(p); }
SIMT_DEVICE void StoreShared16(void* p, const Bytes16& b) { Store16(p, b); }

SIMT_DEVICE void CpAsync16(void* shared, const void* global,
                           bool is_valid = true) {
#if __CUDA_ARCH__ >= 800
  // With 0 source bytes the destination becomes zeros.
  const int num_bytes = is_valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   SharedAddress(shared)),
               "l"(global), "r"(num_bytes)
               : "memory");
#else
  Bytes16 bytes = {{0, 0, 0, 0}};
  if (is_valid) bytes = Load16(global);
  Store16(shared, bytes);
#endif
}
SIMT_DEVICE void CpAsyncCommit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kNumPending>
SIMT_DEVICE void CpAsyncWait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kNumPending) : "memory");
#endif
}

// ---------------------------------------------------------------- matrices

SIMT_DEVICE void LdMatrixX4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
SIMT_DEVICE void LdMatrixX4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(SharedAddress(row))
      : "memory");
}

SIMT_DEVICE void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  SIMT_ABSENT();  // The backend runs sm_75 in fp16.
#endif
}
SIMT_DEVICE void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                        uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[half * 2]), "r"(a[half * 2 + 1]), "r"(half ? b1 : b0));
  }
#endif
}
SIMT_DEVICE void MmaE4M3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                         uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  SIMT_ABSENT();  // Below sm_89 fp8 weights are widened first.
#endif
}
SIMT_DEVICE void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  SIMT_ABSENT();
#endif
}

// ---------------------------------------------------------------- warpgroups

// PTX ISA, "Matrix descriptor": addresses and offsets in units of 16 bytes;
// layout 1 is the swizzle of 128 bytes.
struct SharedMatrix {
  uint64_t descriptor;

  SIMT_DEVICE SharedMatrix At(int num_bytes) const {
    return {descriptor + static_cast<uint32_t>(num_bytes / 16)};
  }
};
SIMT_DEVICE SharedMatrix SwizzledMatrix(const void* p, int leading_bytes,
                                        int stride_bytes) {
  return {(SharedAddress(p) & 0x3ffff) >> 4 |
          static_cast<uint64_t>(leading_bytes >> 4) << 16 |
          static_cast<uint64_t>(stride_bytes >> 4) << 32 | uint64_t{1} << 62};
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIMT_WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SIMT_WGMMA_ASM(...) SIMT_ABSENT()  // The backend asks for 9.0 first.
#endif

SIMT_DEVICE void FenceProxyAsync() {
  SIMT_WGMMA_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}
SIMT_DEVICE void WgmmaCommit() {
  SIMT_WGMMA_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// The compiler takes no access to `sums` across: what writes them, or what they
// are computed beside, is asynchronous.
template <int kNumTiles>
SIMT_DEVICE void KeepWgmmaOrder(float (&sums)[kNumTiles][4]) {
  SIMT_UNROLL
  for (int i = 0; i < kNumTiles; ++i) {
    asm volatile(""
                 : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]),
                   "+f"(sums[i][3])::"memory");
  }
}
// What was written to the registers of products stands before the fence.
template <int kNumSteps>
SIMT_DEVICE void WgmmaFence(uint32_t (&a)[kNumSteps][4]) {
  SIMT_UNROLL
  for (int i = 0; i < kNumSteps; ++i) {
    asm volatile(""
                 : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]),
                   "+r"(a[i][3])::"memory");
  }
  SIMT_WGMMA_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
template <int kNumSteps, int kNumTiles>
SIMT_DEVICE void WgmmaFence(uint32_t (&a)[kNumSteps][4],
                            float (&sums)[kNumTiles][4]) {
  KeepWgmmaOrder(sums);
  WgmmaFence(a);
}
template <int kNumPending, int kNumTiles>
SIMT_DEVICE void WgmmaWait(float (&sums)[kNumTiles][4]) {
  SIMT_WGMMA_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kNumPending)
                 : "memory");
  KeepWgmmaOrder(sums);
}

// ptxas begins a basic block with its waits, which depend on nothing: it needs
// a branch before. The comments keep the compiler from making one of two.
template <int kNumPending, int kNumTiles, int kNumDone>
SIMT_DEVICE void WgmmaWaitAfter(float (&done)[kNumDone][4], bool is_either,
                                float (&sums)[kNumTiles][4]) {
  KeepWgmmaOrder(done);
  if (is_either) {
    SIMT_WGMMA_ASM(
        "wgmma.wait_group.sync.aligned %0;  // One." ::"n"(kNumPending)
        : "memory");
  } else {
    SIMT_WGMMA_ASM(
        "wgmma.wait_group.sync.aligned %0;  // Other." ::"n"(kNumPending)
        : "memory");
  }
  KeepWgmmaOrder(sums);
}

#define SIMT_TILE(c, i) \
  "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SIMT_TILES8(c, i)                                            \
  SIMT_TILE(c, i), SIMT_TILE(c, i + 1), SIMT_TILE(c, i + 2),         \
      SIMT_TILE(c, i + 3), SIMT_TILE(c, i + 4), SIMT_TILE(c, i + 5), \
      SIMT_TILE(c, i + 6), SIMT_TILE(c, i + 7)
#define SIMT_WGMMA_N64(types)                                               \
  SIMT_WGMMA_ASM(                                                           \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." types                   \
      " "                                                                   \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18," \
      "%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "              \
      "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"                            \
      : SIMT_TILES8(c, 0)                                                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor),      \
        "n"(kAccumulates), "n"(kTransposed)                                 \
      : "memory")
#define SIMT_WGMMA_N128(types)                                               \
  SIMT_WGMMA_ASM(                                                            \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." types                   \
      " "                                                                    \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,"  \
      "%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35," \
      "%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52," \
      "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "                       \
      "{%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"                             \
      : SIMT_TILES8(c, 0), SIMT_TILES8(c, 8)                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor),       \
        "n"(kAccumulates), "n"(kTransposed)                                  \
      : "memory")

template <bool kTransposed, bool kAccumulates>
SIMT_DEVICE void WgmmaBf16(float (&c)[8][4], const uint32_t (&a)[4],
                           SharedMatrix b) {
  SIMT_WGMMA_N64("bf16.bf16");
}
template <bool kTransposed, bool kAccumulates>
SIMT_DEVICE void WgmmaBf16(float (&c)[16][4], const uint32_t (&a)[4],
                           SharedMatrix b) {
  SIMT_WGMMA_N128("bf16.bf16");
}
template <bool kTransposed, bool kAccumulates>
SIMT_DEVICE void WgmmaF16(float (&c)[8][4], const uint32_t (&a)[4],
                          SharedMatrix b) {
  SIMT_WGMMA_N64("f16.f16");
}
template <bool kTransposed, bool kAccumulates>
SIMT_DEVICE void WgmmaF16(float (&c)[16][4], const uint32_t (&a)[4],
                          SharedMatrix b) {
  SIMT_WGMMA_N128("f16.f16");
}

#undef SIMT_WGMMA_N128
#undef SIMT_WGMMA_N64
#undef SIMT_TILES8
#undef SIMT_TILE
#undef SIMT_WGMMA_ASM

// ---------------------------------------------------------------- atomics

template <typename T>
SIMT_DEVICE T AtomicAdd(T* p, T value) {
  return atomicAdd(p, value);
}
template <typename T>
SIMT_DEVICE T AtomicMax(T* p, T value) {
  return atomicMax(p, value);
}
template <typename T>
SIMT_DEVICE T AtomicCas(T* p, T expected, T desired) {
  return atomicCAS(p, expected, desired);
}
SIMT_DEVICE void ThreadFence() { __threadfence(); }

// ---------------------------------------------------------------- numbers

SIMT_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t packed;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
  packed = FloatToBf16(low) | uint32_t{FloatToBf16(high)} << 16;
#endif
  return packed;
}
SIMT_DEVICE uint32_t PackF16(float low, float high) {
  const __half2 packed = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&packed);
}
SIMT_DEVICE float E4M3ToFloat(uint8_t bits) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(bits, __NV_E4M3);
  return __half2float(__half(half));
}
SIMT_DEVICE uint8_t FloatToE4M3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

// Requires: bits is not 0. (nvcc takes std::countr_zero, and makes of it 32.)
SIMT_DEVICE int LowestSetBit(uint32_t bits) {
  return __ffs(static_cast<int>(bits)) - 1;
}
SIMT_DEVICE uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
SIMT_DEVICE uint32_t E4M3x2ToF16x2(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  uint32_t wide;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;"
      : "=r"(wide)
      : "h"(static_cast<uint16_t>(pair)));
  return wide;
#else
  // With the bits in place the exponent is too small by 8: a product puts that
  // right, also for subnormals.
  const uint32_t bytes = __byte_perm(pair, 0, 0x1404);
  const uint32_t magnitude = bytes & 0x7f007f00;
  const uint32_t placed = (bytes & 0x80008000) | magnitude >> 1;
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&placed),
                                  __half2half2(__float2half(256.0f)));
  // 0x7f is NaN: then all bits of the exponent.
  const uint32_t nan = (magnitude + 0x01000100) & 0x80008000;
  return *reinterpret_cast<const uint32_t*>(&product) | (nan - (nan >> 5));
#endif
}
SIMT_DEVICE uint32_t E4M3x2ToBf16x2(uint32_t pair) {
  const uint32_t wide = E4M3x2ToF16x2(pair);
  const float2 values =
      __half22float2(*reinterpret_cast<const __half2*>(&wide));
  return PackBf16(values.x, values.y);
}
SIMT_DEVICE uint32_t SubtractBf16x2(uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 800
  const __nv_bfloat162 difference =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a),
              *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&difference);
#else
  SIMT_ABSENT();  // The backend runs sm_75 in fp16.
#endif
}
SIMT_DEVICE uint32_t SubtractF16x2(uint32_t a, uint32_t b) {
  const __half2 difference = __hsub2(*reinterpret_cast<const __half2*>(&a),
                                     *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&difference);
}

SIMT_DEVICE float F16ToFloat(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
SIMT_DEVICE uint32_t MaskAndSet(uint32_t bits, uint32_t mask, uint32_t base) {
  uint32_t set;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;"
      : "=r"(set)
      : "r"(bits), "r"(mask), "r"(base));
  return set;
}

SIMT_DEVICE float Exp2(float x) { return exp2f(x); }
SIMT_DEVICE float Exp2Flushed(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMT_DEVICE float Rsqrt(float x) { return rsqrtf(x); }
SIMT_DEVICE float Tanh(float x) { return tanhf(x); }
SIMT_DEVICE float Exp(float x) { return expf(x); }
SIMT_DEVICE float Product(float a, float b) { return __fmul_rn(a, b); }
SIMT_DEVICE float MultiplyAdd(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}

// ---------------------------------------------------------------- launch

// Whether kernels are in the form of SIMT_HAS_SMALL_SHARED.
inline bool HasSmallShared() {
  static const bool has_small_shared = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major < 8;
  }();
  return has_small_shared;
}

// What a kernel may be launched with grows, and is never lowered: a graph that
// is being captured keeps its kernels, not what they were allowed. Without it
// 48 KiB are for static and dynamic memory together.
inline bool AllowDynamicShared(const void* kernel, size_t num_bytes) {
  if (num_bytes == 0) return true;
  static std::mutex mu;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  int device = 0;
  cudaGetDevice(&device);
  std::lock_guard<std::mutex> lock(mu);
  size_t& most = allowed[{device, kernel}];
  if (num_bytes <= most) return true;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(num_bytes)) != cudaSuccess) {
    return false;
  }
  most = num_bytes;
  return true;
}

// Whether kernels may begin before their predecessor has ended.
inline bool HasEarlyLaunches() {
  static const bool has_early_launches = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return has_early_launches;
}

// True if the launch was accepted; cudaGetLastError tells the rest.
template <typename... Parameters, typename... Arguments>
bool Launch(void (*kernel)(Parameters...), const LaunchShape& shape,
            Stream stream, Arguments... arguments) {
  const size_t shared_bytes = shape.small_shared_bytes > 0 && HasSmallShared()
                                  ? shape.small_shared_bytes
                                  : shape.dynamic_shared_bytes;
  if (!AllowDynamicShared(reinterpret_cast<const void*>(kernel),
                          shared_bytes)) {
    return false;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.num_ctas_x, shape.num_ctas_y, shape.num_ctas_z);
  config.blockDim = dim3(shape.num_threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  unsigned num_attributes = 0;
  if (shape.is_cooperative) {
    attributes[num_attributes].id = cudaLaunchAttributeCooperative;
    attributes[num_attributes++].val.cooperative = 1;
  }
  if (shape.waits_for_previous && HasEarlyLaunches()) {
    attributes[num_attributes].id =
        cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[num_attributes++].val.programmaticStreamSerializationAllowed = 1;
  }
  config.attrs = attributes;
  config.numAttrs = num_attributes;
  return cudaLaunchKernelEx(&config, kernel,
                            static_cast<Parameters>(arguments)...) ==
         cudaSuccess;
}

}  // namespace quire::simt

#endif  // QUIRE_KERNELS_CUDA_SIMT_DEVICE_H_
