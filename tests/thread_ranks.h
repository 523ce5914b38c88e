// A model on several ranks of this process: one thread, backend and part of the
// weights each, over the host's communicators.
#ifndef QUIRE_TESTS_THREAD_RANKS_H_
#define QUIRE_TESTS_THREAD_RANKS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/loaded_model.h"
#include "engine/model_runner.h"
#include "kernels/host_communicator_test_group.h"

namespace quire {

// Runs each step on all ranks and answers as the last stage's first one does.
// INTERNAL if ranks of that stage disagree in a token or in a bit of a
// log-probability, or others draw. Thread-compatible.
class ThreadRanks : public ModelRunner {
 public:
  struct Options {
    int tensor_size = 1;
    int pipeline_size = 1;
    HostTransport transport = HostTransport::kSharedMemory;
    // Null: the CPU's, of one thread.
    std::function<std::unique_ptr<Backend>()> make_backend;
    // What a rank has in place of its tensor group's communicator, which
    // outlives it. Null: that one.
    std::function<std::unique_ptr<Communicator>(Communicator*)> wrap_tensor;
  };

  // Loads `path` on all ranks; the first error is returned.
  static absl::StatusOr<std::unique_ptr<ThreadRanks>> Create(
      const std::string& path, const LoadOptions& load_options,
      const Options& options);
  ~ThreadRanks() override;

  const LoadedModel& rank(int i) const { return *models_[i]; }
  int size() const { return static_cast<int>(models_.size()); }

  int steps_in_flight() const override {
    return models_[0]->runner->steps_in_flight();
  }
  absl::Status Submit(const SchedulerOutput& output) override;
  absl::StatusOr<StepResult> Collect() override;
  bool Done() const override { return models_[0]->runner->Done(); }

 private:
  ThreadRanks() = default;

  // Runs body(rank) on a thread for each rank; the first error of any.
  absl::Status OnAll(const std::function<absl::Status(int)>& body);

  int tensor_size_ = 1;
  // By stage, and by rank in the tensor group.
  std::vector<std::unique_ptr<HostTestGroup>> tensor_groups_;
  std::vector<std::unique_ptr<HostTestGroup>> pipeline_groups_;
  std::vector<std::unique_ptr<Communicator>> wrapped_;  // By rank.
  std::vector<std::unique_ptr<LoadedModel>> models_;
};

}  // namespace quire

#endif  // QUIRE_TESTS_THREAD_RANKS_H_
