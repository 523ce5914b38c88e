#include "benchmarks/ceilings.h"

#include <atomic>
#include <chrono>
#include <cstring>

#include "engine/base/status.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// An asm operand in a vector register.
#if defined(__aarch64__)
#define QUIRE_VECTOR(v) "w"(v)
#else
#define QUIRE_VECTOR(v) "x"(v)
#endif

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Floating-point operations done by `iterations` rounds of a body.
using PeakFunction = double (*)(int64_t iterations);
// Some function of all bytes, so that no load can be dropped.
using ReadFunction = uint64_t (*)(const char* data, int64_t num_bytes);

typedef float Float4 __attribute__((vector_size(16)));

double ScalarPeak(int64_t iterations) {
  Float4 acc[12] = {};
  Float4 a = {1.0f, 1.0f, 1.0f, 1.0f};
  Float4 b = {1e-8f, 1e-8f, 1e-8f, 1e-8f};
  asm volatile("" : "+" QUIRE_VECTOR(a), "+" QUIRE_VECTOR(b));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (Float4& v : acc) v = v * a + b;
  }
  for (Float4& v : acc) asm volatile("" : : QUIRE_VECTOR(v));
  return iterations * 12.0 * 4 * 2;
}

uint64_t ScalarRead(const char* data, int64_t num_bytes) {
  uint64_t sum[4] = {};
  for (int64_t i = 0; i + 32 <= num_bytes; i += 32) {
    uint64_t v[4];
    std::memcpy(v, data + i, 32);
    for (int j = 0; j < 4; ++j) sum[j] ^= v[j];
  }
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double Avx2Peak(int64_t iterations) {
  __m256 acc[12];
  for (__m256& v : acc) v = _mm256_setzero_ps();
  __m256 a = _mm256_set1_ps(1.0f);
  __m256 b = _mm256_set1_ps(1e-8f);
  asm volatile("" : "+x"(a), "+x"(b));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (__m256& v : acc) v = _mm256_fmadd_ps(a, b, v);
  }
  for (__m256& v : acc) asm volatile("" : : "x"(v));
  return iterations * 12.0 * 8 * 2;
}

__attribute__((target("avx512f"))) double Avx512Peak(int64_t iterations) {
  __m512 acc[24];
  for (__m512& v : acc) v = _mm512_setzero_ps();
  __m512 a = _mm512_set1_ps(1.0f);
  __m512 b = _mm512_set1_ps(1e-8f);
  asm volatile("" : "+v"(a), "+v"(b));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& v : acc) v = _mm512_fmadd_ps(a, b, v);
  }
  for (__m512& v : acc) asm volatile("" : : "v"(v));
  return iterations * 24.0 * 16 * 2;
}

__attribute__((target("avx512f,avx512bf16"))) double Avx512Bf16Peak(
    int64_t iterations) {
  __m512 acc[24];
  for (__m512& v : acc) v = _mm512_setzero_ps();
  __m512i a = _mm512_set1_epi32(0x3f803f80);  // Pairs of 1.0.
  __m512i b = _mm512_set1_epi32(0x32003200);
  asm volatile("" : "+v"(a), "+v"(b));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
    for (__m512& v : acc) v = _mm512_dpbf16_ps(v, (__m512bh)a, (__m512bh)b);
  }
  for (__m512& v : acc) asm volatile("" : : "v"(v));
  return iterations * 24.0 * 16 * 4;
}

// Assembly: g++ 12 keeps the accumulators of this intrinsic in memory.
__attribute__((target("avx512f,avx512vnni"))) double Avx512Int8Peak(
    int64_t iterations) {
  register __m512i a asm("zmm0") = _mm512_set1_epi32(0x01010101);
  register __m512i b asm("zmm1") = _mm512_set1_epi32(0x01ff01ff);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile(
        ".irp i, 8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,"
        "29,30,31\n"
        "vpdpbusd %%zmm1, %%zmm0, %%zmm\\i\n"
        ".endr"
        :
        : "v"(a), "v"(b)
        : "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
          "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
          "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29",
          "xmm30", "xmm31");
  }
  return iterations * 24.0 * 16 * 8;
}

__attribute__((target("avx2"))) uint64_t Avx2Read(const char* data,
                                                  int64_t num_bytes) {
  __m256i sum[8];
  for (__m256i& v : sum) v = _mm256_setzero_si256();
  for (int64_t i = 0; i + 256 <= num_bytes; i += 256) {
    for (int j = 0; j < 8; ++j) {
      sum[j] = _mm256_xor_si256(
          sum[j], _mm256_load_si256((const __m256i*)(data + i + 32 * j)));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
  return static_cast<uint64_t>(_mm256_extract_epi64(sum[0], 0));
}

__attribute__((target("avx512f"))) uint64_t Avx512Read(const char* data,
                                                       int64_t num_bytes) {
  __m512i sum[8];
  for (__m512i& v : sum) v = _mm512_setzero_si512();
  for (int64_t i = 0; i + 512 <= num_bytes; i += 512) {
    for (int j = 0; j < 8; ++j) {
      sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(data + i + 64 * j));
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm512_xor_si512(sum[0], sum[j]);
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum[0]));
}
#endif

PeakFunction GetPeak(Isa isa, bool is_bf16, bool is_int8) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Bf16 && is_bf16) return Avx512Bf16Peak;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) {
    if (is_int8 && __builtin_cpu_supports("avx512vnni")) return Avx512Int8Peak;
    return Avx512Peak;
  }
  if (isa == Isa::kAvx2) return Avx2Peak;
#endif
  return ScalarPeak;
}

ReadFunction GetRead(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) return Avx512Read;
  if (isa == Isa::kAvx2) return Avx2Read;
#endif
  return ScalarRead;
}

constexpr int64_t kReadChunk = int64_t{1} << 20;

}  // namespace

CeilingProbe::CeilingProbe(ThreadPool* pool, Isa isa, int64_t buffer_bytes)
    : pool_(pool), isa_(isa), buffer_(buffer_bytes / kReadChunk * kReadChunk) {
  pool_->ParallelFor(buffer_.num_bytes(), kReadChunk,
                     [&](int64_t begin, int64_t end, int) {
                       std::memset(buffer_.data() + begin, 1, end - begin);
                     });
}

double CeilingProbe::ReadBandwidth() {
  const ReadFunction read = GetRead(isa_);
  const int64_t num_bytes = buffer_.num_bytes() / kReadParts;
  const char* const part = buffer_.data() + next_part_ * num_bytes;
  next_part_ = (next_part_ + 1) % kReadParts;
  std::atomic<uint64_t> sink{0};
  const Clock::time_point start = Clock::now();
  pool_->ParallelFor(num_bytes, kReadChunk,
                     [&](int64_t begin, int64_t end, int) {
                       sink ^= read(part + begin, end - begin);
                     });
  return num_bytes / SecondsSince(start);
}

double CeilingProbe::Peak(double milliseconds, Kind kind) {
  const PeakFunction peak =
      GetPeak(isa_, kind == Kind::kBf16, kind == Kind::kInt8);
  constexpr int64_t kIterations = 2000;  // 10 to 30 us.
  const Clock::time_point calibration = Clock::now();
  peak(kIterations);
  const double seconds = SecondsSince(calibration);
  const int64_t num_items =
      1 + static_cast<int64_t>(milliseconds * 1e-3 / seconds *
                               pool_->num_threads());
  std::atomic<double> flops{0};
  const Clock::time_point start = Clock::now();
  pool_->ParallelFor(num_items, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) flops += peak(kIterations);
  });
  return flops / SecondsSince(start);
}

double CeilingProbe::F32Peak(double milliseconds) {
  return Peak(milliseconds, Kind::kF32);
}

double CeilingProbe::Bf16Peak(double milliseconds) {
  return Peak(milliseconds, Kind::kBf16);
}

double CeilingProbe::Int8Peak(double milliseconds) {
  return Peak(milliseconds, Kind::kInt8);
}

absl::StatusOr<std::unique_ptr<HostCeilingProbe>> HostCeilingProbe::Create(
    const PlacementRequest& request) {
  QUIRE_ASSIGN_OR_RETURN(const Isa isa, SelectIsa());
  QUIRE_ASSIGN_OR_RETURN(ThreadPlacement placement, PlaceThreads(request));
  auto probe = std::make_unique<HostCeilingProbe>(std::move(placement), isa);
  probe->pool.PinCaller();
  return probe;
}

}  // namespace quire
