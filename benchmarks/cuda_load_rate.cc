// How fast the host's part of loading onto a GPU is: from a mapped file in the
// page cache to the staging memory that a GPU copies from. The emulated device
// drops the copies, so that neither its memory nor a GPU's bus is in the
// figures.
//
//   cuda_load_rate [threads [repetitions]]
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/statistics.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_emulated.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

// A layer of Llama 3.1 8B, as it is packed.
struct Matrix {
  LinearKind kind;
  std::vector<int64_t> rows;  // Of the parts.
  int64_t cols;
};
const std::vector<Matrix>& Layer() {
  static const auto* const layer =
      new std::vector<Matrix>{{LinearKind::kQkv, {4096, 1024, 1024}, 4096},
                              {LinearKind::kPlain, {4096}, 4096},
                              {LinearKind::kGateUp, {14336, 14336}, 4096},
                              {LinearKind::kPlain, {4096}, 14336}};
  return *layer;
}

// A file that exists only here, in the page cache, mapped as a checkpoint is.
class CachedFile {
 public:
  // values: [size]
  explicit CachedFile(const std::vector<uint16_t>& values)
      : num_bytes_(values.size() * sizeof(uint16_t)) {
    std::FILE* file = std::tmpfile();
    QUIRE_CHECK(file != nullptr);
    QUIRE_CHECK(std::fwrite(values.data(), 1, num_bytes_, file) == num_bytes_ &&
                std::fflush(file) == 0);
    data_ = mmap(nullptr, num_bytes_, PROT_READ, MAP_PRIVATE, fileno(file), 0);
    QUIRE_CHECK(data_ != MAP_FAILED);
    std::fclose(file);  // The mapping stays.
  }
  ~CachedFile() { munmap(data_, num_bytes_); }
  CachedFile(const CachedFile&) = delete;
  CachedFile& operator=(const CachedFile&) = delete;

  const char* data() const { return static_cast<const char*>(data_); }
  // The next reads fault pages in, as the first ones of a process.
  void Forget() { QUIRE_CHECK(madvise(data_, num_bytes_, MADV_DONTNEED) == 0); }

 private:
  const size_t num_bytes_;
  void* data_;
};

struct Format {
  const char* name;
  QuantizationScheme scheme;  // kDense: as it is stored.
};

struct Seconds {
  double quantize = 0;
  double pack = 0;
  int64_t packed_from_bytes = 0;
};

// One load of the layer.
Seconds Load(const CachedFile& file, const Format& format, int num_threads,
             ThreadPool& pool) {
  CudaBackendOptions options;
  options.open_matrix_library = nullptr;
  options.copies.num_threads = num_threads;
  auto backend = *CudaBackend::Create(options);
  cuda::DiscardWork(backend->device(), true);
  const auto run = [&pool](int64_t num_items, auto body) {
    pool.ParallelFor(num_items, 16, [&](int64_t begin, int64_t end, int) {
      body(begin, end);
    });
  };
  // The staging memory, of which a whole model is loaded through, is there.
  const std::vector<uint16_t> zeros(size_t{8192} * 8192);
  LinearSpec first;
  first.parts.resize(1);
  first.parts[0].data =
      TensorView::Matrix(zeros.data(), DType::kBF16, 8192, 8192);
  QUIRE_CHECK(backend->PackLinear(first).ok());
  Seconds seconds;
  const char* data = file.data();
  for (const Matrix& matrix : Layer()) {
    std::vector<QuantizedMatrix> quantized;
    LinearSpec spec;
    spec.kind = matrix.kind;
    spec.model_dtype = DType::kBF16;
    const absl::Time start = absl::Now();
    for (const int64_t rows : matrix.rows) {
      const auto dense =
          TensorView::Matrix(data, DType::kBF16, rows, matrix.cols);
      data += dense.num_bytes();
      WeightPart part;
      part.data = dense;
      if (format.scheme.format != QuantFormat::kDense) {
        quantized.push_back(*QuantizeMatrix(dense, format.scheme, run));
        part = quantized.back().part;
      }
      seconds.packed_from_bytes += part.data.num_bytes();
      spec.parts.push_back(part);
    }
    const absl::Time quantized_at = absl::Now();
    const auto packed = backend->PackLinear(spec);
    QUIRE_CHECK(packed.ok());
    seconds.pack += absl::ToDoubleSeconds(absl::Now() - quantized_at);
    seconds.quantize += absl::ToDoubleSeconds(quantized_at - start);
  }
  return seconds;
}

int Main(int argc, char** argv) {
  const int num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 5;
  cuda::EmulatedOptions().fills_memory = false;
  int64_t num_elements = 0;
  for (const Matrix& matrix : Layer()) {
    for (const int64_t rows : matrix.rows) num_elements += rows * matrix.cols;
  }
  // Between 1/32 and 1/8 in magnitude, of either sign.
  std::vector<uint16_t> values(num_elements);
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<uint16_t>(0x3d00 + (state >> 16 & 0x80ff));
  }
  CachedFile file(values);
  ThreadPool pool(num_threads);
  const std::vector<Format> formats = {
      {"bf16", {.format = QuantFormat::kDense}},
      {"fp8", {.format = QuantFormat::kFp8}},
      {"int4", {.format = QuantFormat::kInt4}},
      {"q8_0", {.format = QuantFormat::kQ8_0}},
      {"q4_0", {.format = QuantFormat::kQ4_0}},
  };
  absl::PrintF("%d threads; per layer: seconds to quantize; to pack; GB/s\n",
               num_threads);
  for (const Format& format : formats) {
    std::vector<double> quantize, pack, rate;
    for (int i = 0; i < repetitions; ++i) {
      file.Forget();
      const Seconds seconds = Load(file, format, num_threads, pool);
      quantize.push_back(seconds.quantize);
      pack.push_back(seconds.pack);
      rate.push_back(seconds.packed_from_bytes / seconds.pack);
    }
    absl::PrintF("%-5s %s  %s  %s\n", format.name, Spread(quantize, 1, "%.3f"),
                 Spread(pack, 1, "%.3f"), Spread(rate, 1e9, "%.2f"));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
