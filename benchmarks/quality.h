// How far a model's distributions are from those of a more exact form of the
// same model, over the whole vocabulary: what quantization costs. Chunks and
// scored positions are those of llama.cpp's tool (tools/perplexity
// --kl-divergence), so that both can be held against each other.
#ifndef QUIRE_BENCHMARKS_QUALITY_H_
#define QUIRE_BENCHMARKS_QUALITY_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/loaded_model.h"

namespace quire {

// Log-probabilities by token id, in nats, at one position after another.
using Distributions = std::vector<std::vector<float>>;

// Thread-compatible; `model` must outlive it. Requires: the model generates.
class ChunkScorer {
 public:
  // RESOURCE_EXHAUSTED if the KV cache does not hold `chunk_len` tokens.
  static absl::StatusOr<ChunkScorer> Create(LoadedModel* model, int chunk_len);

  // The distributions behind the tokens first, first + 1, ... up to the one
  // before the last: each says how likely the chunk's next token is.
  // Requires: 0 <= first < chunk.size() - 1, at most chunk_len tokens.
  absl::StatusOr<Distributions> Score(absl::Span<const int32_t> chunk,
                                      int first);

 private:
  explicit ChunkScorer(LoadedModel* model);
  // Computes chunk[begin, end) and returns the distribution behind the last.
  absl::StatusOr<std::vector<float>> Step(absl::Span<const int32_t> chunk,
                                          int begin, int end);

  LoadedModel* model_;
  SamplingParams params_;
};

// Sums over positions.
class DivergenceMeter {
 public:
  // `exact` and `found`: of the same position; `next` is the text's own token
  // there.
  void Add(absl::Span<const float> exact, absl::Span<const float> found,
           int32_t next);

  int64_t num_positions() const { return divergences_.size(); }
  // sum p (log p - log q) of each position.
  const std::vector<double>& divergences() const { return divergences_; }
  // exp of the mean of -log p(next).
  double ExactPerplexity() const;
  double Perplexity() const;
  // The part of the positions at which both hold the same token for likeliest.
  double SameTopShare() const;

 private:
  std::vector<double> divergences_;
  double exact_loss_ = 0;
  double loss_ = 0;
  int64_t num_same_top_ = 0;
};

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_QUALITY_H_
