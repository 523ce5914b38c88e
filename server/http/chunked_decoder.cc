#include "server/http/chunked_decoder.h"

#include <algorithm>

namespace quire {
namespace {

// Digits of a size that cannot overflow int64 and is far above any limit.
constexpr int kMaxSizeDigits = 12;
// Extensions and trailers of a whole body: nobody sends them, so what is
// allowed need not be much.
constexpr int64_t kMaxIgnoredBytes = 4 << 10;

constexpr HttpError kMalformed = {400, "malformed chunked body"};
constexpr HttpError kTooLarge = {413, "request body too large"};

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool IsTextChar(char c) {
  return c == '\t' || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
}

}  // namespace

std::optional<HttpError> ChunkedDecoder::DecodeByte(char c) {
  switch (state_) {
    case State::kSize: {
      if (const int digit = HexDigit(c); digit >= 0) {
        if (++num_digits_ > kMaxSizeDigits) return kTooLarge;
        chunk_left_ = chunk_left_ * 16 + digit;
        return std::nullopt;
      }
      if (num_digits_ == 0) return kMalformed;
      if (c == '\r') {
        state_ = State::kSizeLf;
      } else if (c == ';') {
        state_ = State::kExtension;
      } else {
        return kMalformed;
      }
      return std::nullopt;
    }
    case State::kExtension:
      if (c == '\r') {
        state_ = State::kSizeLf;
      } else if (!IsTextChar(c) || ++num_ignored_bytes_ > kMaxIgnoredBytes) {
        return kMalformed;
      }
      return std::nullopt;
    case State::kSizeLf:
      if (c != '\n') return kMalformed;
      num_body_bytes_ += chunk_left_;
      if (num_body_bytes_ > max_body_bytes_) return kTooLarge;
      num_digits_ = 0;
      state_ = chunk_left_ == 0 ? State::kLineStart : State::kData;
      return std::nullopt;
    case State::kDataCr:
      if (c != '\r') return kMalformed;
      state_ = State::kDataLf;
      return std::nullopt;
    case State::kDataLf:
      if (c != '\n') return kMalformed;
      state_ = State::kSize;
      return std::nullopt;
    case State::kLineStart:
    case State::kTrailer:
      if (c == '\r') {
        state_ =
            state_ == State::kLineStart ? State::kFinalLf : State::kTrailerLf;
      } else if (!IsTextChar(c) || ++num_ignored_bytes_ > kMaxIgnoredBytes) {
        return kMalformed;
      } else {
        state_ = State::kTrailer;
      }
      return std::nullopt;
    case State::kTrailerLf:
      if (c != '\n') return kMalformed;
      state_ = State::kLineStart;
      return std::nullopt;
    case State::kFinalLf:
      if (c != '\n') return kMalformed;
      state_ = State::kDone;
      return std::nullopt;
    case State::kData:
    case State::kDone:
      break;
  }
  return kMalformed;
}

std::optional<HttpError> ChunkedDecoder::Decode(absl::string_view data,
                                                std::string* body,
                                                size_t* num_consumed) {
  size_t position = 0;
  *num_consumed = 0;
  while (position < data.size() && state_ != State::kDone) {
    if (state_ == State::kData) {
      const size_t size = std::min<size_t>(chunk_left_, data.size() - position);
      body->append(data.data() + position, size);
      position += size;
      chunk_left_ -= size;
      if (chunk_left_ == 0) state_ = State::kDataCr;
      continue;
    }
    if (auto error = DecodeByte(data[position])) return error;
    ++position;
  }
  *num_consumed = position;
  return std::nullopt;
}

}  // namespace quire
