// The order of a stream and of a graph captured from it, where kernels let
// their successors start early (programmatic dependent launch): whatever
// follows such a kernel, a copy, a product of the library or a kernel, sees all
// that it wrote, and overwrites nothing that it still reads.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_library.h"
#include "kernels/dtype.h"
#include "tests/gpu/stream_order_kernels.h"

namespace quire::gpu_check {
namespace {

using cuda::Device;
using cuda::DeviceBuffer;

// Late enough that a successor which does not wait is there first.
constexpr int kLate = 1000;
constexpr int kWords = 512;
constexpr int64_t kBytes = 4 * kWords;
// A product of x [kTokens, kSize] and the unit matrix is x.
constexpr int64_t kSize = 64, kTokens = 16;
static_assert(2 * kTokens * kSize == kBytes);
constexpr int64_t kWorkspaceBytes = 32 << 20;

// Parameter: whether it is a graph.
class StreamOrderTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    auto device = cuda::CreateDevice(0);
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *std::move(device);
    for (DeviceBuffer* buffer : {&a_, &b_, &c_, &other_}) {
      *buffer = *DeviceBuffer::Create(*device_, kBytes);
    }
    zero_ = *DeviceBuffer::Create(*device_, 4);
    host_ = *DeviceBuffer::Create(*device_, kBytes, /*is_pinned=*/true);
    constexpr uint32_t kZero = 0;
    ASSERT_TRUE(device_->CopyToDevice(zero_.data(), &kZero, 4).ok());
    ASSERT_TRUE(device_->Synchronize().ok());
  }

  // Pairs of bf16 between 1 and 2: their products with 1 are exact.
  static std::vector<uint32_t> Pattern(int which) {
    std::vector<uint32_t> words(kWords);
    for (int i = 0; i < kWords; ++i) {
      words[i] = 0x3f803f80u | (i * 5 + which * 37) % 128 |
                 static_cast<uint32_t>((i * 3 + which * 11) % 128) << 16;
    }
    return words;
  }
  void Write(DeviceBuffer& to, const std::vector<uint32_t>& words) {
    ASSERT_TRUE(device_->CopyToDevice(to.data(), words.data(), kBytes).ok());
    ASSERT_TRUE(device_->Synchronize().ok());
  }
  std::vector<uint32_t> Read(const DeviceBuffer& from) {
    std::vector<uint32_t> words(kWords);
    EXPECT_TRUE(device_->CopyToHost(words.data(), from.data(), kBytes).ok());
    EXPECT_TRUE(device_->Synchronize().ok());
    return words;
  }

  absl::Status Copy(const DeviceBuffer& from, DeviceBuffer& to,
                    int num_turns = 0) {
    if (LaunchLateCopy(from.data<uint32_t>(), to.data<uint32_t>(), kWords,
                       zero_.data<uint32_t>(), num_turns, device_->stream())) {
      return absl::OkStatus();
    }
    return device_->LaunchError("LateCopy");
  }

  // Runs it as the parameter says, three times, each from a = Pattern(0 to 2)
  // and the others 0; then `expect` looks, with that pattern.
  void Run(const std::function<absl::Status()>& enqueue,
           const std::function<void(const std::vector<uint32_t>&)>& expect) {
    std::unique_ptr<cuda::Graph> graph;
    if (GetParam()) {
      ASSERT_TRUE(device_->BeginCapture().ok());
      const absl::Status enqueued = enqueue();
      auto captured = device_->EndCapture();
      ASSERT_TRUE(enqueued.ok()) << enqueued;
      ASSERT_TRUE(captured.ok()) << captured.status();
      graph = *std::move(captured);
    }
    for (int run = 0; run < 3; ++run) {
      const std::vector<uint32_t> pattern = Pattern(run);
      Write(a_, pattern);
      Write(b_, std::vector<uint32_t>(kWords));
      Write(c_, std::vector<uint32_t>(kWords));
      std::fill_n(host_.data<uint32_t>(), kWords, 0u);
      const absl::Status status =
          graph != nullptr ? device_->Launch(*graph) : enqueue();
      ASSERT_TRUE(status.ok()) << status;
      const absl::Status done = device_->Synchronize();
      ASSERT_TRUE(done.ok()) << done;
      expect(pattern);
    }
  }

  // The library and an algorithm for x times the unit matrix.
  struct Product {
    std::unique_ptr<cuda::MatrixLibrary> library;
    cuda::MatrixProblem problem;
    cuda::MatrixAlgorithm algorithm;
    DeviceBuffer unit, workspace;
  };
  absl::StatusOr<Product> OpenProduct(
      std::unique_ptr<cuda::MatrixLibrary> library) {
    Product product;
    product.library = std::move(library);
    product.problem.num_tokens = kTokens;
    product.problem.rows = product.problem.cols = kSize;
    product.problem.x_stride = product.problem.out_stride = kSize;
    const auto algorithms =
        product.library->FindAlgorithms(product.problem, kWorkspaceBytes, 1);
    if (algorithms.empty()) return absl::InternalError("no algorithm");
    product.algorithm = algorithms[0];
    QUIRE_ASSIGN_OR_RETURN(product.workspace,
                           DeviceBuffer::Create(*device_, kWorkspaceBytes));
    QUIRE_ASSIGN_OR_RETURN(product.unit,
                           DeviceBuffer::Create(*device_, 2 * kSize * kSize));
    std::vector<uint16_t> unit(kSize * kSize, 0);
    for (int64_t i = 0; i < kSize; ++i) unit[i * kSize + i] = 0x3f80;
    QUIRE_RETURN_IF_ERROR(device_->CopyToDevice(
        product.unit.data(), unit.data(), product.unit.num_bytes()));
    QUIRE_RETURN_IF_ERROR(device_->Synchronize());
    // Kernels that are loaded on first use are, before a capture.
    QUIRE_RETURN_IF_ERROR(Multiply(product, a_, other_));
    QUIRE_RETURN_IF_ERROR(device_->Synchronize());
    return product;
  }
  absl::Status Multiply(const Product& product, const DeviceBuffer& x,
                        DeviceBuffer& out) {
    return product.library->Multiply(product.problem, product.algorithm,
                                     {.weight = product.unit.data(),
                                      .x = x.data(),
                                      .out = out.data(),
                                      .workspace = product.workspace.data(),
                                      .workspace_bytes = kWorkspaceBytes},
                                     device_->stream());
  }

  std::unique_ptr<Device> device_;
  DeviceBuffer a_, b_, c_, other_, zero_, host_;
};

TEST_P(StreamOrderTest, ACopyToTheHostSeesALateWrite) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        return device_->CopyToHost(host_.data(), b_.data(), kBytes);
      },
      [&](const std::vector<uint32_t>& pattern) {
        const auto* words = host_.data<uint32_t>();
        EXPECT_EQ(std::vector<uint32_t>(words, words + kWords), pattern);
      });
}

TEST_P(StreamOrderTest, ACopyToTheDeviceWaitsForALateRead) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        return device_->CopyToDevice(a_.data(), host_.data(), kBytes);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(b_), pattern);
        EXPECT_EQ(Read(a_), std::vector<uint32_t>(kWords));
      });
}

TEST_P(StreamOrderTest, AKernelSeesACopyToTheDevice) {
  Run(
      [&] {
        const std::vector<uint32_t> before = Pattern(7);
        std::copy(before.begin(), before.end(), host_.data<uint32_t>());
        QUIRE_RETURN_IF_ERROR(
            device_->CopyToDevice(c_.data(), host_.data(), kBytes));
        return Copy(c_, b_);
      },
      // A graph copies what is there when it runs: Run's zeros.
      [&](const std::vector<uint32_t>& /*pattern*/) {
        EXPECT_EQ(Read(b_),
                  GetParam() ? std::vector<uint32_t>(kWords) : Pattern(7));
      });
}

// It started when the kernel between the two allowed it.
TEST_P(StreamOrderTest, AKernelSeesALateWriteOfTheLastButOne) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        QUIRE_RETURN_IF_ERROR(Copy(other_, other_));
        return Copy(b_, c_);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(c_), pattern);
      });
}

TEST_P(StreamOrderTest, AKernelDoesNotOverwriteWhatTheLastButOneReads) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        QUIRE_RETURN_IF_ERROR(Copy(other_, other_));
        return Copy(c_, a_);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(b_), pattern);
        EXPECT_EQ(Read(a_), std::vector<uint32_t>(kWords));
      });
}

// The next launch of a graph, or of the stream, behind the last kernel of one.
TEST_P(StreamOrderTest, ALaunchWaitsForALateReadOfTheLaunchBefore) {
  auto status = device_->BeginCapture();
  ASSERT_TRUE(status.ok()) << status;
  status = Copy(a_, b_, kLate);
  const auto late = device_->EndCapture();
  ASSERT_TRUE(status.ok() && late.ok()) << status << late.status();
  Write(c_, Pattern(1));
  status = device_->BeginCapture();
  ASSERT_TRUE(status.ok()) << status;
  status = Copy(c_, a_);
  const auto overwrite = device_->EndCapture();
  ASSERT_TRUE(status.ok() && overwrite.ok()) << status << overwrite.status();
  for (int run = 0; run < 3; ++run) {
    Write(a_, Pattern(0));
    status = device_->Launch(**late);
    ASSERT_TRUE(status.ok()) << status;
    status = GetParam() ? device_->Launch(**overwrite) : Copy(c_, a_);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Read(b_), Pattern(0));
    EXPECT_EQ(Read(a_), Pattern(1));
  }
}

TEST_P(StreamOrderTest, AGraphSeesALateWriteOfWhatWasLaunchedBefore) {
  const auto capture = [&](const DeviceBuffer& from, DeviceBuffer& to,
                           int num_turns) {
    EXPECT_TRUE(device_->BeginCapture().ok());
    const absl::Status status = Copy(from, to, num_turns);
    EXPECT_TRUE(status.ok()) << status;
    return *device_->EndCapture();
  };
  const auto late = capture(a_, b_, kLate);
  const auto graph = capture(b_, c_, 0);
  for (int run = 0; run < 3; ++run) {
    Write(a_, Pattern(run));
    absl::Status status =
        GetParam() ? device_->Launch(*late) : Copy(a_, b_, kLate);
    ASSERT_TRUE(status.ok()) << status;
    status = device_->Launch(*graph);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Read(c_), Pattern(run));
  }
}

// As a step of a model: what it needs is copied, a kernel sorts it in, the
// graph of the shape is launched, and the results are copied back; nothing
// waits in between, nor between two steps.
TEST_P(StreamOrderTest, StepsFollowEachOther) {
  const auto layers = [&] {
    QUIRE_RETURN_IF_ERROR(Copy(b_, other_, kLate));
    return Copy(other_, c_, kLate);
  };
  ASSERT_TRUE(device_->BeginCapture().ok());
  absl::Status status = layers();
  const auto graph = device_->EndCapture();
  ASSERT_TRUE(status.ok() && graph.ok()) << status << graph.status();
  constexpr int kSteps = 4;
  std::vector<DeviceBuffer> plans, results;
  for (int step = 0; step < kSteps; ++step) {
    for (std::vector<DeviceBuffer>* buffers : {&plans, &results}) {
      buffers->push_back(*DeviceBuffer::Create(*device_, kBytes, true));
      std::fill_n(buffers->back().data<uint32_t>(), kWords, 0u);
    }
    const std::vector<uint32_t> pattern = Pattern(step);
    std::copy(pattern.begin(), pattern.end(), plans[step].data<uint32_t>());
  }
  for (int step = 0; step < kSteps; ++step) {
    status = device_->CopyToDevice(a_.data(), plans[step].data(), kBytes);
    status.Update(Copy(a_, b_, kLate));
    status.Update(GetParam() ? device_->Launch(**graph) : layers());
    status.Update(device_->CopyToHost(results[step].data(), c_.data(), kBytes));
    ASSERT_TRUE(status.ok()) << status;
  }
  ASSERT_TRUE(device_->Synchronize().ok());
  for (int step = 0; step < kSteps; ++step) {
    const auto* words = results[step].data<uint32_t>();
    EXPECT_EQ(std::vector<uint32_t>(words, words + kWords), Pattern(step))
        << step;
  }
}

// Else the next launch that is refused would be told in its words.
TEST_P(StreamOrderTest, AnEventThatHasNotHappenedLeavesNoErrorBehind) {
  const auto event = device_->CreateEvent();
  ASSERT_TRUE(event.ok()) << event.status();
  absl::Status status = Copy(a_, b_, 4 * kLate);
  status.Update(device_->Record(**event));
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_FALSE(device_->HasHappened(**event));
  EXPECT_EQ(device_->LaunchError("Nothing"),
            absl::InternalError("the launch of Nothing was refused"));
  EXPECT_TRUE(device_->Wait(**event).ok());
  EXPECT_TRUE(device_->HasHappened(**event));
}

class LibraryStreamOrderTest : public StreamOrderTest {
 protected:
  void SetUp() override {
    StreamOrderTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto library = cuda::OpenMatrixLibrary();
    if (!library.ok()) GTEST_SKIP() << library.status().message();
    auto product = OpenProduct(*std::move(library));
    ASSERT_TRUE(product.ok()) << product.status();
    product_ = *std::move(product);
  }

  Product product_;
};

TEST_P(LibraryStreamOrderTest, AProductOfTheLibrarySeesALateWrite) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        return Multiply(product_, b_, c_);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(c_), pattern);
      });
}

TEST_P(LibraryStreamOrderTest,
       AProductOfTheLibraryDoesNotOverwriteWhatIsStillRead) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Copy(a_, b_, kLate));
        return Multiply(product_, c_, a_);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(b_), pattern);
        EXPECT_EQ(Read(a_), std::vector<uint32_t>(kWords));
      });
}

TEST_P(LibraryStreamOrderTest, AKernelSeesAProductOfTheLibrary) {
  Run(
      [&] {
        QUIRE_RETURN_IF_ERROR(Multiply(product_, a_, b_));
        return Copy(b_, c_);
      },
      [&](const std::vector<uint32_t>& pattern) {
        EXPECT_EQ(Read(c_), pattern);
      });
}

std::string OrderName(const testing::TestParamInfo<bool>& info) {
  return info.param ? "cuda_graph" : "cuda_stream";
}
INSTANTIATE_TEST_SUITE_P(Orders, StreamOrderTest, testing::Bool(), &OrderName);
INSTANTIATE_TEST_SUITE_P(Orders, LibraryStreamOrderTest, testing::Bool(),
                         &OrderName);

}  // namespace
}  // namespace quire::gpu_check
