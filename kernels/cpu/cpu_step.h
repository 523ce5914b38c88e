// Private parts of the CPU backend: one step, the KV storage of one attention
// spec, and checks of views. Included by cpu_backend.cc and cpu_operations.cc.
#ifndef QUIRE_KERNELS_CPU_CPU_STEP_H_
#define QUIRE_KERNELS_CPU_CPU_STEP_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/mapped_memory.h"
#include "kernels/cpu/sampling.h"

namespace quire {

// A row of a step, with its place in the batch.
struct StepRowState {
  StepRow row;
  int64_t first_position = 0;
  int32_t first_token = 0;
  int32_t first_logit = 0;
};

// Where the draws of a row come from.
struct LogitRows {
  const float* rows = nullptr;  // [draws, stride]: whole rows.
  int64_t stride = 0;
  const SampleOutput* draws = nullptr;  // In place of rows: already drawn.
};

struct CpuStep {
  enum class State : uint8_t { kFree, kBegun, kEnded };
  State state = State::kFree;
  bool is_sampled = false;
  absl::Status status;
  int32_t num_tokens = 0;
  int32_t num_logits = 0;
  std::vector<StepRowState> rows;
  std::vector<AttentionRow> attention_rows;
  std::vector<int32_t> token_ids;      // [num_tokens]
  std::vector<int32_t> positions;      // [num_tokens]
  std::vector<int32_t> token_row;      // [num_tokens], index into `rows`.
  std::vector<int32_t> logit_token;    // [num_logits], index of its token.
  std::vector<int32_t> sampled_rows;   // Rows with logits.
  std::vector<int32_t> scored_ids;     // [number of scored logits]
  std::vector<int32_t> scored_logits;  // Their indices among the logits.
  // Results, one entry for each logit row; a row uses as many as it accepts.
  std::vector<RowResult> results;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> ranks;       // Of scored logits.
  std::vector<char> is_non_finite;  // Of scored logits.
  std::vector<int64_t> top_begin;   // [num_logits]
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<float> embeddings;  // [num_logits, pooled_cols]

  // Of logits in slices: where the best entries of a draw lie in the records.
  struct Record {
    int64_t begin = -1;  // -1: not drawn by them.
    int32_t row_idx = 0;
    int32_t draw_idx = 0;
  };
  std::vector<Record> records;      // [num_logits]
  std::vector<float> own_records;   // See cpu_sampling.cc.
  std::vector<float> all_records;   // [ranks, size of own_records]
  std::vector<SampleOutput> draws;  // [num_logits]
  std::vector<std::pair<float, int32_t>> merged_top;
  // What is computed from whole rows.
  struct Gathered {
    int32_t idx = 0;  // Of scored_logits or of sampled_rows.
    bool is_scored = false;
    int32_t first_logit = 0;
    int32_t num_logits = 0;
    int64_t first_row = 0;  // Of the gathered ones.
  };
  std::vector<Gathered> gathered;
};

struct KvLayers {
  AttentionSpec spec;
  KvBlockLayout layout;  // Of one block of one layer.
  int64_t layer_bytes = 0;
  MappedMemory memory;

  int64_t BytesPerBlock() const {
    return spec.num_layers * layout.BlockBytes();
  }
};

// Step is opaque to everybody; the CPU backend's are CpuSteps.
inline CpuStep& AsCpuStep(Step& step) {
  return *reinterpret_cast<CpuStep*>(&step);
}

// INVALID_ARGUMENT unless `view` is f32 with at least `rows` rows and exactly
// `cols` columns.
absl::Status CheckView(const char* name, const TensorView& view, int64_t rows,
                       int64_t cols);

// The same for the weight and bias of a norm over `cols`.
absl::Status CheckNorm(const char* name, const NormSpec& norm, int64_t cols);

// Whether the norms of q and k are RMS norms of all heads together, perhaps of
// other ranks, too: they are computed in one way on any number of ranks.
bool MeasuresHeads(const AttentionSpec& spec);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_CPU_STEP_H_
