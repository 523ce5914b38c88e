// Our declarations of NCCL's functions against the library's own header: a
// check that this compiles.
#include <nccl.h>

#include <type_traits>

#include "kernels/cuda/nccl_api.h"

namespace quire::cuda {
namespace {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));
static_assert(int{nccl::kSuccess} == int{ncclSuccess});
static_assert(int{nccl::kFloat16} == int{ncclFloat16});
static_assert(int{nccl::kFloat32} == int{ncclFloat32});
static_assert(int{nccl::kBfloat16} == int{ncclBfloat16});
static_assert(int{nccl::kSum} == int{ncclSum});
static_assert(nccl::kWindowSymmetric == NCCL_WIN_COLL_SYMMETRIC);

// Ours and theirs name their types differently; a parameter agrees if it is
// passed in the same way.
template <typename Ours, typename Theirs>
constexpr bool kIsPassedAlike =
    sizeof(Ours) == sizeof(Theirs) &&
    std::is_pointer_v<Ours> ==
        std::is_pointer_v<Theirs>&& std::is_class_v<Ours> ==
        std::is_class_v<Theirs>;

template <typename Ours, typename Theirs>
constexpr bool kIsAlike = false;
template <typename R, typename... A, typename S, typename... B>
requires(sizeof...(A) ==
         sizeof...(B)) constexpr bool kIsAlike<R (*)(A...), S (*)(B...)> =
    kIsPassedAlike<R, S> && (kIsPassedAlike<A, B> && ...);

#define QUIRE_ASSERT_ALIKE(name) \
  static_assert(kIsAlike<decltype(NcclApi::name), decltype(&::nccl##name)>)
QUIRE_ASSERT_ALIKE(GetVersion);
QUIRE_ASSERT_ALIKE(GetUniqueId);
QUIRE_ASSERT_ALIKE(GetErrorString);
QUIRE_ASSERT_ALIKE(GetLastError);
QUIRE_ASSERT_ALIKE(CommInitRank);
QUIRE_ASSERT_ALIKE(CommDestroy);
QUIRE_ASSERT_ALIKE(CommAbort);
QUIRE_ASSERT_ALIKE(CommGetAsyncError);
QUIRE_ASSERT_ALIKE(AllReduce);
QUIRE_ASSERT_ALIKE(AllGather);
QUIRE_ASSERT_ALIKE(ReduceScatter);
QUIRE_ASSERT_ALIKE(Broadcast);
QUIRE_ASSERT_ALIKE(Send);
QUIRE_ASSERT_ALIKE(Recv);
#if NCCL_VERSION_CODE >= 22700
QUIRE_ASSERT_ALIKE(MemAlloc);
QUIRE_ASSERT_ALIKE(MemFree);
QUIRE_ASSERT_ALIKE(CommWindowRegister);
QUIRE_ASSERT_ALIKE(CommWindowDeregister);
#endif
#undef QUIRE_ASSERT_ALIKE

}  // namespace
}  // namespace quire::cuda
