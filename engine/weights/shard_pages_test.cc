// A rank reads its part of the model's files and nothing else: the pages that
// are touched are counted by the faults that they cause.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/parallel/sharding.h"
#include "engine/weights/safetensors.h"
#include "engine/weights/weight_loader.h"
#include "gtest/gtest.h"
#include "kernels/quant_codec.h"

namespace quire {
namespace {

// Memory that notes which of its pages are read. One at a time.
class WatchedMemory {
 public:
  explicit WatchedMemory(int64_t num_bytes)
      : page_size_(sysconf(_SC_PAGESIZE)),
        num_pages_((num_bytes + page_size_ - 1) / page_size_),
        touched_(num_pages_) {
    void* memory =
        mmap(nullptr, num_pages_ * page_size_, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    data_ = static_cast<uint8_t*>(memory);
    current_ = this;
    struct sigaction action = {};
    action.sa_sigaction = &OnFault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    EXPECT_EQ(sigaction(SIGSEGV, &action, &previous_), 0);
  }
  ~WatchedMemory() {
    sigaction(SIGSEGV, &previous_, nullptr);
    current_ = nullptr;
    munmap(data_, num_pages_ * page_size_);
  }

  uint8_t* data() const { return data_; }

  // From here on reads are noted.
  void Watch() {
    touched_.assign(num_pages_, 0);
    EXPECT_EQ(mprotect(data_, num_pages_ * page_size_, PROT_NONE), 0);
  }
  // Of the pages [begin, end) in bytes, those that were read.
  int64_t TouchedBytes(int64_t begin, int64_t end) const {
    int64_t num_bytes = 0;
    for (int64_t page = begin / page_size_; page * page_size_ < end; ++page) {
      num_bytes += touched_[page] * page_size_;
    }
    return num_bytes;
  }
  int64_t page_size() const { return page_size_; }

 private:
  static void OnFault(int, siginfo_t* info, void*) {
    WatchedMemory* const self = current_;
    const int64_t offset = static_cast<uint8_t*>(info->si_addr) - self->data_;
    if (offset < 0 || offset >= self->num_pages_ * self->page_size_) {
      _exit(3);  // Somebody else's fault.
    }
    const int64_t page = offset / self->page_size_;
    self->touched_[page] = 1;
    mprotect(self->data_ + page * self->page_size_, self->page_size_,
             PROT_READ);
  }

  static WatchedMemory* current_;
  const int64_t page_size_;
  const int64_t num_pages_;
  std::vector<char> touched_;
  uint8_t* data_ = nullptr;
  struct sigaction previous_ = {};
};

WatchedMemory* WatchedMemory::current_ = nullptr;

constexpr int64_t kGroup = 128;

struct Layout {
  const char* name;
  // The file's rows hold columns of the matrix.
  bool is_transposed = false;
  struct Tensor {
    const char* suffix;
    StoredDType dtype;
    std::vector<int64_t> shape;
    QuantFormat format = QuantFormat::kDense;
  };
  std::vector<Tensor> tensors;
};

// Of a matrix [rows, cols].
std::vector<Layout> Layouts(int64_t rows, int64_t cols) {
  using D = StoredDType;
  const int64_t groups = cols / kGroup;
  return {
      {"bf16", false, {{".weight", D::kBF16, {rows, cols}}}},
      {"q4_k", false, {{".weight", D::kU8, {rows, cols}, QuantFormat::kQ4_K}}},
      {"fp8",
       false,
       {{".weight", D::kF8E4M3, {rows, cols}},
        {".weight_scale_inv", D::kF32, {rows / kGroup, groups}}}},
      {"gptq",
       true,
       {{".qweight", D::kI32, {cols / 8, rows}},
        {".qzeros", D::kI32, {groups, rows / 8}},
        {".scales", D::kF16, {groups, rows}}}},
      {"awq",
       true,
       {{".qweight", D::kI32, {cols, rows / 8}},
        {".qzeros", D::kI32, {groups, rows / 8}},
        {".scales", D::kF16, {groups, rows}}}},
      {"packed",
       false,
       {{".weight_packed", D::kI32, {rows, cols / 8}},
        {".weight_scale", D::kBF16, {rows, groups}}}},
      {"int8",
       false,
       {{".weight", D::kI8, {rows, cols}},
        {".weight_scale", D::kF32, {rows, 1}}}},
  };
}

int64_t BytesOf(const Layout::Tensor& tensor) {
  if (tensor.format != QuantFormat::kDense) {
    return tensor.shape[0] * QuantRowBytes(tensor.format, tensor.shape[1]);
  }
  int64_t size = StoredDTypeSize(tensor.dtype);
  for (const int64_t dim : tensor.shape) size *= dim;
  return size;
}

// What is touched of the layout's first tensor by who loads a part and reads
// all of it, as a backend would.
struct Touches {
  int64_t num_bytes = 0;
  int64_t total = 0;
  int64_t page_size = 0;
};
Touches TouchedBy(const Layout& layout, const LinearSource& source) {
  Touches touches;
  int64_t num_bytes = 0;
  for (const Layout::Tensor& tensor : layout.tensors) {
    num_bytes += (BytesOf(tensor) + 65535) / 65536 * 65536;
  }
  WatchedMemory memory(num_bytes);
  // Plausible in every format: scales of one, codes of one.
  std::memset(memory.data(), 0x11, num_bytes);
  std::vector<StoredTensor> tensors;
  const std::string path = "watched";
  int64_t offset = 0;
  for (const Layout::Tensor& tensor : layout.tensors) {
    StoredTensor stored;
    stored.name = absl::StrCat("m", tensor.suffix);
    stored.dtype = tensor.dtype;
    stored.shape = tensor.shape;
    stored.num_elements = tensor.shape[0] * tensor.shape[1];
    stored.data = absl::MakeConstSpan(memory.data() + offset,
                                      static_cast<size_t>(BytesOf(tensor)));
    stored.path = &path;
    stored.format = tensor.format;
    tensors.push_back(std::move(stored));
    offset += (BytesOf(tensor) + 65535) / 65536 * 65536;
  }
  auto checkpoint = Checkpoint::FromTensors(path, std::move(tensors), nullptr);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  WeightLoaderOptions options;
  options.stored.group_size = options.stored.block_size = kGroup;
  options.num_threads = 1;
  WeightLoader loader(*checkpoint, std::move(options));
  memory.Watch();
  const auto spec = loader.Linear(LinearKind::kPlain, {source});
  EXPECT_TRUE(spec.ok()) << spec.status();
  if (!spec.ok()) return touches;
  const WeightPart& part = spec->parts[0];
  EXPECT_EQ(part.rows(), source.row_range.size());
  EXPECT_EQ(part.cols(), source.col_range.size());
  std::vector<float> values(part.cols());
  for (int64_t row = 0; row < part.rows(); ++row) {
    DequantizeRow(part, row, values.data());
  }
  touches.total = BytesOf(layout.tensors[0]);
  touches.page_size = memory.page_size();
  touches.num_bytes = memory.TouchedBytes(0, touches.total);
  return touches;
}

// Four ranks, by rows or by columns. Where a rank's part is `num_pieces` of
// consecutive bytes it reads those, and of other ranks' what shares their first
// and last pages.
void ExpectQuarters(bool by_rows, bool wants_transposed, int64_t rows,
                    int64_t cols) {
  int num_layouts = 0;
  for (const Layout& layout : Layouts(rows, cols)) {
    if (layout.is_transposed != wants_transposed) continue;
    ++num_layouts;
    // Split along the file's rows, a part is one piece.
    const int64_t num_pieces =
        by_rows != layout.is_transposed ? 1 : layout.tensors[0].shape[0];
    for (int rank = 0; rank < 4; ++rank) {
      SCOPED_TRACE(absl::StrCat(layout.name, ", rank ", rank));
      LinearSource source;
      source.name = "m";
      source.rows = rows;
      source.cols = cols;
      source.row_range = {0, rows};
      source.col_range = {0, cols};
      (by_rows ? source.row_range : source.col_range) =
          *ShardUnits(by_rows ? rows : cols, 256, {rank, 4}, "part");
      const Touches touches = TouchedBy(layout, source);
      EXPECT_GE(touches.num_bytes, touches.total / 4);
      EXPECT_LE(touches.num_bytes,
                touches.total / 4 + 2 * num_pieces * touches.page_size);
      // The bound says something.
      EXPECT_LT(touches.num_bytes, touches.total / 2);
    }
  }
  EXPECT_GE(num_layouts, 2);
}

TEST(ShardPagesTest, ByRows) {
  ExpectQuarters(/*by_rows=*/true, /*wants_transposed=*/false, 1024, 2048);
  ExpectQuarters(/*by_rows=*/true, /*wants_transposed=*/true, 1 << 17, 256);
}

TEST(ShardPagesTest, ByColumns) {
  ExpectQuarters(/*by_rows=*/false, /*wants_transposed=*/false, 128, 1 << 17);
  ExpectQuarters(/*by_rows=*/false, /*wants_transposed=*/true, 1024, 2048);
}

}  // namespace
}  // namespace quire
