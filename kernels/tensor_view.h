// A matrix that somebody else owns.
#ifndef QUIRE_KERNELS_TENSOR_VIEW_H_
#define QUIRE_KERNELS_TENSOR_VIEW_H_

#include <cstdint>

#include "kernels/dtype.h"

namespace quire {

// [rows, cols] elements, row r at data + r * row_stride elements; the elements
// of a row are contiguous. A vector is one row. Cheap to copy; never allocates;
// the owner of `data` must outlive it. `data` may be device memory.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;

  bool empty() const { return data == nullptr; }
  int64_t num_bytes() const { return rows * cols * DTypeSize(dtype); }

  // Host memory only. Requires: T matches dtype (uint16_t for f16 and bf16).
  template <typename T>
  T* row(int64_t row_idx) const {
    return static_cast<T*>(data) + row_idx * row_stride;
  }

  static TensorView Matrix(const void* data, DType dtype, int64_t rows,
                           int64_t cols) {
    return {const_cast<void*>(data), dtype, rows, cols, cols};
  }
  static TensorView Vector(const void* data, DType dtype, int64_t size) {
    return Matrix(data, dtype, 1, size);
  }
};

}  // namespace quire

#endif  // QUIRE_KERNELS_TENSOR_VIEW_H_
