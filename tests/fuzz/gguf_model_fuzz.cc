// Any bytes as a model in a GGUF file: configuration, names of tensors,
// tokenizer. What follows the last byte 0xFF, at most 192 bytes, is a text to
// encode.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cli/model_tokenizer.h"
#include "engine/model/gguf_model.h"
#include "engine/weights/gguf.h"

namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

void RequireNamed(const absl::Status& status) {
  Require(status.ok() || status.message().substr(0, 4) == "fuzz",
          "every error names the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t border = input.rfind('\xFF');
  const std::string text =
      border == std::string::npos ? "a b" : input.substr(border + 1, 192);
  const auto file =
      quire::GgufFile::Parse(absl::MakeConstSpan(data, size), "fuzz");
  RequireNamed(file.status());
  if (!file.ok()) return 0;

  const auto config = quire::ReadGgufModelConfig(**file);
  RequireNamed(config.status());
  if (config.ok()) {
    const auto checkpoint = quire::OpenGgufCheckpoint(*file, config->model);
    RequireNamed(checkpoint.status());
    uint64_t sum = 0;
    if (checkpoint.ok()) {
      for (const auto& [name, tensor] : (*checkpoint)->tensors()) {
        for (const uint8_t byte : tensor.data) sum += byte;
      }
    }
    Require(sum != ~uint64_t{0}, "data can be read");
  }

  std::vector<std::string> warnings;
  const auto tokenizer = quire::MakeGgufTokenizer(**file, &warnings);
  RequireNamed(tokenizer.status());
  if (!tokenizer.ok()) return 0;
  for (const bool parses : {false, true}) {
    const auto ids = (*tokenizer)->Encode(text, {true, parses});
    if (ids.ok()) (*tokenizer)->Decode(*ids);
  }
  return 0;
}
