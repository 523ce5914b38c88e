// `quire bench quality`: what a quantized model's distributions are away from
// those of its exact form.
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/quality.h"
#include "benchmarks/statistics.h"
#include "cli/bench.h"
#include "cli/bench_output.h"
#include "cli/exit_codes.h"
#include "cli/session.h"
#include "engine/base/status.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// Logits of every position are read from the model: a group of processes
// answers with drawn tokens.
absl::Status CheckOneProcess(const SessionOptions& options) {
  if ((options.tensor_parallel_size == "auto" ||
       options.tensor_parallel_size == "1") &&
      options.pipeline_parallel_size == 1) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "bench quality compares models in one process: it takes no "
      "--tensor-parallel-size and no --pipeline-parallel-size");
}

std::unique_ptr<Session> LoadForChunks(SessionOptions options, int context,
                                       CommandError* error) {
  options.tensor_parallel_size = "1";  // auto: all GPUs.
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = context;
  options.max_model_len = absl::StrCat(context + 1);
  return LoadSession(options, error);
}

// As many chunks of `context` tokens as `text` fills, each with the begin token
// in front if the tokenizer adds one.
absl::StatusOr<std::vector<std::vector<int32_t>>> MakeChunks(
    const std::string& path, const Tokenizer& tokenizer, int context) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         tokenizer.Encode(text));
  const std::optional<int32_t> bos = tokenizer.bos_token_id();
  const bool has_bos = bos.has_value() && !ids.empty() && ids[0] == *bos;
  std::vector<std::vector<int32_t>> chunks;
  for (size_t i = 0; i + context <= ids.size(); i += context) {
    chunks.emplace_back(ids.begin() + i, ids.begin() + i + context);
    if (has_bos) chunks.back().front() = *bos;
  }
  if (chunks.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", ids.size(),
                     " tokens, less than one chunk of ", context));
  }
  return chunks;
}

absl::Status Compare(LoadedModel* exact, LoadedModel* found,
                     const std::vector<std::vector<int32_t>>& chunks,
                     DivergenceMeter* meter) {
  const int context = static_cast<int>(chunks[0].size());
  if (exact->config.vocab_size != found->config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the models have vocabularies of ", exact->config.vocab_size, " and ",
        found->config.vocab_size, " tokens"));
  }
  QUIRE_ASSIGN_OR_RETURN(ChunkScorer exact_scorer,
                         ChunkScorer::Create(exact, context));
  QUIRE_ASSIGN_OR_RETURN(ChunkScorer scorer,
                         ChunkScorer::Create(found, context));
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  ProgressLine line(true);
  const int first = context / 2;
  for (size_t i = 0; i < chunks.size() && !is_interrupted; ++i) {
    line.Show("chunks", i, chunks.size(), "");
    QUIRE_ASSIGN_OR_RETURN(const Distributions p,
                           exact_scorer.Score(chunks[i], first));
    QUIRE_ASSIGN_OR_RETURN(const Distributions q,
                           scorer.Score(chunks[i], first));
    for (size_t j = 0; j < p.size(); ++j) {
      meter->Add(p[j], q[j], chunks[i][first + j + 1]);
    }
  }
  return absl::OkStatus();
}

// The means over the positions of each chunk, of which all have as many.
std::vector<double> ChunkMeans(const std::vector<double>& divergences,
                               size_t num_chunks) {
  const size_t size = divergences.size() / num_chunks;
  std::vector<double> means;
  for (size_t i = 0; size > 0 && i + size <= divergences.size(); i += size) {
    means.push_back(
        Mean({divergences.begin() + i, divergences.begin() + i + size}));
  }
  return means;
}

}  // namespace

int RunBenchQuality(const BenchQualityOptions& options) {
  const std::atomic<bool>& is_interrupted = InterruptFlag();
  CommandError error;
  if (const absl::Status status = CheckOneProcess(options.model);
      !status.ok()) {
    return FailBench(status, kExitUsage);
  }
  const auto found = LoadForChunks(options.model, options.context, &error);
  if (found == nullptr) return FailBench(error.status, error.exit_code);
  SessionOptions exact_options = options.model;
  exact_options.model = options.reference;
  exact_options.gguf_file.clear();
  exact_options.quantization.clear();
  exact_options.dtype = "float32";
  exact_options.kv_cache_dtype = "f32";
  const auto exact = LoadForChunks(exact_options, options.context, &error);
  if (exact == nullptr) return FailBench(error.status, error.exit_code);
  const auto chunks =
      MakeChunks(options.text, *found->tokenizer, options.context);
  if (!chunks.ok()) return FailBench(chunks.status(), kExitUsage);
  DivergenceMeter meter;
  if (const absl::Status status =
          Compare(&exact->loaded, &found->loaded, *chunks, &meter);
      !status.ok()) {
    return FailBench(status, kExitEngine);
  }
  if (meter.num_positions() == 0) return kExitInterrupted;
  const std::vector<double>& divergences = meter.divergences();
  const double mean = Mean(divergences);
  const double deviation = SampleDeviation(divergences) /
                           std::sqrt(static_cast<double>(divergences.size()));
  absl::PrintF("%d positions of %d chunks of %d tokens\n",
               meter.num_positions(), chunks->size(), options.context);
  absl::PrintF("mean divergence   %.6f +- %.6f nats\n", mean, deviation);
  absl::PrintF("median, 99 %%, max %.6f, %.6f, %.6f\n", Median(divergences),
               Percentile(divergences, 99), Percentile(divergences, 100));
  absl::PrintF("perplexity        %.4f, reference %.4f\n", meter.Perplexity(),
               meter.ExactPerplexity());
  absl::PrintF("same likeliest    %.2f %%\n", 100 * meter.SameTopShare());
  if (!options.output_json.empty()) {
    const Json json = {
        {"num_positions", meter.num_positions()},
        {"mean_divergence", mean},
        {"mean_divergence_deviation", deviation},
        {"median_divergence", Median(divergences)},
        {"p99_divergence", Percentile(divergences, 99)},
        {"max_divergence", Percentile(divergences, 100)},
        {"perplexity", meter.Perplexity()},
        {"reference_perplexity", meter.ExactPerplexity()},
        {"same_top_share", meter.SameTopShare()},
        // For paired comparisons of programs.
        {"chunk_divergences", ChunkMeans(divergences, chunks->size())}};
    const absl::Status status =
        WriteTextFile(options.output_json, json.dump(2) + "\n");
    if (!status.ok()) return FailBench(status, kExitDevice);
  }
  return is_interrupted ? kExitInterrupted : kExitOk;
}

}  // namespace quire
