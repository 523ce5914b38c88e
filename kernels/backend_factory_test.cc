#include "kernels/backend_factory.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

BackendOptions OptionsFor(const char* device) {
  BackendOptions options;
  options.device = device;
  options.num_threads = 1;
  return options;
}

NvidiaProbe WorkingGpu() { return {true, "580.65.06", true}; }

// A machine with `probe`, whose CUDA backend answers `status`; OK: stands for a
// backend by one of the CPU with two threads.
BackendSources Machine(NvidiaProbe probe, std::optional<absl::Status> status) {
  BackendSources sources;
  sources.probe = [probe] { return probe; };
  if (!status.has_value()) return sources;
  sources.create_cuda =
      [status = *status](
          const BackendOptions& /*options*/,
          std::string* notice) -> absl::StatusOr<std::unique_ptr<Backend>> {
    if (!status.ok()) return status;
    *notice = "without cuBLASLt";
    BackendOptions options = OptionsFor("cpu");
    options.num_threads = 2;
    std::string none;
    return CreateBackend(options, &none);
  };
  return sources;
}

struct Result {
  absl::Status status;
  std::string description;
  std::string notice;
};
Result Create(const char* device, const BackendSources& sources) {
  Result result;
  const auto backend =
      CreateBackend(OptionsFor(device), sources, &result.notice);
  result.status = backend.status();
  if (backend.ok()) {
    const std::string text = (*backend)->Description();
    result.description = text.substr(text.rfind(", ") + 2);
  }
  return result;
}
constexpr char kCpu[] = "1 thread)";
constexpr char kGpu[] = "2 threads)";

TEST(CreateBackendTest, CpuGivesTheCpuBackend) {
  std::string notice = "old";
  const auto backend = CreateBackend(OptionsFor("cpu"), &notice);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
  EXPECT_NE((*backend)->Description().find(", 1 thread)"), std::string::npos);
  EXPECT_FALSE((*backend)->OwnsMemory());
  EXPECT_EQ((*backend)->FreeDeviceBytes().status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(notice, "");
  // Also where a GPU does not work.
  const Result result =
      Create("cpu", Machine(WorkingGpu(), absl::InternalError("broken")));
  EXPECT_EQ(result.description, kCpu);
}

TEST(CreateBackendTest, AutoTakesTheGpuAndPassesItsNoticeOn) {
  for (const char* device : {"auto", "cuda"}) {
    const Result result =
        Create(device, Machine(WorkingGpu(), absl::OkStatus()));
    EXPECT_EQ(result.description, kGpu) << result.status;
    EXPECT_EQ(result.notice, "without cuBLASLt");
  }
}

TEST(CreateBackendTest, AutoIsTheCpuOnlyWhereThereIsNoDevice) {
  Result result = Create("auto", Machine({}, absl::OkStatus()));
  EXPECT_EQ(result.description, kCpu);
  EXPECT_EQ(result.notice, "computing on the CPU: there is no NVIDIA device");
  // A library without a device: a container that was given no GPU.
  result = Create("auto", Machine({false, "", true}, absl::OkStatus()));
  EXPECT_EQ(result.description, kCpu);
  NvidiaProbe hidden = WorkingGpu();
  hidden.is_hidden = true;
  result = Create("auto", Machine(hidden, absl::OkStatus()));
  EXPECT_EQ(result.description, kCpu);
  EXPECT_EQ(result.notice,
            "computing on the CPU: CUDA_VISIBLE_DEVICES names no GPU");
  result = Create("auto", Machine(WorkingGpu(), std::nullopt));
  EXPECT_EQ(result.description, kCpu);
  EXPECT_EQ(result.notice,
            "computing on the CPU: this build has no CUDA backend");
}

TEST(CreateBackendTest, AGpuThatDoesNotWorkIsAnErrorAlsoForAuto) {
  for (const char* device : {"auto", "cuda"}) {
    Result result =
        Create(device, Machine({true, "550.54.15", false}, absl::OkStatus()));
    EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(result.status.message(),
              "there is an NVIDIA device (driver 550.54.15), but its library "
              "libcuda.so.1 is not found; a container gets it from the NVIDIA "
              "container runtime; --device cpu does without");
    result = Create(device,
                    Machine({true, "550.54.15", true},
                            absl::FailedPreconditionError("12.4 is not 13.0")));
    EXPECT_EQ(result.status,
              absl::FailedPreconditionError(
                  "12.4 is not 13.0 (driver 550.54.15); --device cpu does "
                  "without the GPU"));
    // The driver's nodes are there, and no GPU behind them.
    result = Create(
        device,
        Machine(WorkingGpu(), absl::UnavailableError("there is no device 0")));
    EXPECT_EQ(result.status,
              absl::FailedPreconditionError(
                  "there is an NVIDIA device (driver 580.65.06), but CUDA "
                  "finds none that it can use (there is no device 0); --device "
                  "cpu does without the GPU"));
    result =
        Create(device, Machine(WorkingGpu(), absl::InternalError("GPU error")));
    EXPECT_EQ(result.status, absl::InternalError("GPU error"));
    EXPECT_EQ(result.notice, "");
  }
}

TEST(CreateBackendTest, CudaNeverIsTheCpu) {
  EXPECT_EQ(Create("cuda", Machine({}, absl::OkStatus())).status,
            absl::UnavailableError("there is no NVIDIA device"));
  EXPECT_EQ(Create("cuda", Machine(WorkingGpu(), std::nullopt)).status,
            absl::UnavailableError("this build has no CUDA backend"));
}

// Machines with and without a GPU run this.
TEST(CreateBackendTest, AutoWorksHereOrSaysWhy) {
  std::string notice;
  const auto backend = CreateBackend(OptionsFor("auto"), &notice);
  if (!ProbeNvidia().has_device) {
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->Description().substr(0, 5), "cpu (");
    EXPECT_NE(notice, "");
  } else if (!backend.ok()) {
    EXPECT_NE(backend.status().message(), "");
  }
}

TEST(CreateBackendTest, OtherDevicesAreErrors) {
  std::string notice;
  EXPECT_EQ(CreateBackend(OptionsFor("tpu"), &notice).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(notice, "");
}

}  // namespace
}  // namespace quire
