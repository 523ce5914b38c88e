// A rank of a group loads its part of a model's file and nothing else: the
// pages that a whole load touches are counted by the faults that they cause
// (engine/weights/shard_pages_test has the ways a matrix can be stored).
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/loaded_model.h"
#include "engine/weights/safetensors.h"
#include "gtest/gtest.h"
#include "kernels/communicator.h"
#include "kernels/reference.h"
#include "tests/random_family.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// Notes which pages of this process's mapping of a file are read. One at a
// time.
class WatchedMapping {
 public:
  WatchedMapping() {
    current_ = this;
    struct sigaction action = {};
    action.sa_sigaction = &OnFault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    EXPECT_EQ(sigaction(SIGSEGV, &action, &previous_), 0);
  }
  ~WatchedMapping() {
    sigaction(SIGSEGV, &previous_, nullptr);
    current_ = nullptr;
  }

  // From here on; the file must be mapped once, and as a whole.
  void Watch(const std::string& path) {
    std::ifstream maps("/proc/self/maps");
    std::string line;
    while (std::getline(maps, line)) {
      if (!absl::EndsWith(line, path)) continue;
      ASSERT_EQ(begin_, nullptr) << "mapped twice";
      uintptr_t begin = 0, end = 0;
      ASSERT_EQ(sscanf(line.c_str(), "%lx-%lx", &begin, &end), 2);
      touched_.assign((end - begin) / page_size_, 0);
      begin_ = reinterpret_cast<uint8_t*>(begin);
      ASSERT_EQ(mprotect(begin_, end - begin, PROT_NONE), 0);
    }
    ASSERT_NE(begin_, nullptr) << path << " is not mapped";
  }

  // By page of the file.
  const std::vector<char>& touched() const { return touched_; }

 private:
  static void OnFault(int, siginfo_t* info, void*) {
    WatchedMapping& self = *current_;
    const int64_t page =
        self.begin_ == nullptr
            ? -1
            : (static_cast<uint8_t*>(info->si_addr) - self.begin_) /
                  self.page_size_;
    if (page < 0 || page >= static_cast<int64_t>(self.touched_.size())) {
      _exit(3);  // Somebody else's fault.
    }
    self.touched_[page] = 1;
    mprotect(self.begin_ + page * self.page_size_, self.page_size_, PROT_READ);
  }

  static WatchedMapping* current_;
  const int64_t page_size_ = sysconf(_SC_PAGESIZE);
  uint8_t* begin_ = nullptr;
  std::vector<char> touched_;
  struct sigaction previous_ = {};
};

WatchedMapping* WatchedMapping::current_ = nullptr;

// Of a rank whose group agrees with it on everything.
class AgreeingCommunicator : public Communicator {
 public:
  AgreeingCommunicator(int rank, int size) : rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string Description() const override { return "agreeing"; }
  absl::Status AllReduceSum(TensorView, DeviceStream) override {
    return absl::OkStatus();
  }
  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream) override {
    for (int i = 0; i < size_; ++i) {
      std::memcpy(static_cast<char*>(to.data) + i * from.num_bytes(), from.data,
                  from.num_bytes());
    }
    return absl::OkStatus();
  }
  absl::Status ReduceScatterSum(TensorView, TensorView, DeviceStream) override {
    return absl::UnimplementedError("");
  }
  absl::Status Broadcast(TensorView, int, DeviceStream) override {
    return absl::UnimplementedError("");
  }
  absl::Status Send(TensorView, int, DeviceStream) override {
    return absl::UnimplementedError("");
  }
  absl::Status Receive(TensorView, int, DeviceStream) override {
    return absl::UnimplementedError("");
  }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort() override {}

 private:
  const int rank_, size_;
};

// Asked for its memory, the file has been opened and no weight been read.
class NotifyingBackend : public ReferenceBackend {
 public:
  explicit NotifyingBackend(std::function<void()> on_opened)
      : on_opened_(std::move(on_opened)) {}
  bool OwnsMemory() const override {
    if (on_opened_) std::exchange(on_opened_, nullptr)();
    return false;
  }

 private:
  mutable std::function<void()> on_opened_;
};

class RankLoadTest : public testing::Test {
 protected:
  RankLoadTest() {
    std::string path = testing::TempDir() + "/rank_load_XXXXXX";
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    directory_ = fs::canonical(path);  // As proc(5)'s maps calls it.
    // A quarter of a row of the MLP's down is 8 pages: of a matrix that is cut
    // by columns parts that are smaller than a page would lie in all of them.
    RandomFamilyShape shape;
    shape.num_layers = 2;
    shape.hidden_size = 64;
    shape.intermediate_size = 32768;
    const absl::Status status = WriteRandomFamily(
        "tests/testdata/goldens/llama", shape, /*seed=*/5, path);
    EXPECT_TRUE(status.ok()) << status;
  }
  ~RankLoadTest() override { fs::remove_all(directory_); }

  std::string File() const { return (directory_ / "model.safetensors"); }

  // The pages that this rank touches.
  std::vector<char> Load(int tensor_size, int pipeline_size, int rank) {
    LoadOptions options;
    options.dtype = DType::kF32;
    options.kv_cache_dtype = DType::kF32;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 16;
    options.max_model_len = 32;
    options.num_threads = 1;
    options.parallel.tensor_size = tensor_size;
    options.parallel.pipeline_size = pipeline_size;
    options.parallel.size = tensor_size * pipeline_size;
    options.parallel.rank = rank;
    AgreeingCommunicator tensor(options.parallel.tensor_rank(), tensor_size);
    AgreeingCommunicator pipeline(options.parallel.pipeline_rank(),
                                  pipeline_size);
    if (tensor_size > 1) options.parallel.tensor = &tensor;
    if (pipeline_size > 1) options.parallel.pipeline = &pipeline;
    WatchedMapping watched;
    const auto loaded = LoadModel(
        directory_.string(), options,
        std::make_unique<NotifyingBackend>([&] { watched.Watch(File()); }));
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return watched.touched();
  }

  // Bytes of the model, and those of them that ranks of a tensor group share.
  void Measure(int64_t* total, int64_t* of_mlp) const {
    const auto checkpoint = Checkpoint::Open(directory_.string());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    *total = (*checkpoint)->num_bytes();
    *of_mlp = 0;
    for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
      if (absl::StrContains(name, ".mlp.")) {
        *of_mlp += tensor.num_elements * sizeof(float);
      }
    }
    EXPECT_GT(*of_mlp, *total * 9 / 10);
  }

  static int64_t BytesOf(const std::vector<char>& pages) {
    int64_t num_pages = 0;
    for (const char touched : pages) num_pages += touched;
    return num_pages * sysconf(_SC_PAGESIZE);
  }

  // That each of `ranks` touches as much as `part` of the MLP and all else, and
  // that what nobody touches is not there.
  void ExpectParts(const std::vector<std::vector<char>>& ranks, double part) {
    int64_t total = 0, of_mlp = 0;
    Measure(&total, &of_mlp);
    std::vector<char> anybody(ranks[0].size());
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      SCOPED_TRACE(absl::StrCat("rank ", rank));
      const int64_t num_bytes = BytesOf(ranks[rank]);
      const double own = part * static_cast<double>(of_mlp);
      EXPECT_GE(num_bytes, static_cast<int64_t>(own));
      // Columns may begin and end within a page: of 8, or a ninth of down.
      EXPECT_LE(num_bytes, static_cast<int64_t>(own * 1.06) + (total - of_mlp));
      ASSERT_EQ(ranks[rank].size(), anybody.size());
      for (size_t i = 0; i < anybody.size(); ++i) anybody[i] |= ranks[rank][i];
    }
    // The first page may hold no more than the header, read before.
    EXPECT_GE(BytesOf(anybody), total - sysconf(_SC_PAGESIZE));
  }

  fs::path directory_;
};

TEST_F(RankLoadTest, OneRankTouchesAll) {
  int64_t total = 0, of_mlp = 0;
  Measure(&total, &of_mlp);
  EXPECT_GE(BytesOf(Load(1, 1, 0)), total - sysconf(_SC_PAGESIZE));
}

TEST_F(RankLoadTest, ARankOfFourTouchesAQuarter) {
  std::vector<std::vector<char>> ranks;
  for (int rank = 0; rank < 4; ++rank) ranks.push_back(Load(4, 1, rank));
  ExpectParts(ranks, 0.25);
}

TEST_F(RankLoadTest, AStageOfTwoTouchesItsLayers) {
  ExpectParts({Load(1, 2, 0), Load(1, 2, 1)}, 0.5);
}

TEST_F(RankLoadTest, StagesAndTensorGroupsTogether) {
  std::vector<std::vector<char>> ranks;
  for (int rank = 0; rank < 4; ++rank) ranks.push_back(Load(2, 2, rank));
  ExpectParts(ranks, 0.25);
}

}  // namespace
}  // namespace quire
