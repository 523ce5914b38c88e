#include "tests/gpu/ptx/matrix_product.h"

#include <algorithm>
#include <vector>

#include "kernels/dtype.h"

namespace quire::host_cublas {
namespace {

float Load(cudaDataType_t type, const void* from, int64_t index) {
  switch (type) {
    case CUDA_R_8F_E4M3:
      return E4M3ToFloat(static_cast<const uint8_t*>(from)[index]);
    case CUDA_R_16BF:
      return Bf16ToFloat(static_cast<const uint16_t*>(from)[index]);
    case CUDA_R_16F:
      return HalfToFloat(static_cast<const uint16_t*>(from)[index]);
    default:
      return static_cast<const float*>(from)[index];
  }
}
void Store(cudaDataType_t type, void* to, int64_t index, float value) {
  switch (type) {
    case CUDA_R_16BF:
      static_cast<uint16_t*>(to)[index] = FloatToBf16(value);
      break;
    case CUDA_R_16F:
      static_cast<uint16_t*>(to)[index] = FloatToHalf(value);
      break;
    default:
      static_cast<float*>(to)[index] = value;
  }
}

float Dot(const float* a, const float* b, int64_t count) {
  constexpr int kLanes = 16;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[lane] += a[i + lane] * b[i + lane];
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += a[i] * b[i];
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

struct Range {
  const char* name;
  const void* begin;
  uint64_t num_bytes;

  bool Overlaps(const Range& other) const {
    const auto* p = static_cast<const char*>(begin);
    const auto* q = static_cast<const char*>(other.begin);
    return p < q + other.num_bytes && q < p + num_bytes;
  }
};
// From a matrix's first to its last element.
Range RangeOf(const char* name, const Layout& layout, const void* at) {
  const uint64_t count = (layout.cols - 1) * layout.ld + layout.rows;
  return {name, at, count * BytesOf(layout.type)};
}

}  // namespace

float Product::Sum(const float* row, const float* col, int64_t i, int64_t j,
                   int64_t first, int64_t count) const {
  const Operation& operation = problem.operation;
  if (operation.scale_modes[0] != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
    return Dot(row + first, col + first, count);
  }
  float sum = 0;
  for (int64_t k = first; k < first + count;) {
    const int64_t block = k / 128;
    const int64_t end = std::min(first + count, (block + 1) * 128);
    sum += Dot(row + k, col + k, end - k) *
           operation.scales[0][block * problem.m() + i] *
           operation.scales[1][block * problem.n() + j];
    k = end;
  }
  return sum;
}

float Product::ScaleOf(int64_t i, int64_t j) const {
  const Operation& operation = problem.operation;
  float scale = 1;
  const int64_t indices[2] = {i, j};
  for (int side = 0; side < 2; ++side) {
    if (operation.scales[side] == nullptr) continue;
    switch (operation.scale_modes[side]) {
      case CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F:
        scale *= operation.scales[side][0];
        break;
      case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
        scale *= operation.scales[side][indices[side]];
        break;
      default:
        break;  // In the sum.
    }
  }
  return scale;
}

void Product::Run() const {
  const int64_t m = problem.m(), n = problem.n(), k = problem.k();
  const auto& [operation, a_layout, b_layout, c_layout, d_layout] = problem;
  std::vector<float> row(k), cols(n * k);
  const bool is_b_transposed = operation.transposes[1] == CUBLAS_OP_T;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t l = 0; l < k; ++l) {
      cols[j * k + l] =
          Load(b_layout.type, b,
               is_b_transposed ? l * b_layout.ld + j : j * b_layout.ld + l);
    }
  }
  const int num_splits = algorithm.num_splits;
  const bool is_in_place =
      algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE;
  const cudaDataType_t sum_type =
      algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
          ? d_layout.type
          : CUDA_R_32F;
  for (int64_t i = 0; i < m; ++i) {
    const bool is_a_transposed = operation.transposes[0] == CUBLAS_OP_T;
    for (int64_t l = 0; l < k; ++l) {
      row[l] =
          Load(a_layout.type, a,
               is_a_transposed ? i * a_layout.ld + l : l * a_layout.ld + i);
    }
    for (int64_t j = 0; j < n; ++j) {
      const float* col = cols.data() + j * k;
      float sum = 0;
      for (int split = 0; split < num_splits; ++split) {
        // In units of 16.
        const int64_t first = k / 16 * split / num_splits * 16;
        const int64_t end = split + 1 == num_splits
                                ? k
                                : k / 16 * (split + 1) / num_splits * 16;
        float part = Sum(row.data(), col, i, j, first, end - first);
        if (num_splits > 1 && !is_in_place) {
          const int64_t place = (split * n + j) * m + i;
          Store(sum_type, workspace, place, part);
          part = Load(sum_type, workspace, place);
        }
        sum += part;
        if (is_in_place) {
          uint32_t rounded = 0;
          Store(d_layout.type, &rounded, 0, sum);
          sum = Load(d_layout.type, &rounded, 0);
        }
      }
      float value = alpha * ScaleOf(i, j) * sum;
      if (beta != 0) {
        value += beta * Load(c_layout.type, c, j * c_layout.ld + i);
      }
      Store(d_layout.type, d, j * d_layout.ld + i, value);
    }
  }
}

std::string Product::Fault(bool (*holds)(const void* begin,
                                         size_t num_bytes)) const {
  const Range out = RangeOf("D", problem.d, d);
  std::vector<Range> others = {RangeOf("A", problem.a, a),
                               RangeOf("B", problem.b, b)};
  if (beta != 0 && c != d) others.push_back(RangeOf("C", problem.c, c));
  if (const uint64_t num_bytes = WorkspaceBytes(problem, algorithm)) {
    others.push_back({"the workspace", workspace, num_bytes});
  }
  const int64_t sizes[2] = {problem.m(), problem.n()};
  for (int side = 0; side < 2; ++side) {
    const Operation& operation = problem.operation;
    if (operation.scales[side] == nullptr) continue;
    uint64_t count = 1;
    if (operation.scale_modes[side] !=
        CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F) {
      count = sizes[side];
    }
    if (operation.scale_modes[side] ==
        CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
      count *= (problem.k() + 127) / 128;
    }
    others.push_back({"a scale", operation.scales[side], 4 * count});
  }
  for (const Range& range : others) {
    if (!holds(range.begin, range.num_bytes)) {
      return std::string(range.name) + " is no memory of the device";
    }
    if (range.Overlaps(out)) {
      return std::string("D overlaps ") + range.name;
    }
  }
  if (!holds(out.begin, out.num_bytes)) {
    return "D is no memory of the device";
  }
  return "";
}

}  // namespace quire::host_cublas
