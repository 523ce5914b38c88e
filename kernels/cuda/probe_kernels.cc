#include "kernels/cuda/probe_kernels.h"

#include "kernels/cuda/planted_bug.h"
#include "kernels/cuda/simt/simt.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kNumWarps = kThreads / 32;
// In flight in each thread: 4 * 16 bytes * 2048 threads of an SM are 128 KiB,
// four times what latency times bandwidth asks for (32 KiB of an SM).
constexpr int kUnroll = 4;

simt::LaunchShape Shape(int num_ctas) {
  return {.num_ctas_x = static_cast<uint32_t>(num_ctas),
          .num_threads = kThreads,
          .waits_for_previous = true};
}

SIMT_KERNEL(kThreads)
ReadProbeKernel(const ProbeArguments arguments, uint32_t* out) {
  SIMT_SHARED(uint32_t, sums, kNumWarps);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t stride = int64_t{kThreads} * arguments.num_ctas;
  const auto* from = static_cast<const unsigned char*>(arguments.from);
  uint32_t sum = 0;
  int64_t i = int64_t{simt::CtaX()} * kThreads + simt::ThreadX();
  for (; i + (kUnroll - 1) * stride < arguments.num_units;
       i += kUnroll * stride) {
    simt::Bytes16 loaded[kUnroll];
    SIMT_UNROLL
    for (int k = 0; k < kUnroll; ++k) {
      loaded[k] = simt::LoadStream16(from + 16 * (i + k * stride));
    }
    SIMT_UNROLL
    for (int k = 0; k < kUnroll; ++k) {
      SIMT_UNROLL
      for (int w = 0; w < 4; ++w) sum ^= loaded[k].words[w];
    }
  }
  for (; i < arguments.num_units; i += stride) {
    const simt::Bytes16 loaded = simt::LoadStream16(from + 16 * i);
    SIMT_UNROLL
    for (int w = 0; w < 4; ++w) sum ^= loaded.words[w];
  }
  SIMT_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum ^= simt::ShuffleXor(sum, mask);
  if (simt::ThreadX() % 32 == 0) sums[simt::ThreadX() / 32] = sum;
  if (!HasPlantedBug(PlantedBug::kProbeNoBarrier)) simt::SyncThreads();
  if (simt::ThreadX() != 0) return;
  for (int warp = 1; warp < kNumWarps; ++warp) sum ^= sums[warp];
  out[simt::CtaX()] = sum;
}

SIMT_KERNEL(kThreads)
CopyProbeKernel(const ProbeArguments arguments, unsigned char* to) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t stride = int64_t{kThreads} * arguments.num_ctas;
  const auto* from = static_cast<const unsigned char*>(arguments.from);
  int64_t i = int64_t{simt::CtaX()} * kThreads + simt::ThreadX();
  for (; i + (kUnroll - 1) * stride < arguments.num_units;
       i += kUnroll * stride) {
    simt::Bytes16 loaded[kUnroll];
    SIMT_UNROLL
    for (int k = 0; k < kUnroll; ++k) {
      loaded[k] = simt::LoadStream16(from + 16 * (i + k * stride));
    }
    SIMT_UNROLL
    for (int k = 0; k < kUnroll; ++k) {
      simt::Store16(to + 16 * (i + k * stride), loaded[k]);
    }
  }
  for (; i < arguments.num_units; i += stride) {
    if (HasPlantedBug(PlantedBug::kProbeCopyLosesTheRest)) break;
    simt::Store16(to + 16 * i, simt::LoadStream16(from + 16 * i));
  }
}

SIMT_KERNEL(kThreads)
RandomBf16Kernel(unsigned char* out, int64_t num_units, int num_ctas) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t stride = int64_t{kThreads} * num_ctas;
  for (int64_t i = int64_t{simt::CtaX()} * kThreads + simt::ThreadX();
       i < num_units; i += stride) {
    simt::Bytes16 values;
    for (int w = 0; w < 4; ++w) {
      // A round of a 64-bit mixer (Steele et al. 2014, SplitMix64).
      uint64_t bits = (4 * i + w) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
      bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
      bits ^= bits >> 27;
      // Signs and mantissas; the exponent of 0.5.
      values.words[w] =
          (static_cast<uint32_t>(bits >> 32) & 0x807f807fu) | 0x3f003f00u;
    }
    simt::Store16(out + 16 * i, values);
  }
}

}  // namespace

bool LaunchReadProbe(const ProbeArguments& arguments, uint32_t* out,
                     simt::Stream stream) {
  return simt::Launch(&ReadProbeKernel, Shape(arguments.num_ctas), stream,
                      arguments, out);
}

bool LaunchCopyProbe(const ProbeArguments& arguments, void* to,
                     simt::Stream stream) {
  return simt::Launch(&CopyProbeKernel, Shape(arguments.num_ctas), stream,
                      arguments, static_cast<unsigned char*>(to));
}

bool LaunchRandomBf16(void* out, int64_t num_units, int num_ctas,
                      simt::Stream stream) {
  return simt::Launch(&RandomBf16Kernel, Shape(num_ctas), stream,
                      static_cast<unsigned char*>(out), num_units, num_ctas);
}

}  // namespace quire::cuda
