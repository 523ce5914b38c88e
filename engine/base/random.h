// Counter-based random numbers: a pure function of (key, counter), so that the
// draw for a token never depends on batch, order, rank or preemption.
// Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3", SC'11. The same integers on every CPU and GPU.
#ifndef QUIRE_ENGINE_BASE_RANDOM_H_
#define QUIRE_ENGINE_BASE_RANDOM_H_

#include <array>
#include <cstdint>

namespace quire {

using Philox4 = std::array<uint32_t, 4>;

// Four 32-bit words for one (key, counter).
constexpr Philox4 Philox4x32(uint64_t key, Philox4 counter) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0,
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1,
               static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// A 64-bit mix of two words (the finalizer of splitmix64 over a combination);
// for keys, not for security.
constexpr uint64_t MixBits(uint64_t a, uint64_t b) {
  uint64_t x = a + 0x9E3779B97F4A7C15 * (b + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Small sequential generator for tests and simulations; the stream is fixed by
// its seed. Not thread-safe.
class SimulationRandom {
 public:
  explicit SimulationRandom(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return MixBits(state_++, 0x5EED); }
  // Uniform in [0, bound). Requires: bound > 0. The bias is below 2^-32 for the
  // bounds that tests use.
  uint64_t Below(uint64_t bound) { return Next() % bound; }
  // Uniform in [low, high].
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Below(high - low + 1));
  }
  // Uniform in [0, 1).
  double Uniform() { return (Next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_RANDOM_H_
