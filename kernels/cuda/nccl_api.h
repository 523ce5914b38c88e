// What quire calls of NCCL, declared by hand: the library is opened at run time
// (nccl_library.h), its header is no part of the CUDA toolkit, and no build
// should depend on whether it is there. Names, values and layouts are those of
// NCCL's documentation ("API", version 2.30); nccl_api_check compares them with
// nccl.h where that is installed.
#ifndef QUIRE_KERNELS_CUDA_NCCL_API_H_
#define QUIRE_KERNELS_CUDA_NCCL_API_H_

#include <array>
#include <cstddef>

#include "kernels/cuda/simt/types.h"

namespace quire::cuda {

// What rank 0 makes and all ranks of a communicator are given: ncclUniqueId.
using NcclId = std::array<char, 128>;

namespace nccl {

using Comm = struct OpaqueComm*;
using Window = struct OpaqueWindow*;

enum Result : int { kSuccess = 0 };  // Others are errors.

enum DataType : int { kFloat16 = 6, kFloat32 = 7, kBfloat16 = 9 };

enum ReduceOp : int { kSum = 0 };

inline constexpr int kWindowSymmetric = 0x01;  // NCCL_WIN_COLL_SYMMETRIC

}  // namespace nccl

// The library's functions. Those of windows are null before 2.27, and in
// versions whose windows give wrong sums (nccl_library.cc).
struct NcclApi {
  using Result = nccl::Result;
  using Comm = nccl::Comm;
  using Type = nccl::DataType;

  int version = 0;  // 22809 is 2.28.9.

  Result (*GetVersion)(int* version) = nullptr;
  Result (*GetUniqueId)(NcclId* id) = nullptr;
  const char* (*GetErrorString)(Result result) = nullptr;
  const char* (*GetLastError)(Comm comm) = nullptr;
  Result (*CommInitRank)(Comm* comm, int num_ranks, NcclId id,
                         int rank) = nullptr;
  Result (*CommDestroy)(Comm comm) = nullptr;
  Result (*CommAbort)(Comm comm) = nullptr;
  Result (*CommGetAsyncError)(Comm comm, Result* error) = nullptr;
  Result (*AllReduce)(const void* from, void* to, size_t count, Type type,
                      nccl::ReduceOp op, Comm comm,
                      simt::Stream stream) = nullptr;
  Result (*AllGather)(const void* from, void* to, size_t count, Type type,
                      Comm comm, simt::Stream stream) = nullptr;
  Result (*ReduceScatter)(const void* from, void* to, size_t count, Type type,
                          nccl::ReduceOp op, Comm comm,
                          simt::Stream stream) = nullptr;
  Result (*Broadcast)(const void* from, void* to, size_t count, Type type,
                      int root, Comm comm, simt::Stream stream) = nullptr;
  Result (*Send)(const void* from, size_t count, Type type, int peer, Comm comm,
                 simt::Stream stream) = nullptr;
  Result (*Recv)(void* to, size_t count, Type type, int peer, Comm comm,
                 simt::Stream stream) = nullptr;

  Result (*MemAlloc)(void** memory, size_t num_bytes) = nullptr;
  Result (*MemFree)(void* memory) = nullptr;
  Result (*CommWindowRegister)(Comm comm, void* memory, size_t num_bytes,
                               nccl::Window* window, int flags) = nullptr;
  Result (*CommWindowDeregister)(Comm comm, nccl::Window window) = nullptr;

  bool has_windows() const { return CommWindowRegister != nullptr; }
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_NCCL_API_H_
