#include "tests/gpu/wrapper_kernels.h"

#include "kernels/cuda/simt/simt.h"
#include "kernels/dtype.h"

namespace quire::gpu_check {
namespace {

using namespace simt;  // NOLINT: what this file is about.

SIMT_DEVICE float AsFloat(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } both = {bits};
  return both.value;
}
SIMT_DEVICE uint32_t AsBits(float value) {
  union {
    float value;
    uint32_t bits;
  } both = {value};
  return both.bits;
}

// ---------------------------------------------------------------- threads

SIMT_KERNEL(128) Indices(const uint32_t* in, uint32_t* out) {
  const uint32_t cta = (CtaZ() * NumCtasY() + CtaY()) * NumCtasX() + CtaX();
  const uint32_t i = cta * NumThreads() + ThreadX();
  out[i] = in[i] ^ (CtaX() | CtaY() << 4 | CtaZ() << 8 | ThreadX() << 16);
}

SIMT_KERNEL(128) NamedBarriers(const uint32_t* in, uint32_t* out) {
  SIMT_SHARED(uint32_t, values, 128);
  const int half = static_cast<int>(ThreadX()) / 64;
  values[ThreadX()] = in[ThreadX()];
  SyncNamed(1 + half, 64);
  const uint32_t other = values[half * 64 + (63 - ThreadX() % 64)];
  SyncThreads();
  out[ThreadX()] = other + values[127 - ThreadX()];
}

SIMT_KERNEL(128) Arrivals(const uint32_t* in, uint32_t* out) {
  SIMT_SHARED(uint32_t, values, 64);
  const int i = ThreadX() % 64;
  if (ThreadX() < 64) {
    values[i] = in[i];
    ArriveNamed(1, 128);
    out[i] = in[64 + i];
  } else {
    SyncNamed(1, 128);
    out[64 + i] = values[63 - i];
  }
}

SIMT_KERNEL(32) GridBarrier(const uint32_t* in, uint32_t* out) {
  out[CtaX() * 32 + ThreadX()] = in[CtaX() * 32 + ThreadX()];
  ThreadFence();
  SyncGrid(nullptr);
  const uint32_t other = out[(CtaX() + 1) % NumCtasX() * 32 + ThreadX()];
  out[NumCtasX() * 32 + CtaX() * 32 + ThreadX()] = other;
}

SIMT_KERNEL(128) Atomics(const uint32_t* in, uint32_t* out) {
  const uint32_t value = in[CtaX() * 128 + ThreadX()];
  AtomicAdd(out, value);
  AtomicMax(out + 1, value);
  AtomicCas(out + 2, 0u, 1u);
  AtomicAdd(reinterpret_cast<int*>(out + 3), static_cast<int>(value >> 16));
}

// ---------------------------------------------------------------- warps

SIMT_KERNEL(64) Shuffles(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX(), value = in[t];
  uint32_t* mine = out + t * 8;
  mine[0] = Shuffle(value, static_cast<int>(in[64 + t / 32] % 32));
  mine[1] = ShuffleXor(value, static_cast<int>(in[66] % 32));
  mine[2] = ShuffleDown(value, static_cast<int>(in[67] % 32));
  mine[3] = AsBits(Shuffle(AsFloat(value), 31 - static_cast<int>(t % 32)));
  mine[4] = static_cast<uint32_t>(Shuffle(static_cast<int>(value), 9));
  mine[5] = ShuffleDown(value, 1);
  SyncWarp();
  mine[6] = Shuffle(uint64_t{value} << 20, 7) >> 20 & 0xffffffffu;
  mine[7] = ShuffleDown(value, 31);
}

SIMT_KERNEL(64) Votes(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX(), value = in[t];
  uint32_t* mine = out + t * 4;
  mine[0] = Ballot(value % 3 == 0);
  mine[1] = ReduceAdd(value);
  mine[2] = ReduceMax(value);
  // Of every bit, also where those below are clear.
  mine[3] = LowestSetBit((value | 0x80000000u) & (~0u << t % 32));
}

// ---------------------------------------------------------------- copies

SIMT_KERNEL(32) Copies(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  const Bytes16 a = Load16(in + t * 8);
  const Bytes16 b = LoadStream16(in + t * 8 + 4);
  Store16(out + t * 8, b);
  Store16(out + t * 8 + 4, a);
}

SIMT_KERNEL(32) AsyncCopies(const uint32_t* in, uint32_t* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const uint32_t t = ThreadX();
  // Two groups; what is not valid becomes zeros.
  for (int group = 0; group < 2; ++group) {
    const uint32_t* from = in + group * 128 + t * 4;
    CpAsync16(memory + group * 512 + t * 16, from, (in[256] >> t & 1) != 0);
    CpAsyncCommit();
  }
  CpAsyncWait<1>();
  SyncThreads();
  const auto* words = reinterpret_cast<const uint32_t*>(memory);
  out[t] = words[127 - t * 4];
  CpAsyncWait<0>();
  SyncThreads();
  for (int i = 0; i < 8; ++i) out[32 + t * 8 + i] = words[t * 8 + i];
}

// ---------------------------------------------------------------- matrices

template <bool kIsTransposed>
SIMT_KERNEL(32)
LoadMatrices(const uint32_t* in, uint32_t* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const uint32_t t = ThreadX();
  Store16(memory + t * 16, Load16(in + t * 4));
  SyncThreads();
  // The rows in an order of their own.
  const uint32_t row = (t * 5 + in[128]) % 32;
  uint32_t registers[4];
  if (kIsTransposed) {
    LdMatrixX4Transposed(registers, memory + row * 16);
  } else {
    LdMatrixX4(registers, memory + row * 16);
  }
  for (int i = 0; i < 4; ++i) out[t * 4 + i] = registers[i];
}

enum class Product : uint8_t { kBf16, kF16, kE4M3, kS8 };

template <Product kProduct>
SIMT_KERNEL(32)
Products(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  const uint32_t* mine = in + t * 6;
  const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
  if constexpr (kProduct == Product::kS8) {
    int32_t sums[4] = {1, 2, 3, static_cast<int32_t>(t)};
    MmaS8(sums, a, mine[4], mine[5]);
    for (int i = 0; i < 4; ++i) out[t * 4 + i] = static_cast<uint32_t>(sums[i]);
  } else {
    float sums[4] = {0.5f, -1.0f, 0.0f, static_cast<float>(t)};
    if constexpr (kProduct == Product::kBf16)
      MmaBf16(sums, a, mine[4], mine[5]);
    if constexpr (kProduct == Product::kF16) MmaF16(sums, a, mine[4], mine[5]);
    if constexpr (kProduct == Product::kE4M3)
      MmaE4M3(sums, a, mine[4], mine[5]);
    for (int i = 0; i < 4; ++i) out[t * 4 + i] = AsBits(sums[i]);
  }
}

// b has kColumns rows of 128 bytes: columns of depth 64, or each 64 columns at
// 64 depths. Of them the product of depths 16 to 31 and of 48 to 63.
template <bool kIsBf16, int kColumns, bool kTransposed>
SIMT_KERNEL(128)
WarpgroupProducts(const uint32_t* in, uint32_t* out) {
  SIMT_DYNAMIC_SHARED(memory);
  const uint32_t t = ThreadX();
  for (uint32_t i = t; i < kColumns * 8; i += 128) {
    const uint32_t row = i / 8;
    unsigned char* const to = memory + row * 128 + (i % 8 ^ row % 8) * 16;
    const uint32_t* const from = in + 1024 + i * 4;
    if constexpr (kTransposed) {
      CpAsync16(to, from);
    } else {
      StoreShared16(to, Load16(from));
    }
  }
  CpAsyncCommit();
  CpAsyncWait<0>();
  FenceProxyAsync();
  SyncThreads();
  uint32_t a[2][4];
  for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = in[t * 8 + i];
  float sums[kColumns / 8][4];  // Of what was there nothing stays.
  for (auto& tile : sums) {
    for (float& sum : tile) sum = 1e6f;
  }
  const SharedMatrix b = SwizzledMatrix(memory, 64 * 128, 1024);
  constexpr int kStep = kTransposed ? 2048 : 32;  // 16 of depth.
  WgmmaFence(a, sums);
  if constexpr (kIsBf16) {
    WgmmaBf16<kTransposed, false>(sums, a[0], b.At(kStep));
    WgmmaBf16<kTransposed, true>(sums, a[1], b.At(3 * kStep));
  } else {
    WgmmaF16<kTransposed, false>(sums, a[0], b.At(kStep));
    WgmmaF16<kTransposed, true>(sums, a[1], b.At(3 * kStep));
  }
  WgmmaCommit();
  WgmmaWait<0>(sums);
  for (int i = 0; i < kColumns / 2; ++i) {
    out[t * (kColumns / 2) + i] = AsBits(sums[i / 4][i % 4]);
  }
}

// ---------------------------------------------------------------- numbers

SIMT_KERNEL(128) Packs(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  const float low = AsFloat(in[t * 2]), high = AsFloat(in[t * 2 + 1]);
  out[t * 2] = PackBf16(low, high);
  out[t * 2 + 1] = PackF16(low, high);
}

SIMT_KERNEL(128) Pairs(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t * 2] = E4M3x2ToF16x2(in[t] & 0xffff);
  out[t * 2 + 1] = E4M3x2ToBf16x2(in[t] & 0xffff);
}

SIMT_KERNEL(128) PermutedBytes(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t] = PermuteBytes(in[t * 3], in[t * 3 + 1], in[t * 3 + 2] & 0x7777);
}

template <bool kIsBf16>
SIMT_KERNEL(128)
Differences(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX(), a = in[t * 2], b = in[t * 2 + 1];
  if constexpr (kIsBf16) {
    out[t] = SubtractBf16x2(a, b);
  } else {
    out[t] = SubtractF16x2(a, b);
  }
}

SIMT_KERNEL(128) Widens(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t * 2] = AsBits(Bf16ToFloat(static_cast<uint16_t>(in[t])));
  out[t * 2 + 1] = AsBits(HalfToFloat(static_cast<uint16_t>(in[t])));
}

SIMT_KERNEL(128) WidensHalves(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t * 2] = AsBits(F16ToFloat(static_cast<uint16_t>(in[t])));
  out[t * 2 + 1] = AsBits(F16ToFloat(static_cast<uint16_t>(in[t] >> 16)));
}

SIMT_KERNEL(128) MaskedBits(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t] = MaskAndSet(in[t * 3], in[t * 3 + 1], in[t * 3 + 2]);
}

SIMT_KERNEL(256) AllE4M3(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  out[t] = AsBits(simt::E4M3ToFloat(static_cast<uint8_t>(t)));
  out[256 + t] = simt::FloatToE4M3(AsFloat(in[t]));
  // Between two values: ties.
  const float tie =
      0.5f * (simt::E4M3ToFloat(static_cast<uint8_t>(t & 0x7e)) +
              simt::E4M3ToFloat(static_cast<uint8_t>((t & 0x7e) + 1)));
  out[512 + t] = (t & 0x7e) == 0x7e ? 0u : simt::FloatToE4M3(tie);
}

SIMT_KERNEL(128) RoundedProducts(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  const float a = AsFloat(in[t * 3]), b = AsFloat(in[t * 3 + 1]),
              c = AsFloat(in[t * 3 + 2]);
  out[t * 2] = AsBits(simt::Product(a, b) + c);  // Not fused.
  out[t * 2 + 1] = AsBits(MultiplyAdd(a, b, c));
}

SIMT_KERNEL(128) Functions(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ThreadX();
  const float x = AsFloat(in[t]);
  uint32_t* mine = out + t * 5;
  mine[0] = AsBits(Exp2(x));
  mine[1] = AsBits(Exp(x));
  mine[2] = AsBits(Tanh(x));
  mine[3] = AsBits(Rsqrt(x < 0 ? -x : x));
  mine[4] = AsBits(Exp2Flushed(x));
}

// ---------------------------------------------------------------- launches

// Writes for a while after the next kernel may have started.
SIMT_KERNEL(128) Produce(const uint32_t* in, uint32_t* out) {
  WaitForPrevious();
  LaunchNext();
  for (int i = 0; i < 64; ++i) {
    const uint32_t at = (CtaX() * 64 + i) * 128 + ThreadX();
    out[at] = in[at % 4096] + at;
  }
}
SIMT_KERNEL(128) Consume(uint32_t* out) {
  WaitForPrevious();
  LaunchNext();
  for (int i = 0; i < 64; ++i) {
    const uint32_t at = (CtaX() * 64 + i) * 128 + ThreadX();
    out[at] = out[at] * 3 + 1;
  }
}

template <void (*kKernel)(const uint32_t*, uint32_t*)>
bool LaunchCta(const uint32_t* in, uint32_t* out, const LaunchShape& shape,
               Stream stream) {
  return Launch(kKernel, shape, stream, in, out);
}

// A kernel as a function without captures.
#define WRAPPER_LAUNCH(kernel, ...)                                       \
  +[](const uint32_t* in, uint32_t* out, Stream stream) {                 \
    return LaunchCta<&kernel>(in, out, LaunchShape{__VA_ARGS__}, stream); \
  }

// By warpgroups, on 9.0 alone.
template <bool kIsBf16, int kColumns, bool kTransposed>
WrapperCase WarpgroupCase(const char* name) {
  return {name,
          kIsBf16 ? Input::kBf16 : Input::kF16,
          Output::kFloatSums,
          90,
          1024 + kColumns * 32,
          kColumns * 64,
          +[](const uint32_t* in, uint32_t* out, Stream stream) {
            return Launch(
                &WarpgroupProducts<kIsBf16, kColumns, kTransposed>,
                {.num_threads = 128, .dynamic_shared_bytes = kColumns * 128},
                stream, in, out);
          },
          90};
}

bool LaunchDependents(const uint32_t* in, uint32_t* out, Stream stream) {
  const LaunchShape shape = {
      .num_ctas_x = 64, .num_threads = 128, .waits_for_previous = true};
  return Launch(&Produce, shape, stream, in, out) &&
         Launch(&Consume, shape, stream, out) &&
         Launch(&Consume, shape, stream, out);
}

}  // namespace

const std::vector<WrapperCase>& WrapperCases() {
  static const std::vector<WrapperCase> cases = {
      {"thread and CTA indices", Input::kBits, Output::kBits, 75, 768, 768,
       WRAPPER_LAUNCH(Indices, .num_ctas_x = 2, .num_ctas_y = 3,
                      .num_ctas_z = 1, .num_threads = 128)},
      {"named barriers", Input::kBits, Output::kBits, 75, 128, 128,
       WRAPPER_LAUNCH(NamedBarriers, .num_threads = 128)},
      {"arrivals at barriers", Input::kBits, Output::kBits, 75, 128, 128,
       WRAPPER_LAUNCH(Arrivals, .num_threads = 128)},
      {"grid barrier", Input::kBits, Output::kBits, 75, 256, 512,
       WRAPPER_LAUNCH(GridBarrier, .num_ctas_x = 8, .num_threads = 32,
                      .is_cooperative = true)},
      {"atomics", Input::kBits, Output::kBits, 75, 512, 4,
       WRAPPER_LAUNCH(Atomics, .num_ctas_x = 4, .num_threads = 128)},
      {"shuffles", Input::kBits, Output::kBits, 75, 68, 512,
       WRAPPER_LAUNCH(Shuffles, .num_threads = 64)},
      {"votes and reductions", Input::kBits, Output::kBits, 75, 64, 256,
       WRAPPER_LAUNCH(Votes, .num_threads = 64)},
      {"16-byte loads and stores", Input::kBits, Output::kBits, 75, 256, 256,
       WRAPPER_LAUNCH(Copies, .num_threads = 32)},
      {"cp.async", Input::kBits, Output::kBits, 75, 257, 288,
       WRAPPER_LAUNCH(AsyncCopies, .num_threads = 32,
                      .dynamic_shared_bytes = 1024)},
      {"ldmatrix", Input::kBits, Output::kBits, 75, 129, 128,
       WRAPPER_LAUNCH(LoadMatrices<false>, .num_threads = 32,
                      .dynamic_shared_bytes = 512)},
      {"ldmatrix.trans", Input::kBits, Output::kBits, 75, 129, 128,
       WRAPPER_LAUNCH(LoadMatrices<true>, .num_threads = 32,
                      .dynamic_shared_bytes = 512)},
      {"mma bf16", Input::kBf16, Output::kFloatSums, 80, 192, 128,
       WRAPPER_LAUNCH(Products<Product::kBf16>, .num_threads = 32)},
      {"mma f16", Input::kF16, Output::kFloatSums, 75, 192, 128,
       WRAPPER_LAUNCH(Products<Product::kF16>, .num_threads = 32)},
      {"mma e4m3", Input::kE4M3, Output::kE4M3Sums, 89, 192, 128,
       WRAPPER_LAUNCH(Products<Product::kE4M3>, .num_threads = 32)},
      {"mma s8", Input::kBits, Output::kBits, 80, 192, 128,
       WRAPPER_LAUNCH(Products<Product::kS8>, .num_threads = 32)},
      WarpgroupCase<true, 64, false>("wgmma bf16 n64"),
      WarpgroupCase<true, 64, true>("wgmma bf16 n64 transposed"),
      WarpgroupCase<true, 128, false>("wgmma bf16 n128"),
      WarpgroupCase<true, 128, true>("wgmma bf16 n128 transposed"),
      WarpgroupCase<false, 64, false>("wgmma f16 n64"),
      WarpgroupCase<false, 64, true>("wgmma f16 n64 transposed"),
      WarpgroupCase<false, 128, false>("wgmma f16 n128"),
      WarpgroupCase<false, 128, true>("wgmma f16 n128 transposed"),
      {"to bf16 and f16", Input::kFloats, Output::kHalves, 75, 256, 256,
       WRAPPER_LAUNCH(Packs, .num_threads = 128)},
      {"from bf16 and f16", Input::kBits, Output::kFloats, 75, 128, 256,
       WRAPPER_LAUNCH(Widens, .num_threads = 128)},
      {"f16 in one instruction", Input::kBits, Output::kFloats, 75, 128, 256,
       WRAPPER_LAUNCH(WidensHalves, .num_threads = 128)},
      {"masked bits", Input::kBits, Output::kBits, 75, 384, 128,
       WRAPPER_LAUNCH(MaskedBits, .num_threads = 128)},
      {"e4m3", Input::kFloats, Output::kFloats, 75, 256, 768,
       WRAPPER_LAUNCH(AllE4M3, .num_threads = 256)},
      {"pairs of e4m3", Input::kBits, Output::kHalves, 75, 128, 256,
       WRAPPER_LAUNCH(Pairs, .num_threads = 128)},
      {"permuted bytes", Input::kBits, Output::kBits, 75, 384, 128,
       WRAPPER_LAUNCH(PermutedBytes, .num_threads = 128)},
      {"differences of bf16", Input::kBf16, Output::kHalves, 80, 256, 128,
       WRAPPER_LAUNCH(Differences<true>, .num_threads = 128)},
      {"differences of f16", Input::kF16, Output::kHalves, 75, 256, 128,
       WRAPPER_LAUNCH(Differences<false>, .num_threads = 128)},
      {"rounded products", Input::kFloats, Output::kFloats, 75, 384, 256,
       WRAPPER_LAUNCH(RoundedProducts, .num_threads = 128)},
      {"exp2, exp, tanh, rsqrt, exp2 flushed", Input::kFloats,
       Output::kFloatApprox, 75, 128, 640,
       WRAPPER_LAUNCH(Functions, .num_threads = 128)},
      {"dependent launches", Input::kBits, Output::kBits, 75, 4096,
       64 * 64 * 128, &LaunchDependents},
  };
  return cases;
}

}  // namespace quire::gpu_check
