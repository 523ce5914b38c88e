#include "kernels/cuda/nccl_library.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire::cuda {
namespace {

// The first for CUDA 12.
constexpr int kLowestVersion = 21800;
// Windows of all ranks came with 2.27. From 2.28 to 2.30.4 the kernels that sum
// them are launched before their predecessor has ended (on compute capability
// 9.0 and newer), and do not wait for it: what a kernel that lets the next one
// begin writes after that is summed before it is there (NVIDIA/nccl, commit
// 2948185d, which mends it in 2.30.7).
bool HasUsableWindows(int version) {
  return (version >= 22700 && version < 22800) || version >= 23007;
}

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".",
                      version % 100);
}

}  // namespace

absl::Status NcclLibrary::ToStatus(nccl::Result result,
                                   const char* what) const {
  if (result == nccl::kSuccess) return absl::OkStatus();
  const char* details = api_.GetLastError(nullptr);
  const bool has_details = details != nullptr && *details != '\0';
  return absl::InternalError(
      absl::StrCat(what, ": ", api_.GetErrorString(result),
                   has_details ? ": " : "", has_details ? details : ""));
}

std::string NcclLibrary::name() const {
  return absl::StrCat("NCCL ", VersionText(api_.version));
}

absl::StatusOr<NcclId> NcclLibrary::MakeId() const {
  NcclId id = {};
  QUIRE_RETURN_IF_ERROR(ToStatus(api_.GetUniqueId(&id), "ncclGetUniqueId"));
  return id;
}

absl::StatusOr<NcclLibrary> NcclLibrary::Open(const LibraryPlaces& places) {
  QUIRE_ASSIGN_OR_RETURN(const SharedLibrary library,
                         SharedLibrary::Open({"libnccl.so.2"}, places));
  NcclApi api;
  // The version first: it says more than the name of a function that is
  // missing.
  QUIRE_RETURN_IF_ERROR(library.Load("ncclGetVersion", &api.GetVersion));
  if (api.GetVersion(&api.version) != nccl::kSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat(library.path(), " does not say its version"));
  }
  if (api.version < kLowestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(library.path(), " is NCCL ", VersionText(api.version),
                     "; ", VersionText(kLowestVersion), " or newer is needed"));
  }
#define QUIRE_LOAD(name) \
  QUIRE_RETURN_IF_ERROR(library.Load("nccl" #name, &api.name))
  QUIRE_LOAD(GetUniqueId);
  QUIRE_LOAD(GetErrorString);
  QUIRE_LOAD(GetLastError);
  QUIRE_LOAD(CommInitRank);
  QUIRE_LOAD(CommDestroy);
  QUIRE_LOAD(CommAbort);
  QUIRE_LOAD(CommGetAsyncError);
  QUIRE_LOAD(AllReduce);
  QUIRE_LOAD(AllGather);
  QUIRE_LOAD(ReduceScatter);
  QUIRE_LOAD(Broadcast);
  QUIRE_LOAD(Send);
  QUIRE_LOAD(Recv);
  if (HasUsableWindows(api.version)) {
    QUIRE_LOAD(MemAlloc);
    QUIRE_LOAD(MemFree);
    QUIRE_LOAD(CommWindowRegister);
    QUIRE_LOAD(CommWindowDeregister);
  }
#undef QUIRE_LOAD
  return NcclLibrary(library.path(), api);
}

}  // namespace quire::cuda
