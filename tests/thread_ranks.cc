#include "tests/thread_ranks.h"

#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/status.h"
#include "kernels/cpu/cpu_backend.h"

namespace quire {
namespace {

bool IsSame(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

bool IsSame(const TokenOutput& a, const TokenOutput& b) {
  if (a.token_id != b.token_id || a.rank != b.rank ||
      !IsSame(a.logprob, b.logprob) ||
      a.top_logprobs.size() != b.top_logprobs.size()) {
    return false;
  }
  for (size_t i = 0; i < a.top_logprobs.size(); ++i) {
    if (a.top_logprobs[i].token_id != b.top_logprobs[i].token_id ||
        !IsSame(a.top_logprobs[i].logprob, b.top_logprobs[i].logprob)) {
      return false;
    }
  }
  return true;
}

bool IsSame(absl::Span<const TokenOutput> a, absl::Span<const TokenOutput> b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!IsSame(a[i], b[i])) return false;
  }
  return true;
}

bool IsSame(const StepResult& a, const StepResult& b) {
  if (a.step_id != b.step_id || a.rows.size() != b.rows.size()) return false;
  for (size_t i = 0; i < a.rows.size(); ++i) {
    const SampledRow& x = a.rows[i];
    const SampledRow& y = b.rows[i];
    if (x.slot != y.slot || x.non_finite != y.non_finite ||
        x.all_masked != y.all_masked || x.embedding != y.embedding ||
        !IsSame(x.tokens, y.tokens) || !IsSame(x.scored, y.scored)) {
      return false;
    }
  }
  return true;
}

}  // namespace

ThreadRanks::~ThreadRanks() = default;

absl::Status ThreadRanks::OnAll(const std::function<absl::Status(int)>& body) {
  std::vector<absl::Status> results(size());
  std::vector<std::thread> threads;
  for (int rank = 1; rank < size(); ++rank) {
    threads.emplace_back([&, rank] { results[rank] = body(rank); });
  }
  results[0] = body(0);
  for (std::thread& thread : threads) thread.join();
  absl::Status first;
  for (const absl::Status& result : results) first.Update(result);
  return first;
}

absl::StatusOr<std::unique_ptr<ThreadRanks>> ThreadRanks::Create(
    const std::string& path, const LoadOptions& load_options,
    const Options& options) {
  std::unique_ptr<ThreadRanks> group(new ThreadRanks);
  const int size = options.tensor_size * options.pipeline_size;
  for (int i = 0; i < options.pipeline_size; ++i) {
    group->tensor_groups_.push_back(std::make_unique<HostTestGroup>(
        options.transport, options.tensor_size));
  }
  for (int i = 0; i < options.tensor_size; ++i) {
    group->pipeline_groups_.push_back(std::make_unique<HostTestGroup>(
        options.transport, options.pipeline_size));
  }
  group->models_.resize(size);
  group->wrapped_.resize(size);
  group->tensor_size_ = options.tensor_size;
  QUIRE_RETURN_IF_ERROR(group->OnAll([&](int rank) -> absl::Status {
    LoadOptions own = load_options;
    ParallelConfig& parallel = own.parallel;
    parallel.tensor_size = options.tensor_size;
    parallel.pipeline_size = options.pipeline_size;
    parallel.size = size;
    parallel.rank = rank;
    const int tensor_rank = parallel.tensor_rank();
    const int pipeline_rank = parallel.pipeline_rank();
    if (options.tensor_size > 1) {
      parallel.tensor =
          (*group->tensor_groups_[pipeline_rank])[tensor_rank].get();
      if (options.wrap_tensor) {
        group->wrapped_[rank] = options.wrap_tensor(parallel.tensor);
        parallel.tensor = group->wrapped_[rank].get();
      }
    }
    if (options.pipeline_size > 1) {
      parallel.pipeline =
          (*group->pipeline_groups_[tensor_rank])[pipeline_rank].get();
    }
    std::unique_ptr<Backend> backend;
    if (options.make_backend) {
      backend = options.make_backend();
    } else {
      CpuBackendOptions backend_options;
      backend_options.threads.num_threads = 1;
      QUIRE_ASSIGN_OR_RETURN(backend, CpuBackend::Create(backend_options));
    }
    absl::StatusOr<LoadedModel> model =
        LoadModel(path, own, std::move(backend));
    if (!model.ok()) {
      if (parallel.tensor != nullptr) parallel.tensor->Abort();
      if (parallel.pipeline != nullptr) parallel.pipeline->Abort();
      return model.status();
    }
    group->models_[rank] = std::make_unique<LoadedModel>(*std::move(model));
    return absl::OkStatus();
  }));
  return group;
}

absl::Status ThreadRanks::Submit(const SchedulerOutput& output) {
  return OnAll([&](int rank) { return models_[rank]->runner->Submit(output); });
}

absl::StatusOr<StepResult> ThreadRanks::Collect() {
  std::vector<StepResult> results(size());
  QUIRE_RETURN_IF_ERROR(OnAll([&](int rank) -> absl::Status {
    QUIRE_ASSIGN_OR_RETURN(results[rank], models_[rank]->runner->Collect());
    return absl::OkStatus();
  }));
  // The ranks of the last stage draw.
  const int first = size() - tensor_size_;
  for (int rank = 0; rank < size(); ++rank) {
    if (rank < first && !results[rank].rows.empty()) {
      return absl::InternalError(
          absl::StrCat("step ", results[0].step_id, ": rank ", rank, " draws"));
    }
    if (rank > first && !IsSame(results[rank], results[first])) {
      return absl::InternalError(absl::StrCat("step ", results[0].step_id,
                                              ": rank ", rank, " disagrees"));
    }
  }
  return std::move(results[first]);
}

}  // namespace quire
