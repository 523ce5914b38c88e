// Products of matrices on the host. Sums are f32, in the freedom of their order
// that a library has; e4m3 is summed in f32 too, where tensor cores keep fewer
// bits.
#ifndef QUIRE_TESTS_GPU_PTX_MATRIX_PRODUCT_H_
#define QUIRE_TESTS_GPU_PTX_MATRIX_PRODUCT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/gpu/ptx/matrix_problem.h"

namespace quire::host_cublas {

struct Product {
  Problem problem;
  Algorithm algorithm;
  float alpha = 1, beta = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* d = nullptr;
  void* workspace = nullptr;
  bool is_captured = false;  // And may run again.

  void Run() const;

  // Empty, or what a GPU would fault at or compute wrong.
  //   holds: whether all of so many bytes are memory of the device.
  std::string Fault(bool (*holds)(const void* begin, size_t num_bytes)) const;

 private:
  // Elements [first, first + count) of the products for element (i, j), summed
  // with their scales, except those of a row or of all.
  float Sum(const float* row, const float* col, int64_t i, int64_t j,
            int64_t first, int64_t count) const;
  float ScaleOf(int64_t i, int64_t j) const;
};

}  // namespace quire::host_cublas

#endif  // QUIRE_TESTS_GPU_PTX_MATRIX_PRODUCT_H_
