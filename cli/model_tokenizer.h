// The tokenizer of a model, from a directory or a GGUF file.
#ifndef QUIRE_CLI_MODEL_TOKENIZER_H_
#define QUIRE_CLI_MODEL_TOKENIZER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/gguf.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// `path`: a directory (Tokenizer::Create) or a GGUF file. Errors name the file
// and the key; `warnings` gets a line for each thing a person should know.
absl::StatusOr<std::unique_ptr<Tokenizer>> OpenModelTokenizer(
    const std::string& path, std::vector<std::string>* warnings);

// The same of a file that is open.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(
    const GgufFile& file, std::vector<std::string>* warnings);

}  // namespace quire

#endif  // QUIRE_CLI_MODEL_TOKENIZER_H_
