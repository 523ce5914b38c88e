// Histories of steps on the CUDA backend, and requests for an engine on it, for
// tests that compare ways to run them.
#ifndef QUIRE_TESTS_CUDA_HISTORY_H_
#define QUIRE_TESTS_CUDA_HISTORY_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/random_slot_params.h"
#include "tests/model_harness.h"

namespace quire {

inline constexpr int kNumSlots = 12;
inline constexpr int kMaxModelLen = 192;

struct Loaded {
  std::unique_ptr<ModelHarness> harness;
  CudaBackend* backend = nullptr;
};

inline Loaded Load(const std::string& name, bool enforce_eager,
                   int steps_in_flight, int max_num_batched_tokens = 80) {
  Loaded loaded;
  ModelHarness::Options options;
  options.dtype = options.kv_cache_dtype = DType::kBF16;
  options.kv_cache_memory_bytes = 64 << 20;
  options.max_num_seqs = kNumSlots;
  options.max_num_batched_tokens = max_num_batched_tokens;
  options.max_model_len = kMaxModelLen;
  options.steps_in_flight = steps_in_flight;
  options.make_backend = [&]() -> std::unique_ptr<Backend> {
    CudaBackendOptions backend_options;
    backend_options.enforce_eager = enforce_eager;
    backend_options.measures_products = false;
    auto backend = *CudaBackend::Create(backend_options);
    loaded.backend = backend.get();
    return backend;
  };
  auto harness = ModelHarness::Create(
      absl::StrCat("tests/testdata/goldens/", name), options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (harness.ok()) loaded.harness = *std::move(harness);
  return loaded;
}

// What came of a row, bit by bit.
using RowBits = std::vector<uint32_t>;

template <typename T>
void AddBits(absl::Span<const T> values, RowBits* bits) {
  bits->push_back(static_cast<uint32_t>(values.size()));
  for (const T& value : values) bits->push_back(std::bit_cast<uint32_t>(value));
}

inline RowBits BitsOf(const RowResult& result) {
  RowBits bits = {static_cast<uint32_t>(result.slot), result.non_finite,
                  result.all_masked};
  AddBits(result.tokens, &bits);
  AddBits(result.logprobs, &bits);
  AddBits(result.top_ids, &bits);
  AddBits(result.top_logprobs, &bits);
  AddBits(result.scored_logprobs, &bits);
  AddBits(result.scored_ranks, &bits);
  return bits;
}

struct HistorySequence {
  bool is_active = false;
  bool is_new = false;
  SlotParams params;
  std::vector<int32_t> tokens;
  int num_computed = 0;
  int num_prompt_tokens = 0;
  std::vector<int32_t> new_blocks;
  int num_blocks = 0;
};

// A history of steps: sequences come and go; prefills whole and in chunks,
// alone and beside decodes; drafts; scored prompts; every sampling parameter.
class CudaHistory {
 public:
  CudaHistory(const Loaded& loaded, uint64_t seed)
      : backend_(*loaded.backend),
        model_(*loaded.harness->model().model),
        vocab_size_(loaded.harness->vocab_size()),
        random_(seed),
        max_tokens_(loaded.harness->model().shape.max_num_tokens),
        max_logits_(loaded.harness->model().shape.max_logit_rows),
        sequences_(kNumSlots) {}

  // `load`: the part of the slots that take part.
  void Run(int num_steps, double load, std::vector<std::vector<RowBits>>* all) {
    for (int i = 0; i < num_steps && !testing::Test::HasFatalFailure(); ++i) {
      for (HistorySequence& sequence : sequences_) {
        if (!sequence.is_active && random_.Uniform() < 0.3 * load) {
          Start(sequence);
        }
      }
      Step(load, all);
    }
  }

 private:
  void Start(HistorySequence& sequence) {
    sequence = HistorySequence();
    sequence.is_active = sequence.is_new = true;
    if (random_.Below(2) == 0) {
      sequence.params = RandomSlotParams(random_, vocab_size_);
      sequence.params.num_logprobs = std::min(sequence.params.num_logprobs, 20);
      sequence.params.num_prompt_logprobs =
          std::min(sequence.params.num_prompt_logprobs, 20);
    } else {
      sequence.params.temperature = 0.0f;
      sequence.params.num_logprobs = 3;
    }
    const int count = random_.Between(1, 30);
    for (int i = 0; i < count; ++i) {
      sequence.tokens.push_back(random_.Below(vocab_size_));
    }
    sequence.num_prompt_tokens = count;
  }

  void Step(double load, std::vector<std::vector<RowBits>>* all) {
    std::vector<SlotUpdate> updates;
    std::vector<StepRow> rows;
    std::vector<int32_t> ids, scored;
    GraphKey key;
    for (int slot = 0; slot < kNumSlots; ++slot) {
      HistorySequence& sequence = sequences_[slot];
      if (!sequence.is_active || random_.Uniform() > load) continue;
      StepRow row;
      row.slot = slot;
      const int left =
          static_cast<int>(sequence.tokens.size()) - sequence.num_computed;
      row.num_tokens = random_.Below(3) == 0 ? random_.Between(1, left) : left;
      std::vector<int32_t> drafts;
      if (left == 1 && random_.Below(3) == 0) {
        row.num_drafts = random_.Between(1, 3);
        row.num_tokens += row.num_drafts;
        // Such models like to repeat themselves.
        drafts.assign(row.num_drafts, sequence.tokens.back());
      }
      const bool is_last = row.num_tokens >= left;
      row.num_logits = is_last ? 1 + row.num_drafts : 0;
      if (row.num_drafts == 0 && row.num_tokens > 2 && random_.Below(4) == 0) {
        row.num_scored = random_.Between(1, row.num_tokens - 1);
        row.num_logits += row.num_scored;
      }
      if (key.num_tokens + row.num_tokens > max_tokens_ ||
          key.num_logit_rows + row.num_logits > max_logits_) {
        continue;
      }
      const auto first = sequence.tokens.begin() + sequence.num_computed;
      ids.insert(ids.end(), first, first + row.num_tokens - row.num_drafts);
      ids.insert(ids.end(), drafts.begin(), drafts.end());
      for (int i = 0; i < row.num_scored; ++i) {
        scored.push_back(random_.Below(vocab_size_));
      }
      key.num_tokens += row.num_tokens;
      key.num_logit_rows += row.num_logits;
      rows.push_back(row);
    }
    key.num_rows = static_cast<int32_t>(rows.size());
    num_empty_steps_ += rows.empty();
    for (const StepRow& row : rows) {
      HistorySequence& sequence = sequences_[row.slot];
      SlotUpdate update;
      update.slot = row.slot;
      if (sequence.is_new) {
        update.params = &sequence.params;
        update.history = sequence.tokens;
        update.num_prompt_tokens = sequence.num_prompt_tokens;
        sequence.is_new = false;
      }
      sequence.new_blocks.clear();
      while (sequence.num_blocks * 16 <
             sequence.num_computed + row.num_tokens) {
        sequence.new_blocks.push_back(row.slot * (kMaxModelLen / 16) +
                                      sequence.num_blocks++);
      }
      update.append_blocks = sequence.new_blocks;
      updates.push_back(update);
    }
    StepPlan plan;
    plan.updates = updates;
    plan.rows = rows;
    plan.token_ids = ids;
    plan.scored_ids = scored;
    const auto step = backend_.BeginStep(plan);
    ASSERT_TRUE(step.ok()) << step.status();
    const absl::Status run = backend_.Run(
        **step, key, [&] { return model_.Forward(backend_, **step); });
    ASSERT_TRUE(run.ok()) << run;
    ASSERT_TRUE(backend_.EndStep(**step).ok());
    const auto results = backend_.Collect(**step);
    ASSERT_TRUE(results.ok()) << results.status();
    Update(rows, *results, &all->emplace_back());
  }

  void Update(const std::vector<StepRow>& rows,
              absl::Span<const RowResult> results, std::vector<RowBits>* bits) {
    size_t next = 0;
    for (const StepRow& row : rows) {
      HistorySequence& sequence = sequences_[row.slot];
      sequence.num_computed += row.num_tokens;
      if (row.num_logits == 0) continue;
      ASSERT_LT(next, results.size());
      const RowResult& result = results[next++];
      bits->push_back(BitsOf(result));
      if (result.tokens.empty()) continue;
      num_accepted_ += static_cast<int>(result.tokens.size()) - 1;
      sequence.num_computed -=
          1 + row.num_drafts - static_cast<int>(result.tokens.size());
      sequence.tokens.insert(sequence.tokens.end(), result.tokens.begin(),
                             result.tokens.end());
      if (result.all_masked || sequence.tokens.size() > 90 ||
          random_.Below(20) == 0) {
        sequence.is_active = false;
      }
    }
  }

 public:
  int num_accepted() const { return num_accepted_; }
  int num_empty_steps() const { return num_empty_steps_; }

 private:
  CudaBackend& backend_;
  Model& model_;
  const int vocab_size_;
  SimulationRandom random_;
  const int max_tokens_, max_logits_;
  std::vector<HistorySequence> sequences_;
  int num_accepted_ = 0;
  int num_empty_steps_ = 0;
};

inline Request MakeRequest(RequestId id, int vocab_size) {
  SimulationRandom random(id);
  Request request;
  request.id = id;
  for (int i = 0; i < 3 + static_cast<int>(id); ++i) {
    request.prompt_token_ids.push_back(random.Below(vocab_size));
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = 3 + 5 * static_cast<int>(id);
  sampling.ignore_eos = true;
  sampling.num_logprobs = 4;
  sampling.seed = id;
  sampling.temperature = id % 2 == 0 ? 0.0f : 0.9f;
  sampling.top_p = id == 3 ? 0.8f : 1.0f;
  sampling.repetition_penalty = id == 4 ? 1.3f : 1.0f;
  if (id == 5) {
    sampling.dry_multiplier = 2.0f;
    sampling.dry_allowed_length = 1;
  }
  // More ids than a few thousand: lists of their own length.
  if (id == 1) {
    for (int i = 0; i < 30000; ++i) {
      sampling.logit_bias.push_back({i % vocab_size, 1e-4f * (i % 7)});
    }
  }
  return request;
}

inline EngineOptions OptionsOf(const Loaded& loaded, int steps_in_flight) {
  const LoadedModel& model = loaded.harness->model();
  EngineOptions options;
  options.vocab_size = model.config.vocab_size;
  options.max_model_len = model.shape.max_model_len;
  options.max_num_seqs = model.shape.max_num_seqs;
  options.max_num_batched_tokens = model.shape.max_num_tokens;
  options.num_blocks = model.memory.num_blocks;
  options.max_list_entries = model.memory.max_list_entries;
  options.steps_in_flight = steps_in_flight;
  options.check_integrity = true;
  return options;
}

}  // namespace quire

#endif  // QUIRE_TESTS_CUDA_HISTORY_H_
