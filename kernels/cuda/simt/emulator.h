// The emulation of a GPU on which kernels run where there is none: every thread
// of a CTA is a fiber of one operating-system thread.
//
// Every operation of a whole warp (shuffle, vote, ldmatrix, mma) is one
// primitive: each lane leaves a pointer to its arguments, and the last lane of
// the mask to arrive computes the results of all. A mask or an operation that
// differs between lanes, a mask that names a lane that has returned, and a
// barrier that nobody completes are errors that name the threads.
//
// A data race shows as a wrong number: shared memory starts as NaNs, and a test
// runs a kernel under every schedule, with asynchronous copies done at once and
// done as late as CpAsyncWait allows. A product that reads shared memory to
// which a copy is under way, or without FenceProxyAsync by whoever wrote it, is
// an error, and so is one whose operands are not the same when it is issued and
// when it is waited for; its sums are NaNs until then, and writing them is an
// error. So are a thread's second arrival at a barrier that is not complete,
// two sizes of one, and arrivals that complete none. Dynamic shared memory has
// exactly the size asked for, so AddressSanitizer sees overruns.
//
// Programmatic dependent launch: in a stream, the first CTAs of a kernel run up
// to WaitForPrevious before its predecessor runs at all. A thread that never
// waits, or lets the next kernel start before it has, is an error.
//
// Thread-compatible: one launch at a time in a process.
#ifndef QUIRE_KERNELS_CUDA_SIMT_EMULATOR_H_
#define QUIRE_KERNELS_CUDA_SIMT_EMULATOR_H_

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/cuda/simt/types.h"
#include "kernels/dtype.h"

#define SIMT_KERNEL(...) inline void
#define SIMT_UNROLL
#define SIMT_NO_UNROLL
#define SIMT_DEVICE inline
// Kernels of a build of their own have the form for the least shared memory.
#ifdef QUIRE_EMULATES_SM75
#define SIMT_HAS_SMALL_SHARED true
#else
#define SIMT_HAS_SMALL_SHARED false
#endif
#define SIMT_SHARED(T, name, n) \
  T* name = static_cast<T*>(    \
      ::quire::simt::emulator::StaticShared(sizeof(T) * (n), alignof(T)))
#define SIMT_DYNAMIC_SHARED(name) \
  unsigned char* name = ::quire::simt::emulator::DynamicShared()

namespace quire::simt {

namespace emulator {

// In which order the fibers of a CTA run. The warp orders run one warp until it
// meets a barrier of the CTA, and one that completes a barrier by ArriveNamed
// behind all that come before it: they find races between warps that no
// round-robin order finds.
enum class Schedule : uint8_t {
  kAscending,
  kDescending,
  kRandom,
  kWarpAscending,
  kWarpDescending,
};
inline constexpr Schedule kAllSchedules[] = {
    Schedule::kAscending, Schedule::kDescending, Schedule::kRandom,
    Schedule::kWarpAscending, Schedule::kWarpDescending};

struct Options {
  Schedule schedule = Schedule::kAscending;
  uint32_t seed = 1;  // Of Schedule::kRandom and the order of CTAs.
  // cp.async lands only when waited for.
  bool is_copy_lazy = false;
  bool counts_shared = false;  // Counts::num_shared; takes time.
  int capability = 120;        // Compute capability: 75 is 7.5.
};
Options& CurrentOptions();

// Sums since the last ResetCounts.
struct Counts {
  uint64_t num_switches = 0;
  uint64_t num_mma = 0;
  uint64_t num_wgmma = 0;  // Of a warp each.
  // 8x8 matrices read by ldmatrix, and the shared-memory passes they took: one
  // each without bank conflicts.
  uint64_t num_matrices = 0;
  uint64_t num_matrix_passes = 0;
  // The same for LoadShared, StoreShared and cp.async, where the options ask
  // for it: what the hardware serves at once (a warp's accesses of 4 bytes, a
  // quarter warp's of 16), and the passes.
  uint64_t num_shared = 0;
  uint64_t num_shared_passes = 0;
};
Counts& CurrentCounts();

// Work of a stream: a launch, or anything else (a copy).
struct QueueEntry {
  LaunchShape shape;
  std::function<void()> body;  // Of a launch: what each thread does.
  std::function<void()> work;  // Of anything else.
  // Of what waits for others than this stream: false if it must be asked again.
  std::function<bool()> attempt;
};

// What a Stream other than null points to: work in its order, which whoever
// made it runs (kernels/cuda/device_emulated.cc).
struct Queue {
  std::deque<QueueEntry> entries;
  // Nothing is kept: for measuring what enqueues.
  bool discards = false;
  // What is added becomes part of a graph.
  bool is_capturing = false;
  int64_t num_discarded = 0;

  template <typename Work>
  void Add(const LaunchShape& shape, const Work& body) {
    if (discards) {
      ++num_discarded;
    } else {
      entries.push_back({shape, body, nullptr});
    }
  }
  template <typename Work>
  void Add(const Work& work) {
    if (discards) {
      ++num_discarded;
    } else {
      entries.push_back({{}, nullptr, work});
    }
  }
};
inline Queue* AsQueue(Stream stream) {
  return reinterpret_cast<Queue*>(stream);
}

// What went wrong in the last launch; empty if nothing did.
const std::string& LastError();

// Runs `body` once per thread of the shape.
void Run(const LaunchShape& shape, absl::FunctionRef<void()> body);

// A launch whose first CTAs have run up to WaitForPrevious, while its
// predecessor has yet to run: the earliest that programmatic dependent launch
// allows. Whoever reads before the wait what the predecessor writes, or writes
// what it reads, gets other numbers than in order.
class EarlyLaunch;
// Null for a shape that does not wait for its predecessor. `body` outlives the
// launch.
std::shared_ptr<EarlyLaunch> StartEarly(const LaunchShape& shape,
                                        absl::FunctionRef<void()> body);
// Runs it to its end.
void Finish(EarlyLaunch& launch);

// ---- For the functions below.

// Ends the launch; the calling thread never continues. `operation`: the name of
// the warp-wide operation, if one is at fault.
[[noreturn]] void Fail(const char* message, const char* operation = nullptr);
// Fails below compute capability `least`, where simt/device.h traps.
inline void RequireCapability(int least, const char* operation) {
  if (CurrentOptions().capability < least) {
    Fail("this GPU has no such instruction", operation);
  }
}
// Of the running launch, static and dynamic, in place of kMaxSharedBytes.
void LimitShared(size_t num_bytes);
void* StaticShared(size_t num_bytes, size_t alignment);
unsigned char* DynamicShared();
uint32_t ThreadIdx();
uint32_t NumThreadsOfCta();
uint32_t CtaIdx(int axis);
uint32_t NumCtas(int axis);
void Barrier(int id, int num_threads);  // 0 threads: all of the CTA.
void ArriveAtBarrier(int id, int num_threads);
void GridBarrier();
void Yield();
void WaitForPrevious();
void LaunchNext();
// What a warp-wide operation computes: arguments by lane; null outside `mask`.
using Combine = void (*)(void* const* arguments, uint32_t mask);
void Collective(uint32_t mask, const char* name, void* argument,
                Combine combine);
void CopyAsync16(void* to, const void* from, bool is_valid);
// The running thread reads or writes shared memory at this place in the source.
void CountShared(const void* p, int num_bytes, const char* file, int line);
// The running thread has written shared memory.
void WroteShared(const void* p, int num_bytes);
void CommitCopies();
void WaitForCopies(int num_pending_groups);

}  // namespace emulator

// ---------------------------------------------------------------- threads

inline uint32_t ThreadX() { return emulator::ThreadIdx(); }
inline uint32_t NumThreads() { return emulator::NumThreadsOfCta(); }
inline uint32_t CtaX() { return emulator::CtaIdx(0); }
inline uint32_t CtaY() { return emulator::CtaIdx(1); }
inline uint32_t CtaZ() { return emulator::CtaIdx(2); }
inline uint32_t NumCtasX() { return emulator::NumCtas(0); }
inline uint32_t NumCtasY() { return emulator::NumCtas(1); }

inline void SyncThreads() { emulator::Barrier(0, 0); }
inline void SyncNamed(int id, int num_threads) {
  emulator::Barrier(id, num_threads);
}
inline void ArriveNamed(int id, int num_threads) {
  emulator::ArriveAtBarrier(id, num_threads);
}
inline void SyncWarp(uint32_t mask = kAllLanes) {
  int none = 0;
  emulator::Collective(mask, "SyncWarp", &none, [](void* const*, uint32_t) {});
}
inline void SyncGrid(uint32_t* /*counter*/) { emulator::GridBarrier(); }

inline void WaitForPrevious() { emulator::WaitForPrevious(); }
inline void LaunchNext() { emulator::LaunchNext(); }

// ---------------------------------------------------------------- warps

namespace emulator {
template <typename T>
struct ShuffleArgument {
  T value;
  int from;
  T result;
};
template <typename T>
T ShuffleFrom(uint32_t mask, T value, int from, const char* name) {
  ShuffleArgument<T> argument{value, from, value};
  Collective(mask, name, &argument, [](void* const* arguments, uint32_t mask) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (!(mask >> lane & 1)) continue;
      auto* a = static_cast<ShuffleArgument<T>*>(arguments[lane]);
      if (a->from < 0 || a->from >= kWarpSize) continue;
      if (!(mask >> a->from & 1))
        Fail("a shuffle reads a lane outside its mask");
      a->result =
          static_cast<const ShuffleArgument<T>*>(arguments[a->from])->value;
    }
  });
  return argument.result;
}
inline int Lane() { return static_cast<int>(ThreadIdx() % kWarpSize); }
}  // namespace emulator

template <typename T>
T Shuffle(T value, int from, uint32_t mask = kAllLanes) {
  return emulator::ShuffleFrom(mask, value, from & 31, "Shuffle");
}
template <typename T>
T ShuffleXor(T value, int lane_mask, uint32_t mask = kAllLanes) {
  return emulator::ShuffleFrom(mask, value, emulator::Lane() ^ lane_mask,
                               "ShuffleXor");
}
template <typename T>
T ShuffleDown(T value, int delta, uint32_t mask = kAllLanes) {
  const int from = emulator::Lane() + delta;
  return emulator::ShuffleFrom(
      mask, value, from < kWarpSize ? from : emulator::Lane(), "ShuffleDown");
}
uint32_t Ballot(bool predicate, uint32_t mask = kAllLanes);
uint32_t ReduceAdd(uint32_t value, uint32_t mask = kAllLanes);
uint32_t ReduceMax(uint32_t value, uint32_t mask = kAllLanes);

// ---------------------------------------------------------------- copies

inline void CpAsync16(void* shared, const void* global, bool is_valid = true,
                      const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
  emulator::CountShared(shared, 16, file, line);
  emulator::CopyAsync16(shared, global, is_valid);
}
inline void CpAsyncCommit() { emulator::CommitCopies(); }
template <int kNumPending>
void CpAsyncWait() {
  emulator::WaitForCopies(kNumPending);
}

// The compiler moves no access to memory across.
inline void KeepMemoryOrder() {}
inline Bytes16 Load16(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    emulator::Fail("a 16-byte load is not aligned");
  }
  Bytes16 bytes;
  std::memcpy(&bytes, p, 16);
  return bytes;
}
inline Bytes16 LoadStream16(const void* p) { return Load16(p); }
inline void Store16(void* p, const Bytes16& bytes) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    emulator::Fail("a 16-byte store is not aligned");
  }
  std::memcpy(p, &bytes, 16);
}

// Of shared memory, where conflicts of its banks matter: they are counted.
template <typename T>
T LoadShared(const T* p, const char* file = __builtin_FILE(),
             int line = __builtin_LINE()) {
  emulator::CountShared(p, sizeof(T), file, line);
  return *p;
}
template <typename T>
void StoreShared(T* p, T value, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  emulator::CountShared(p, sizeof(T), file, line);
  emulator::WroteShared(p, sizeof(T));
  *p = value;
}
inline Bytes16 LoadShared16(const void* p, const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) {
  emulator::CountShared(p, 16, file, line);
  return Load16(p);
}
inline void StoreShared16(void* p, const Bytes16& bytes,
                          const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  emulator::CountShared(p, 16, file, line);
  emulator::WroteShared(p, 16);
  Store16(p, bytes);
}

// ---------------------------------------------------------------- matrices

void LdMatrixX4(uint32_t (&registers)[4], const void* row);
void LdMatrixX4Transposed(uint32_t (&registers)[4], const void* row);

// c += a * b with the fragments of PTX's mma.sync m16n8k16 (16 bits) and
// m16n8k32 (8 bits).
void MmaBf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void MmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void MmaE4M3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// ---------------------------------------------------------------- warpgroups

struct SharedMatrix {
  const unsigned char* p;
  int leading_bytes;
  int stride_bytes;

  SharedMatrix At(int num_bytes) const {
    return {p + num_bytes, leading_bytes, stride_bytes};
  }
};
inline SharedMatrix SwizzledMatrix(const void* p, int leading_bytes,
                                   int stride_bytes) {
  return {static_cast<const unsigned char*>(p), leading_bytes, stride_bytes};
}

namespace emulator {

// What one lane gives to a product: its parts of 64 x 8 tiles of c, and of a.
struct WgmmaArgument {
  float (*c)[4];
  const uint32_t* a;
  SharedMatrix b;
  int num_tiles;
  bool is_bf16;
  bool is_transposed;
  bool accumulates;
};
void Wgmma(WgmmaArgument argument);
void WgmmaFence();
void WgmmaCommit();
void WgmmaWait(int num_pending_groups);
void FenceProxyAsync();

}  // namespace emulator

template <bool kTransposed, bool kAccumulates, int kNumTiles>
void WgmmaBf16(float (&c)[kNumTiles][4], const uint32_t (&a)[4],
               SharedMatrix b) {
  emulator::Wgmma({c, a, b, kNumTiles, true, kTransposed, kAccumulates});
}
template <bool kTransposed, bool kAccumulates, int kNumTiles>
void WgmmaF16(float (&c)[kNumTiles][4], const uint32_t (&a)[4],
              SharedMatrix b) {
  emulator::Wgmma({c, a, b, kNumTiles, false, kTransposed, kAccumulates});
}
template <int kNumPending, int kNumTiles, int kNumDone>
void WgmmaWaitAfter(float (&/*done*/)[kNumDone][4], bool /*is_either*/,
                    float (&/*sums*/)[kNumTiles][4]) {
  emulator::WgmmaWait(kNumPending);
}
template <int kNumSteps>
void WgmmaFence(uint32_t (&/*a*/)[kNumSteps][4]) {
  emulator::WgmmaFence();
}
template <int kNumSteps, int kNumTiles>
void WgmmaFence(uint32_t (&/*a*/)[kNumSteps][4],
                float (&/*sums*/)[kNumTiles][4]) {
  emulator::WgmmaFence();
}
inline void WgmmaCommit() { emulator::WgmmaCommit(); }
template <int kNumPending, int kNumTiles>
void WgmmaWait(float (&/*sums*/)[kNumTiles][4]) {
  emulator::WgmmaWait(kNumPending);
}
inline void FenceProxyAsync() { emulator::FenceProxyAsync(); }

// ---------------------------------------------------------------- atomics

// Fibers switch only inside the primitives: plain operations are atomic.
template <typename T>
T AtomicAdd(T* p, T value) {
  const T old = *p;
  *p = old + value;
  return old;
}
template <typename T>
T AtomicMax(T* p, T value) {
  const T old = *p;
  if (value > old) *p = value;
  return old;
}
template <typename T>
T AtomicCas(T* p, T expected, T desired) {
  const T old = *p;
  if (old == expected) *p = desired;
  return old;
}
inline void ThreadFence() {}

// ---------------------------------------------------------------- numbers

inline uint32_t PackBf16(float low, float high) {
  return FloatToBf16(low) | uint32_t{FloatToBf16(high)} << 16;
}
inline uint32_t PackF16(float low, float high) {
  return FloatToHalf(low) | uint32_t{FloatToHalf(high)} << 16;
}
using quire::E4M3ToFloat;
using quire::FloatToE4M3;

// As PTX's prmt: nibble i of the selector picks byte i of the result from the
// bytes of a (0 to 3) and b (4 to 7).
inline int LowestSetBit(uint32_t bits) { return std::countr_zero(bits); }
inline uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | uint64_t{b} << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= (bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}
// Two values of e4m3 in the low half.
inline uint32_t E4M3x2ToF16x2(uint32_t pair) {
  return PackF16(E4M3ToFloat(pair & 0xff), E4M3ToFloat(pair >> 8 & 0xff));
}
inline uint32_t E4M3x2ToBf16x2(uint32_t pair) {
  return PackBf16(E4M3ToFloat(pair & 0xff), E4M3ToFloat(pair >> 8 & 0xff));
}
inline uint32_t SubtractBf16x2(uint32_t a, uint32_t b) {
  emulator::RequireCapability(80, "SubtractBf16x2");
  return PackBf16(Bf16ToFloat(a & 0xffff) - Bf16ToFloat(b & 0xffff),
                  Bf16ToFloat(a >> 16) - Bf16ToFloat(b >> 16));
}
inline uint32_t SubtractF16x2(uint32_t a, uint32_t b) {
  return PackF16(HalfToFloat(a & 0xffff) - HalfToFloat(b & 0xffff),
                 HalfToFloat(a >> 16) - HalfToFloat(b >> 16));
}

// One instruction on a GPU, where the portable function branches.
inline float F16ToFloat(uint16_t bits) { return HalfToFloat(bits); }
// bits & mask | base, in one instruction: nvcc makes two of constants.
inline uint32_t MaskAndSet(uint32_t bits, uint32_t mask, uint32_t base) {
  return (bits & mask) | base;
}

inline float Exp2(float x) { return std::exp2(x); }
inline float Exp2Flushed(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;  // A NaN stays.
}
inline float Rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline float Tanh(float x) { return std::tanh(x); }
inline float Exp(float x) { return std::exp(x); }
inline float Product(float a, float b) { return a * b; }
inline float MultiplyAdd(float a, float b, float c) {
  return std::fma(a, b, c);
}

// ---------------------------------------------------------------- launch

// True if the launch worked; the emulator's error is in LastError. With a
// stream, the launch only waits in it.
template <typename... Parameters, typename... Arguments>
bool Launch(void (*kernel)(Parameters...), LaunchShape shape, Stream stream,
            Arguments... arguments) {
  if (SIMT_HAS_SMALL_SHARED && shape.small_shared_bytes > 0) {
    shape.dynamic_shared_bytes = shape.small_shared_bytes;
  }
  const auto body = [kernel, arguments...] {
    if (SIMT_HAS_SMALL_SHARED) emulator::LimitShared(kSmallSharedBytes);
    kernel(arguments...);
  };
  if (stream == nullptr) {
    emulator::Run(shape, body);
    return emulator::LastError().empty();
  }
  emulator::AsQueue(stream)->Add(shape, body);
  return true;
}

}  // namespace quire::simt

#endif  // QUIRE_KERNELS_CUDA_SIMT_EMULATOR_H_
