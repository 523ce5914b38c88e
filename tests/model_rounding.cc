#include "tests/model_rounding.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "kernels/reference.h"

namespace quire {

std::vector<std::string> GoldenModels() {
  std::vector<std::string> models;
  for (const auto& entry :
       std::filesystem::directory_iterator("tests/testdata/goldens")) {
    const std::string name = entry.path().filename();
    // Embeddings: tests/backend_pooling_test.
    if (name.rfind("embed", 0) == 0 ||
        !std::filesystem::exists(entry.path() / "model.safetensors")) {
      continue;
    }
    models.push_back(entry.path());
  }
  std::sort(models.begin(), models.end());
  return models;
}

std::unique_ptr<Backend> MakeRoundingReference(bool multiplies_in_fp8) {
  ReferenceOptions options;
  options.multiplies_in_fp8 = multiplies_in_fp8;
  options.activations = DType::kBF16;
  return std::make_unique<ReferenceBackend>(options);
}

std::unique_ptr<Backend> MakeExactReference() {
  return std::make_unique<ReferenceBackend>(ReferenceOptions());
}

double LargestDifference(const TokenOutput& a, const TokenOutput& b) {
  double largest = 0.0;
  int num_common = 0;
  for (const TopLogprob& top : a.top_logprobs) {
    for (const TopLogprob& found : b.top_logprobs) {
      if (found.token_id != top.token_id) continue;
      const double difference =
          std::abs(double{top.logprob} - double{found.logprob});
      if (std::isnan(difference)) return INFINITY;
      largest = std::max(largest, difference);
      ++num_common;
    }
  }
  return num_common >= kNumRoundingTop / 2 ? largest : INFINITY;
}

}  // namespace quire
