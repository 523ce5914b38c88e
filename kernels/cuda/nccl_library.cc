#include "kernels/cuda/nccl_library.h"

#include <nccl.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire::cuda {
namespace {

// The first that knows ncclCommInitRankConfig's fields of today and CUDA 12.
constexpr int kLowestVersion = 21800;

// Declared by the library's own header, so that a call cannot disagree with it.
#define QUIRE_NCCL_FUNCTIONS(F) \
  F(ncclAllGather)              \
  F(ncclAllReduce)              \
  F(ncclBroadcast)              \
  F(ncclCommAbort)              \
  F(ncclCommDestroy)            \
  F(ncclCommGetAsyncError)      \
  F(ncclCommInitRank)           \
  F(ncclGetErrorString)         \
  F(ncclGetLastError)           \
  F(ncclGetUniqueId)            \
  F(ncclGetVersion)

struct NcclFunctions {
#define QUIRE_DECLARE(name) decltype(&::name) name = nullptr;
  QUIRE_NCCL_FUNCTIONS(QUIRE_DECLARE)
#undef QUIRE_DECLARE
  std::string path;
  int version = 0;  // 22809 is 2.28.9.

  absl::Status ToStatus(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return absl::OkStatus();
    const char* details = ncclGetLastError(nullptr);
    return absl::InternalError(
        absl::StrCat(what, ": ", ncclGetErrorString(result),
                     details == nullptr || *details == '\0' ? "" : ": ",
                     details == nullptr ? "" : details));
  }
};

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".",
                      version % 100);
}

absl::StatusOr<ncclDataType_t> ToNcclType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF16:
      return ncclFloat16;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI32:
      return ncclInt32;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("collective of ", DTypeName(dtype)));
  }
}

class Communicator : public NcclCommunicator {
 public:
  Communicator(const NcclFunctions& functions, ncclComm_t communicator)
      : functions_(functions), communicator_(communicator) {}
  ~Communicator() override {
    if (!is_aborted_.load()) functions_.ncclCommDestroy(communicator_);
  }

  absl::Status AllReduceSum(const void* from, void* to, int64_t count,
                            DType dtype, simt::Stream stream) override {
    QUIRE_ASSIGN_OR_RETURN(const ncclDataType_t type, ToNcclType(dtype));
    return functions_.ToStatus(
        functions_.ncclAllReduce(from, to, count, type, ncclSum, communicator_,
                                 stream),
        "ncclAllReduce");
  }
  absl::Status AllGather(const void* from, void* to, int64_t count, DType dtype,
                         simt::Stream stream) override {
    QUIRE_ASSIGN_OR_RETURN(const ncclDataType_t type, ToNcclType(dtype));
    return functions_.ToStatus(
        functions_.ncclAllGather(from, to, count, type, communicator_, stream),
        "ncclAllGather");
  }
  absl::Status Broadcast(const void* from, void* to, int64_t count, DType dtype,
                         int root, simt::Stream stream) override {
    QUIRE_ASSIGN_OR_RETURN(const ncclDataType_t type, ToNcclType(dtype));
    return functions_.ToStatus(
        functions_.ncclBroadcast(from, to, count, type, root, communicator_,
                                 stream),
        "ncclBroadcast");
  }
  absl::Status AsyncError() override {
    ncclResult_t error = ncclSuccess;
    QUIRE_RETURN_IF_ERROR(functions_.ToStatus(
        functions_.ncclCommGetAsyncError(communicator_, &error),
        "ncclCommGetAsyncError"));
    return functions_.ToStatus(error == ncclInProgress ? ncclSuccess : error,
                               "NCCL");
  }
  void Abort() override {
    // Frees the communicator, once.
    if (!is_aborted_.exchange(true)) functions_.ncclCommAbort(communicator_);
  }

 private:
  const NcclFunctions& functions_;
  const ncclComm_t communicator_;
  std::atomic<bool> is_aborted_ = false;
};

class Library : public NcclLibrary {
 public:
  explicit Library(NcclFunctions functions)
      : functions_(std::move(functions)) {}

  std::string name() const override {
    return absl::StrCat("NCCL ", VersionText(functions_.version));
  }
  absl::StatusOr<NcclId> MakeId() override {
    ncclUniqueId unique;
    QUIRE_RETURN_IF_ERROR(functions_.ToStatus(
        functions_.ncclGetUniqueId(&unique), "ncclGetUniqueId"));
    NcclId id;
    static_assert(sizeof(id) == sizeof(unique));
    std::memcpy(id.data(), &unique, sizeof(unique));
    return id;
  }
  absl::StatusOr<std::unique_ptr<NcclCommunicator>> Join(
      const NcclId& id, int rank, int num_ranks) override {
    ncclUniqueId unique;
    std::memcpy(&unique, id.data(), sizeof(unique));
    ncclComm_t communicator = nullptr;
    QUIRE_RETURN_IF_ERROR(functions_.ToStatus(
        functions_.ncclCommInitRank(&communicator, num_ranks, unique, rank),
        "ncclCommInitRank"));
    return std::make_unique<Communicator>(functions_, communicator);
  }

 private:
  const NcclFunctions functions_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclLibrary>> NcclLibrary::Open(
    const LibraryPlaces& places) {
  QUIRE_ASSIGN_OR_RETURN(const SharedLibrary library,
                         SharedLibrary::Open({"libnccl.so.2"}, places));
  NcclFunctions functions;
#define QUIRE_LOAD(name) \
  QUIRE_RETURN_IF_ERROR(library.Load(#name, &functions.name));
  QUIRE_NCCL_FUNCTIONS(QUIRE_LOAD)
#undef QUIRE_LOAD
  functions.path = library.path();
  QUIRE_RETURN_IF_ERROR(functions.ToStatus(
      functions.ncclGetVersion(&functions.version), "ncclGetVersion"));
  if (functions.version < kLowestVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        functions.path, " is NCCL ", VersionText(functions.version), "; ",
        VersionText(kLowestVersion), " or newer is needed"));
  }
  return std::make_unique<Library>(std::move(functions));
}

}  // namespace quire::cuda
