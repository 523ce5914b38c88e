#include "benchmarks/serving/response_reader.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status Malformed(absl::string_view what, absl::string_view text) {
  return absl::DataLossError(absl::StrCat(
      "not an HTTP/1.1 response: ", what, ": \"",
      absl::CHexEscape(text.substr(0, std::min<size_t>(text.size(), 60))),
      "\""));
}

absl::Status TooLong(absl::string_view what, int64_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the server's ", what, " exceeds ", limit, " bytes"));
}

}  // namespace

absl::StatusOr<bool> ResponseReader::TakeLine(absl::string_view* bytes) {
  const size_t end = bytes->find('\n');
  const size_t size = end == absl::string_view::npos ? bytes->size() : end;
  if (static_cast<int64_t>(head_.size() + line_.size() + size) >
      limits_.max_head_bytes) {
    return TooLong("head", limits_.max_head_bytes);
  }
  line_.append(bytes->data(), size);
  if (end == absl::string_view::npos) {
    bytes->remove_prefix(size);
    return false;
  }
  bytes->remove_prefix(size + 1);
  if (!line_.empty() && line_.back() == '\r') line_.pop_back();
  return true;
}

absl::Status ResponseReader::ReadHead(absl::string_view head) {
  const std::vector<absl::string_view> lines = absl::StrSplit(head, '\n');
  absl::string_view status_line = lines[0];
  const bool is_http_1_1 = absl::ConsumePrefix(&status_line, "HTTP/1.1 ");
  if ((!is_http_1_1 && !absl::ConsumePrefix(&status_line, "HTTP/1.0 ")) ||
      status_line.size() < 3 ||
      !absl::SimpleAtoi(status_line.substr(0, 3), &http_status_) ||
      http_status_ < 100) {
    return Malformed("status line", lines[0]);
  }
  bool is_chunked = false;
  bool has_length = false;
  is_reusable_ = is_http_1_1;
  left_ = 0;
  for (size_t i = 1; i < lines.size(); ++i) {
    const size_t colon = lines[i].find(':');
    if (colon == absl::string_view::npos) {
      return Malformed("header", lines[i]);
    }
    const std::string name = absl::AsciiStrToLower(lines[i].substr(0, colon));
    const std::string value = absl::AsciiStrToLower(
        absl::StripAsciiWhitespace(lines[i].substr(colon + 1)));
    if (name == "content-type") {
      is_event_stream_ = absl::StartsWith(value, "text/event-stream");
    } else if (name == "transfer-encoding") {
      if (value != "chunked") return Malformed("transfer-encoding", value);
      is_chunked = true;
    } else if (name == "content-length") {
      if (!absl::SimpleAtoi(value, &left_) || left_ < 0) {
        return Malformed("content-length", value);
      }
      has_length = true;
    } else if (name == "connection") {
      if (value == "close") is_reusable_ = false;
      if (value == "keep-alive") is_reusable_ = true;
    }
  }
  if (http_status_ < 200) {
    part_ = Part::kHead;  // 100 Continue and the like: the response follows.
  } else if (http_status_ == 204 || http_status_ == 304) {
    part_ = Part::kDone;
  } else if (is_chunked) {
    part_ = Part::kChunkSize;
  } else if (has_length) {
    part_ = left_ == 0 ? Part::kDone : Part::kSized;
  } else {
    part_ = Part::kUntilClose;
    is_reusable_ = false;
  }
  return absl::OkStatus();
}

absl::Status ResponseReader::ReadChunkSize(absl::string_view line) {
  const absl::string_view digits =
      absl::StripAsciiWhitespace(line.substr(0, line.find(';')));
  // 15 digits: no overflow.
  if (digits.empty() || digits.size() > 15 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") !=
          absl::string_view::npos) {
    return Malformed("size of a chunk", line);
  }
  left_ = 0;
  for (char c : digits) {
    left_ =
        left_ * 16 +
        (absl::ascii_isdigit(c) ? c - '0' : absl::ascii_tolower(c) - 'a' + 10);
  }
  part_ = left_ == 0 ? Part::kChunkTrailer : Part::kChunk;
  return absl::OkStatus();
}

void ResponseReader::EndEvent(OnEvent on_event) {
  if (has_data_) on_event(event_data_);
  event_data_.clear();
  has_data_ = false;
}

absl::Status ResponseReader::AddBody(absl::string_view bytes,
                                     OnEvent on_event) {
  if (!is_event_stream_) {
    const int64_t room = limits_.max_kept_bytes - body_.size();
    body_.append(bytes.data(), std::min<int64_t>(room, bytes.size()));
    return absl::OkStatus();
  }
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    const size_t size = end == absl::string_view::npos ? bytes.size() : end;
    if (static_cast<int64_t>(event_line_.size() + size) >
        limits_.max_event_bytes) {
      return TooLong("event", limits_.max_event_bytes);
    }
    event_line_.append(bytes.data(), size);
    if (end == absl::string_view::npos) return absl::OkStatus();
    bytes.remove_prefix(size + 1);
    if (!event_line_.empty() && event_line_.back() == '\r') {
      event_line_.pop_back();
    }
    absl::string_view line = event_line_;
    if (line.empty()) {
      EndEvent(on_event);
    } else if (absl::ConsumePrefix(&line, "data:")) {
      absl::ConsumePrefix(&line, " ");
      if (has_data_) event_data_ += '\n';
      has_data_ = true;
      absl::StrAppend(&event_data_, line);
      if (static_cast<int64_t>(event_data_.size()) > limits_.max_event_bytes) {
        return TooLong("event", limits_.max_event_bytes);
      }
    }
    event_line_.clear();
  }
  return absl::OkStatus();
}

absl::Status ResponseReader::TakeBody(absl::string_view* bytes,
                                      OnEvent on_event) {
  const absl::string_view taken =
      bytes->substr(0, std::min<int64_t>(left_, bytes->size()));
  bytes->remove_prefix(taken.size());
  left_ -= taken.size();
  return AddBody(taken, on_event);
}

absl::Status ResponseReader::Append(absl::string_view bytes, OnEvent on_event) {
  num_bytes_ += bytes.size();
  if (num_bytes_ > limits_.max_body_bytes) {
    return TooLong("response", limits_.max_body_bytes);
  }
  while (!bytes.empty()) {
    switch (part_) {
      case Part::kHead: {
        QUIRE_ASSIGN_OR_RETURN(const bool is_whole, TakeLine(&bytes));
        if (!is_whole) break;
        const std::string line = std::move(line_);
        line_.clear();
        if (!line.empty()) {
          absl::StrAppend(&head_, line, "\n");
          break;
        }
        if (head_.empty()) return Malformed("status line", "");
        head_.pop_back();
        const std::string head = std::move(head_);
        head_.clear();
        QUIRE_RETURN_IF_ERROR(ReadHead(head));
        break;
      }
      case Part::kSized:
        QUIRE_RETURN_IF_ERROR(TakeBody(&bytes, on_event));
        if (left_ == 0) part_ = Part::kDone;
        break;
      case Part::kUntilClose:
        QUIRE_RETURN_IF_ERROR(AddBody(bytes, on_event));
        bytes = {};
        break;
      case Part::kChunk:
        QUIRE_RETURN_IF_ERROR(TakeBody(&bytes, on_event));
        if (left_ == 0) part_ = Part::kChunkEnd;
        break;
      case Part::kChunkSize:
      case Part::kChunkEnd:
      case Part::kChunkTrailer: {
        QUIRE_ASSIGN_OR_RETURN(const bool is_whole, TakeLine(&bytes));
        if (!is_whole) break;
        const std::string line = std::move(line_);
        line_.clear();
        if (part_ == Part::kChunkSize) {
          QUIRE_RETURN_IF_ERROR(ReadChunkSize(line));
        } else if (part_ == Part::kChunkEnd) {
          if (!line.empty()) return Malformed("end of a chunk", line);
          part_ = Part::kChunkSize;
        } else if (line.empty()) {
          part_ = Part::kDone;
        }
        break;
      }
      case Part::kDone:
        EndEvent(on_event);  // It came before what is wrong.
        return Malformed("bytes behind its end", bytes);
    }
  }
  // A last event that no empty line follows.
  if (is_done()) EndEvent(on_event);
  return absl::OkStatus();
}

absl::Status ResponseReader::Close(OnEvent on_event) {
  is_reusable_ = false;
  if (part_ == Part::kUntilClose) {
    part_ = Part::kDone;
    EndEvent(on_event);
  }
  if (is_done()) return absl::OkStatus();
  if (!has_bytes()) {
    return absl::DataLossError(
        "the server closed the connection without an answer");
  }
  return absl::DataLossError(
      "the server closed the connection in the middle of its answer");
}

}  // namespace quire
