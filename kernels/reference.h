// Every operation of kernels/backend.h in the plainest way, accumulated in
// double: what the backends are tested against. Used by tests and nothing else.
//
// It rounds where backend.h says and nowhere else: x' to bf16 for bf16 weights,
// K and V to kv_dtype, activations to the dtype of their view. Sampling follows
// kernels/sampling.h with sorts and double sums; the logits it compares are the
// f32 values that the processing order defines.
#ifndef QUIRE_KERNELS_REFERENCE_H_
#define QUIRE_KERNELS_REFERENCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"

namespace quire {

// norm(y), unrounded.
std::vector<double> ReferenceNorm(const NormSpec& norm,
                                  absl::Span<const double> y);

struct ReferenceSample {
  int32_t token = 0;
  double logprob = 0.0;
  std::vector<int32_t> top_ids;
  std::vector<double> top_logprobs;
  bool non_finite = false;
  bool all_masked = false;
};

// All steps of kernels/sampling.h for one row.
//   history: the prompt's num_prompt_tokens tokens, then the generated ones.
//   position: of the token to draw.
ReferenceSample ReferenceSampleRow(absl::Span<const float> logits,
                                   const SlotParams& params,
                                   absl::Span<const int32_t> history,
                                   int32_t num_prompt_tokens, int64_t position);

// The probabilities that step 12 draws from where XTC does not apply, by id: 0
// for what the filters drop. Requires: params.temperature > 0.
std::vector<double> ReferenceDistribution(absl::Span<const float> logits,
                                          const SlotParams& params,
                                          absl::Span<const int32_t> history,
                                          int32_t num_prompt_tokens,
                                          int64_t position);

// What a backend does with quantized weights, beside multiplying x' by the
// values that the formats define.
enum class QuantizedProducts : uint8_t {
  kExact,
  // The CPU's rounding (kernels/backend.h): x' to 8 bits for block formats and
  // kInt4 in groups of whole blocks of 32 columns, to bf16 for kFp8; both
  // factors to bf16 for other parts and for gate and up that differ in format.
  kInt8,
};

// Thread-compatible. Accepts activations of any floating dtype. Keeps the
// contract of Backend but checks little: tests give it valid input.
struct ReferenceOptions {
  // Activations in this dtype (bf16 or f16), with the further roundings that
  // backend.h lists for a backend which has them; none: as the views say.
  // Probabilities are rounded relative to the largest of all.
  std::optional<DType> activations;
  // Of such a backend: whether steps of many tokens multiply kFp8 weights in 8
  // bits, as GPUs do from compute capability 8.9 on.
  bool multiplies_in_fp8 = true;
};

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const ReferenceOptions& options);
  explicit ReferenceBackend(
      QuantizedProducts quantized_products = QuantizedProducts::kExact);
  ~ReferenceBackend() override;

  std::string Description() const override;
  DType ActivationDType(DType weights) const override;
  bool SupportsLinear(DType weights, QuantFormat format) const override;
  absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec& spec) override;
  absl::StatusOr<TensorView> Upload(TensorView host) override;
  absl::StatusOr<int> AddAttention(const AttentionSpec& spec) override;
  int AddActivation(int64_t cols, DType dtype, ActivationRows rows) override;
  absl::StatusOr<MemoryPlan> Prepare(const EngineShape& shape) override;
  TensorView Activation(int id) const override;

  absl::StatusOr<Step*> BeginStep(const StepPlan& plan) override;
  absl::Status Run(Step& step, const GraphKey& key,
                   absl::FunctionRef<absl::Status()> enqueue) override;
  absl::Status EndStep(Step& step) override;
  bool Done(const Step& step) const override;
  absl::StatusOr<absl::Span<const RowResult>> Collect(Step& step) override;

  absl::Status Embed(Step& step, const PackedWeight& vocab,
                     const PackedWeight* positions, float scale,
                     TensorView out) override;
  absl::Status AddPositions(Step& step, const PackedWeight& positions,
                            TensorView x) override;
  absl::Status Norm(Step& step, TensorView x, const Prologue& prologue,
                    TensorView out) override;
  absl::Status Linear(Step& step, TensorView x, const Prologue& prologue,
                      const PackedWeight& weight, const Epilogue& epilogue,
                      TensorView out) override;
  absl::Status Attention(Step& step, int spec_id, int layer, TensorView qkv,
                         TensorView out) override;
  absl::Status Logits(Step& step, TensorView hidden, const Prologue& prologue,
                      const PackedWeight& vocab, float scale, float softcap,
                      TensorView out) override;
  absl::Status GatherLogitRows(Step& step, TensorView x,
                               TensorView out) override;
  absl::Status Transfer(Step& step, TransferKind kind, Communicator& ranks,
                        int peer, TensorView x) override;
  absl::Status Advance(Step& step) override;
  absl::Status Sample(Step& step, TensorView logits) override;
  absl::Status Pool(Step& step, TensorView hidden, const Prologue& prologue,
                    Pooling pooling) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_REFERENCE_H_
