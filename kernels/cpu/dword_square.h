// The step of packing that turns rows into lanes of a panel.
#ifndef QUIRE_KERNELS_CPU_DWORD_SQUARE_H_
#define QUIRE_KERNELS_CPU_DWORD_SQUARE_H_

#include <cstdint>
#include <cstring>

namespace quire {

// Neighbouring lanes that are copied at once: what a vector of any machine
// holds.
constexpr int kSquareLanes = 4;

// Writes dword i (0 to 3) of each of the four rows, xor `flip`, to
// out + i * stride, transposed in registers: a store for four dwords in place
// of four. Any alignment.
inline void ScatterSquare(const char* const* rows, int64_t offset,
                          uint32_t flip, char* out, int64_t stride) {
  typedef uint32_t Dwords __attribute__((vector_size(16)));
  Dwords v[kSquareLanes];
#pragma GCC unroll 4
  for (int i = 0; i < kSquareLanes; ++i) {
    std::memcpy(v + i, rows[i] + offset, sizeof(Dwords));
    v[i] ^= flip;
  }
  const Dwords a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
  const Dwords b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
  const Dwords c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const Dwords d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  const Dwords columns[4] = {
      __builtin_shufflevector(a, b, 0, 1, 4, 5),
      __builtin_shufflevector(a, b, 2, 3, 6, 7),
      __builtin_shufflevector(c, d, 0, 1, 4, 5),
      __builtin_shufflevector(c, d, 2, 3, 6, 7),
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    std::memcpy(out + i * stride, columns + i, sizeof(Dwords));
  }
}

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_DWORD_SQUARE_H_
