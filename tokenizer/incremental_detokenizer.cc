#include "tokenizer/incremental_detokenizer.h"

namespace quire {

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer* tokenizer,
                                               bool skip_special_tokens)
    : stream_(tokenizer->NewTokenStream(skip_special_tokens)) {}

std::string IncrementalDetokenizer::Append(int32_t id) {
  return stream_->Append(id);
}

std::string IncrementalDetokenizer::Finish() { return stream_->Finish(); }

}  // namespace quire
