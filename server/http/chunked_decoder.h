// Decodes chunked request bodies (RFC 9112 7.1) as their bytes arrive.
#ifndef QUIRE_SERVER_HTTP_CHUNKED_DECODER_H_
#define QUIRE_SERVER_HTTP_CHUNKED_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "server/http/head_guard.h"

namespace quire {

// Strict: sizes are hexadecimal digits only, lines end with CR LF. Extensions
// and trailer fields are read over, and are limited. One decoder per body.
class ChunkedDecoder {
 public:
  explicit ChunkedDecoder(int64_t max_body_bytes)
      : max_body_bytes_(max_body_bytes) {}

  // Consumes bytes of `data` up to the end of the body, appends what they carry
  // to `body` and sets `num_consumed`. 400 (malformed) or 413 (more than
  // max_body_bytes); do not call it again after that or once is_done().
  std::optional<HttpError> Decode(absl::string_view data, std::string* body,
                                  size_t* num_consumed);
  bool is_done() const { return state_ == State::kDone; }

 private:
  enum class State : uint8_t {
    kSize,       // Digits of a chunk size.
    kExtension,  // From ";" to CR.
    kSizeLf,     // The LF after it.
    kData,       //
    kDataCr,     // CR LF after the data.
    kDataLf,     //
    kLineStart,  // First byte of a trailer line, or of the last blank line.
    kTrailer,    // In a trailer line.
    kTrailerLf,  // LF that ends a trailer line.
    kFinalLf,    // LF that ends the body.
    kDone,
  };

  std::optional<HttpError> DecodeByte(char c);

  int64_t max_body_bytes_;
  State state_ = State::kSize;
  int num_digits_ = 0;
  int64_t chunk_left_ = 0;      // Size read so far; then bytes still to come.
  int64_t num_body_bytes_ = 0;  // Announced by the sizes so far.
  int64_t num_ignored_bytes_ = 0;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_CHUNKED_DECODER_H_
