// Each wrapper of kernels/cuda/simt on random bits:
//   wrapper_check --write FILE     what this build's device computes
//   wrapper_check --compare FILE   compares it with what FILE says
// The emulation writes, a GPU compares. Exits 0 if all agree, 1 if not, 69 if
// there is no device.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "kernels/cuda/device.h"
#include "kernels/dtype.h"
#include "tests/gpu/wrapper_kernels.h"

namespace quire::gpu_check {
namespace {

// Of a case, unless it is large.
constexpr int kNumRounds = 20;
constexpr int kNumLargeRounds = 2;

float AsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
uint32_t AsBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

uint32_t DrawFloat(SimulationRandom& random) {
  // Beyond the values of every format, below them, ties, and what is no number.
  switch (random.Below(16)) {
    case 0:
      return AsBits(static_cast<float>(random.Uniform() * 2 - 1) * 1e6f);
    case 1:
      return AsBits(static_cast<float>(random.Uniform() * 2 - 1) * 1e-6f);
    case 2: {
      constexpr uint32_t kSpecial[] = {0,          0x80000000, 0x7f800000,
                                       0xff800000, 0x7fc00000, 0x477fe000,
                                       0x477ff000, 0x43e00000, 0x43e80000};
      return kSpecial[random.Below(std::size(kSpecial))];
    }
    case 3:  // Halfway between two values of bf16.
      return (static_cast<uint32_t>(random.Next()) & 0x3fff0000) | 0x8000;
    default:
      return AsBits(static_cast<float>(random.Uniform() * 16 - 8));
  }
}

uint32_t DrawWord(SimulationRandom& random, Input input) {
  const auto value = [&] {
    return static_cast<float>(random.Uniform() * 4 - 2);
  };
  switch (input) {
    case Input::kBits:
      break;
    case Input::kFloats:
      return DrawFloat(random);
    case Input::kBf16: {
      const uint32_t low = FloatToBf16(value());
      return low | uint32_t{FloatToBf16(value())} << 16;
    }
    case Input::kF16: {
      const uint32_t low = FloatToHalf(value());
      return low | uint32_t{FloatToHalf(value())} << 16;
    }
    case Input::kE4M3: {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) {
        // Magnitudes to 3.5, so that sums stay exact in f32 but for rounding.
        word |= static_cast<uint32_t>(random.Below(0x47) | random.Below(2) << 7)
                << (8 * i);
      }
      return word;
    }
  }
  return static_cast<uint32_t>(random.Next());
}

bool IsNan(float value) { return value != value; }

bool Agree(Output output, uint32_t got, uint32_t expected) {
  if (got == expected) return true;
  const float a = AsFloat(got), b = AsFloat(expected);
  switch (output) {
    case Output::kBits:
      return false;
    case Output::kFloats:
      return IsNan(a) && IsNan(b);
    case Output::kHalves: {
      // Above every number of f16, and above those of bf16 that are drawn.
      const auto agree = [](uint32_t half, uint32_t other) {
        return half == other ||
               ((half & 0x7fff) > 0x7c00 && (other & 0x7fff) > 0x7c00);
      };
      return agree(got & 0xffff, expected & 0xffff) &&
             agree(got >> 16, expected >> 16);
    }
    case Output::kFloatSums:
      // At most 33 terms of magnitude up to 12.25 and a start below 32;
      // tensor cores may cut, not round, each addition (Fasi et al. 2021), and
      // products are aligned to the largest.
      return std::abs(a - b) <= 33 * 2 * 0x1p-23f * 128;
    case Output::kE4M3Sums:
      // Hopper keeps about 14 bits of such sums (DeepSeek-V3, arXiv:2412.19437,
      // section 3.5.2): 33 additions relative to 16, and as much again.
      return std::abs(a - b) <= 33 * 0x1p-13f * 32;
    case Output::kFloatApprox:
      // CUDA C++ Programming Guide, "Mathematical Functions": 2 ulp at most.
      // The host's library has an error of its own.
      return (IsNan(a) && IsNan(b)) ||
             std::abs(a - b) <= 4 * 0x1p-23f * std::abs(b) + 0x1p-126f;
  }
  return false;
}

void PrintUsage() {
  std::fprintf(stderr, "usage: wrapper_check --write|--compare FILE\n");
}

int Run(bool is_write, const std::string& path) {
  auto device = cuda::CreateDevice(0);
  if (!device.ok()) {
    std::fprintf(stderr, "wrapper_check: %s\n",
                 std::string(device.status().message()).c_str());
    return 69;
  }
  const int capability =
      (*device)->properties().major * 10 + (*device)->properties().minor;
  std::fstream file(
      path, std::ios::binary | (is_write ? std::ios::out : std::ios::in));
  int num_bad = 0, num_skipped = 0, num_checked = 0;
  for (const WrapperCase& c : WrapperCases()) {
    const bool is_supported = capability >= c.lowest_capability &&
                              capability <= c.highest_capability;
    SimulationRandom random(1);
    int bad_words = 0;
    const int num_rounds = c.num_out > 10000 ? kNumLargeRounds : kNumRounds;
    for (int round = 0; round < num_rounds; ++round) {
      std::vector<uint32_t> in(c.num_in), out(c.num_out, 0),
          expected(c.num_out);
      for (uint32_t& word : in) word = DrawWord(random, c.input);
      if (!is_write) {
        file.read(reinterpret_cast<char*>(expected.data()), c.num_out * 4);
        if (!file) {
          std::fprintf(stderr, "wrapper_check: %s ends early\n", path.c_str());
          return 1;
        }
      }
      if (!is_supported) continue;
      auto d_in = cuda::DeviceBuffer::Create(**device, c.num_in * 4);
      auto d_out = cuda::DeviceBuffer::Create(**device, c.num_out * 4);
      absl::Status status = d_in.ok() ? d_out.status() : d_in.status();
      const auto then = [&](absl::Status next) {
        if (status.ok()) status = std::move(next);
      };
      if (status.ok()) {
        then((*device)->CopyToDevice(d_in->data(), in.data(), c.num_in * 4));
        then((*device)->CopyToDevice(d_out->data(), out.data(), c.num_out * 4));
        if (!c.launch(d_in->data<uint32_t>(), d_out->data<uint32_t>(),
                      (*device)->stream())) {
          then((*device)->LaunchError(c.name));
        }
        then((*device)->CopyToHost(out.data(), d_out->data(), c.num_out * 4));
        then((*device)->Synchronize());
      }
      if (!status.ok()) {
        std::fprintf(stderr, "FAIL %s: %s\n", c.name,
                     std::string(status.message()).c_str());
        return 1;
      }
      if (is_write) {
        file.write(reinterpret_cast<const char*>(out.data()), c.num_out * 4);
        continue;
      }
      for (int i = 0; i < c.num_out; ++i) {
        if (Agree(c.output, out[i], expected[i])) continue;
        if (++bad_words <= 3) {
          std::printf("%s, round %d, word %d: %08x (%g), not %08x (%g)\n",
                      c.name, round, i, out[i], AsFloat(out[i]), expected[i],
                      AsFloat(expected[i]));
        }
      }
    }
    if (is_write) continue;
    if (!is_supported) ++num_skipped;
    ++num_checked;
    num_bad += bad_words > 0;
    std::printf("%s %s\n",
                !is_supported    ? "SKIP"
                : bad_words == 0 ? "PASS"
                                 : "FAIL",
                c.name);
  }
  file.flush();
  if (!file) {
    std::fprintf(stderr, "wrapper_check: cannot write %s\n", path.c_str());
    return 1;
  }
  if (!is_write) {
    std::printf(
        "%d wrappers, %d failed, %d skipped on compute capability "
        "%d.%d\n",
        num_checked, num_bad, num_skipped, capability / 10, capability % 10);
  }
  return num_bad == 0 ? 0 : 1;
}

}  // namespace
}  // namespace quire::gpu_check

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[1] : "";
  if (mode != "--write" && mode != "--compare") {
    quire::gpu_check::PrintUsage();
    return 64;
  }
  return quire::gpu_check::Run(mode == "--write", argv[2]);
}
