// Our declarations of NCCL's functions against the library's own header.
#include "kernels/cuda/nccl_api.h"

#include <nccl.h>

#include <type_traits>

#include "gtest/gtest.h"

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

TEST(NcclApiTest, FunctionsAreDeclaredAsInTheHeader) {
#define QUIRE_EXPECT_ALIKE(name)                                            \
  EXPECT_TRUE((kIsAlike<decltype(NcclApi::name), decltype(&::nccl##name)>)) \
      << #name
  QUIRE_EXPECT_ALIKE(GetVersion);
  QUIRE_EXPECT_ALIKE(GetUniqueId);
  QUIRE_EXPECT_ALIKE(GetErrorString);
  QUIRE_EXPECT_ALIKE(GetLastError);
  QUIRE_EXPECT_ALIKE(CommInitRank);
  QUIRE_EXPECT_ALIKE(CommDestroy);
  QUIRE_EXPECT_ALIKE(CommAbort);
  QUIRE_EXPECT_ALIKE(CommGetAsyncError);
  QUIRE_EXPECT_ALIKE(AllReduce);
  QUIRE_EXPECT_ALIKE(AllGather);
  QUIRE_EXPECT_ALIKE(ReduceScatter);
  QUIRE_EXPECT_ALIKE(Broadcast);
  QUIRE_EXPECT_ALIKE(Send);
  QUIRE_EXPECT_ALIKE(Recv);
#if NCCL_VERSION_CODE >= 22700
  QUIRE_EXPECT_ALIKE(MemAlloc);
  QUIRE_EXPECT_ALIKE(MemFree);
  QUIRE_EXPECT_ALIKE(CommWindowRegister);
  QUIRE_EXPECT_ALIKE(CommWindowDeregister);
#endif
#undef QUIRE_EXPECT_ALIKE
}

}  // namespace
}  // namespace quire::cuda
