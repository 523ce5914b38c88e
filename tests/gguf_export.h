// Writes a model directory as a GGUF file, the way llama.cpp's
// convert_hf_to_gguf does, for tests.
#ifndef QUIRE_TESTS_GGUF_EXPORT_H_
#define QUIRE_TESTS_GGUF_EXPORT_H_

#include <string>

#include "absl/status/status.h"
#include "engine/weights/gguf_fixture.h"
#include "kernels/quant_format.h"

namespace quire {

struct GgufExportOptions {
  // Of matrices; other tensors are F32.
  uint32_t matrix_type = GgufTensorType::kF32;
  // F32 of what matrix_type holds: the same numbers without the format.
  bool is_decoded = false;
  // q, k and v in one tensor.
  bool fuses_qkv = false;
};

// Adds the keys and tensors of `directory` (config.json, safetensors) to
// `writer`. INVALID_ARGUMENT or UNIMPLEMENTED for a family that this does not
// know or a configuration that the format cannot express.
absl::Status ExportGgufModel(const std::string& directory,
                             const GgufExportOptions& options,
                             GgufWriter* writer);

// Adds the keys of `directory`/tokenizer.json, byte-level BPE, and of
// tokenizer_config.json if it is there, under the name `pre`.
absl::Status ExportGgufWordPiece(const std::string& directory,
                                 GgufWriter* writer);
absl::Status ExportGgufTokenizer(const std::string& directory,
                                 const std::string& pre, GgufWriter* writer);

// Adds the keys of `directory`/tokenizer.model.
absl::Status ExportGgufSentencePiece(const std::string& directory,
                                     GgufWriter* writer);

}  // namespace quire

#endif  // QUIRE_TESTS_GGUF_EXPORT_H_
