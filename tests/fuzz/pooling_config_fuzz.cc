// The files that make a directory an embedding model's, as untrusted bytes.
//
// Input: modules.json, the Pooling stage's config.json (whatever its folder)
// and sentence_bert_config.json with a 0xFF byte after each but the last; what
// has no byte for it is absent.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/model/pooling_config.h"

namespace quire {
namespace {

constexpr int kHiddenSize = 64;
constexpr char kDirectory[] = "fuzz";

// Names a file.
void CheckError(const absl::Status& status) {
  if (status.ok()) return;
  QUIRE_CHECK(absl::IsInvalidArgument(status) || absl::IsNotFound(status));
  QUIRE_CHECK(absl::StartsWith(status.message(), "fuzz/"));
}

void Run(absl::string_view input) {
  std::optional<absl::string_view> modules, pooling, limits;
  for (auto* text : {&modules, &pooling, &limits}) {
    const size_t end = input.find('\xFF');
    *text = input.substr(0, end);
    if (end == absl::string_view::npos) break;
    input.remove_prefix(end + 1);
  }
  const auto read =
      [&](const std::string& path) -> absl::StatusOr<std::string> {
    // None leaves the directory.
    QUIRE_CHECK(absl::StartsWith(path, "fuzz/"));
    QUIRE_CHECK(!absl::StrContains(path, ".."));
    const auto& text = path == "fuzz/modules.json"                ? modules
                       : path == "fuzz/sentence_bert_config.json" ? limits
                                                                  : pooling;
    if (text.has_value()) return std::string(*text);
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  };
  // By itself, too: most texts of modules.json do not lead to it.
  CheckError(
      ParsePoolingConfig(pooling.value_or(""), "fuzz/p.json", kHiddenSize)
          .status());
  const auto embedding = ParseEmbeddingConfig(kDirectory, kHiddenSize, read);
  CheckError(embedding.status());
  if (!embedding.ok() || !embedding->has_value()) return;
  QUIRE_CHECK((*embedding)->pooling == Pooling::kLast ||
              (*embedding)->pooling == Pooling::kMean);
  QUIRE_CHECK((*embedding)->max_input_tokens >= 0 &&
              (*embedding)->max_input_tokens <= 1 << 26);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
