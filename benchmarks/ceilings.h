// What this machine can do at best, measured now: the denominators of kernel
// benchmarks. On shared machines both move within seconds, so a benchmark
// probes them next to every measurement.
#ifndef QUIRE_BENCHMARKS_CEILINGS_H_
#define QUIRE_BENCHMARKS_CEILINGS_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/thread_pool.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"

namespace quire {

// Thread-compatible.
class CeilingProbe {
 public:
  // Touches `buffer_bytes` (at least 1 GiB says more than a cache can hold).
  CeilingProbe(ThreadPool* pool, Isa isa, int64_t buffer_bytes);

  // Bytes per second that all threads of the pool together read from memory:
  // one eighth of the buffer, the next one at each call. A probe must be about
  // as short as what it is compared with, to have the same chance of a quiet
  // moment.
  double ReadBandwidth();

  // Floating-point operations per second of register-only multiply-adds (a
  // fused one counts 2) on all threads, over about `milliseconds`.
  double F32Peak(double milliseconds = 4);
  // The same of bf16 pairs into f32 (a VDPBF16PS of 16 lanes counts 64); what
  // f32 gives where the instruction set has no bf16 dot product.
  double Bf16Peak(double milliseconds = 4);
  // The same of sums of four products of bytes (a VPDPBUSD of 16 lanes counts
  // 128); what f32 gives where the CPU has no VNNI.
  double Int8Peak(double milliseconds = 4);

 private:
  static constexpr int kReadParts = 8;
  enum class Kind { kF32, kBf16, kInt8 };

  double Peak(double milliseconds, Kind kind);

  ThreadPool* pool_;
  Isa isa_;
  AlignedBuffer buffer_;
  int next_part_ = 0;
};

// A probe with a thread pool of its own, for the instruction set that this
// process uses.
struct HostCeilingProbe {
  // Its threads are where those of a backend with the same request are, the
  // caller's included. INVALID_ARGUMENT from SelectIsa and PlaceThreads.
  static absl::StatusOr<std::unique_ptr<HostCeilingProbe>> Create(
      const PlacementRequest& request);

  HostCeilingProbe(ThreadPlacement placement, Isa isa)
      : isa(isa),
        pool(std::move(placement)),
        probe(&pool, isa, int64_t{1} << 30) {}

  const Isa isa;
  ThreadPool pool;
  CeilingProbe probe;
};

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_CEILINGS_H_
