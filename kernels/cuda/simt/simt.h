// Write a CUDA kernel once; compile it with nvcc for GPUs, or as plain C++
// where every CUDA thread is a fiber (emulator.h), so that machines without a
// GPU run and check it. Kernels include this header and no CUDA header.
//
// Names (all in quire::simt unless in capitals); the PTX that each stands for
// is in device.h:
//   SIMT_KERNEL(max_threads[, min_ctas])
//                                 __global__ void with launch bounds. min_ctas
//                                 (of an SM) is for kernels whose registers
//                                 ptxas would spill to fit one more.
//   SIMT_DEVICE                   an inline device function
//   SIMT_UNROLL, SIMT_NO_UNROLL   unrolls the loop that follows, or does not
//   SIMT_SHARED(T, name, n)       static shared memory
//   SIMT_DYNAMIC_SHARED(name)     `unsigned char* name`, 1024-byte aligned
//   SIMT_HAS_SMALL_SHARED         constant: 64 KiB of shared memory, not 99
//   ThreadX, CtaX, CtaY, CtaZ, NumThreads, NumCtasX, NumCtasY
//   SyncThreads, SyncNamed(id, num_threads), SyncWarp, SyncGrid
//   ArriveNamed(id, num_threads)  counts for SyncNamed, and does not wait
//   Shuffle, ShuffleXor, ShuffleDown, Ballot, ReduceAdd, ReduceMax
//   CpAsync16, CpAsyncCommit, CpAsyncWait<n>
//   LdMatrixX4, LdMatrixX4Transposed
//   MmaBf16, MmaF16 (m16n8k16), MmaE4M3, MmaS8 (m16n8k32)
//   WgmmaBf16, WgmmaF16<transposed, accumulates>(c, a, b)
//                                 on 9.0 alone: 64 rows of four warps, a as for
//                                 mma; b: 64 or 128 columns of depth 16 in
//                                 shared memory, a SharedMatrix (below)
//   WgmmaFence(a[, c])            before the first of a group: a, and c unless
//                                 the products begin it, are as they shall be
//   WgmmaCommit                   ends the group
//   WgmmaWait<n>(c)               until then c and a belong to the products
//   WgmmaWaitAfter<n>(x, either, c)
//                                 the same, once x is computed and not before;
//                                 either: any bool that no compiler foresees,
//                                 the same for all threads
//   FenceProxyAsync               after writing shared memory, and before the
//                                 barrier: products read it in their own way
//   AtomicAdd, AtomicMax, AtomicCas
//   LoadStream16 (read once, past L1), Load16, Store16, KeepMemoryOrder
//   LoadShared, StoreShared, LoadShared16, StoreShared16: plain accesses whose
//     bank conflicts the emulator counts
//   WaitForPrevious, LaunchNext   programmatic dependent launch
//   PackBf16, PackF16, SubtractBf16x2, SubtractF16x2, PermuteBytes,
//   LowestSetBit, E4M3ToFloat, FloatToE4M3, E4M3x2ToF16x2, E4M3x2ToBf16x2,
//   Exp2, Rsqrt, ...
//   Exp2Flushed                   one instruction; 0 below 2^-126
//   Product(a, b)                 rounded: never part of a fused multiply-add
//   MultiplyAdd(a, b, c)          a b + c, rounded once
//   Launch(kernel, LaunchShape, stream, args...)
//
// SwizzledMatrix(p, leading_bytes, stride_bytes): rows of 128 bytes from p,
// which is aligned to 1024; chunk i of 16 bytes lies at i ^ row % 8; eight rows
// are a block. Not transposed, a row is a column of b, its 64 elements depth
// (At(32) is the next 16), and the next eight columns are stride_bytes away.
// Transposed, a row is 64 columns of b at one depth, the next eight depths are
// stride_bytes away, the next 64 columns leading_bytes.
//
// 16-bit floats travel as their bits (kernels/dtype.h).
//
// What the emulator cannot see: mistakes in the PTX itself and its constraints
// (tests/gpu compares every wrapper with its emulation on random bits), fences of
// memory but FenceProxyAsync, the exact rounding of tensor cores, and time.
#ifndef QUIRE_KERNELS_CUDA_SIMT_SIMT_H_
#define QUIRE_KERNELS_CUDA_SIMT_SIMT_H_

#ifdef __CUDACC__
#include "kernels/cuda/simt/device.h"
#else
#include "kernels/cuda/simt/emulator.h"
#endif

#endif  // QUIRE_KERNELS_CUDA_SIMT_SIMT_H_
