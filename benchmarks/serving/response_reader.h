// One HTTP/1.1 response, read as it arrives: head, chunked or plain body, and
// the events of a text/event-stream. The server is not trusted: every part has
// a limit.
#ifndef QUIRE_BENCHMARKS_SERVING_RESPONSE_READER_H_
#define QUIRE_BENCHMARKS_SERVING_RESPONSE_READER_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire {

struct ResponseLimits {
  int64_t max_head_bytes = 64 << 10;
  int64_t max_event_bytes = 4 << 20;   // One line, or one event.
  int64_t max_body_bytes = 256 << 20;  // All of a response, framing included.
  // Of a body that is no event stream; what exceeds it is dropped.
  int64_t max_kept_bytes = 16 << 20;
};

// Thread-compatible. After an error nothing may be appended.
class ResponseReader {
 public:
  // Called with the data of each event (lines joined by '\n'); the view is
  // valid for the call only.
  using OnEvent = absl::FunctionRef<void(absl::string_view data)>;

  explicit ResponseReader(const ResponseLimits& limits = {})
      : limits_(limits) {}

  // DATA_LOSS if the bytes are no HTTP/1.1 response, RESOURCE_EXHAUSTED if a
  // limit is exceeded. Bytes beyond the end of the response are an error.
  absl::Status Append(absl::string_view bytes, OnEvent on_event);
  // The peer has closed. DATA_LOSS if the response was not complete.
  absl::Status Close(OnEvent on_event);

  bool has_bytes() const { return num_bytes_ > 0; }
  bool is_done() const { return part_ == Part::kDone; }
  bool is_event_stream() const { return is_event_stream_; }
  // 0 before the head was read.
  int http_status() const { return http_status_; }
  // The connection may serve another request. Requires: is_done().
  bool is_reusable() const { return is_reusable_; }
  // Of a response that is no event stream.
  const std::string& body() const { return body_; }

 private:
  enum class Part : uint8_t {
    kHead,
    kSized,         // body_left_ bytes to come.
    kUntilClose,    // Up to the end of the connection.
    kChunkSize,     // A line with the size of the next chunk.
    kChunk,         // chunk_left_ bytes to come.
    kChunkEnd,      // The line end behind a chunk.
    kChunkTrailer,  // Lines up to an empty one.
    kDone,
  };

  absl::Status ReadHead(absl::string_view head);
  absl::Status ReadChunkSize(absl::string_view line);
  absl::Status AddBody(absl::string_view bytes, OnEvent on_event);
  void EndEvent(OnEvent on_event);
  // Takes up to `left_` bytes of the body from the front of `bytes`.
  absl::Status TakeBody(absl::string_view* bytes, OnEvent on_event);
  // Takes a line without its end from the front of `bytes` into line_; false if
  // there is no whole one yet.
  absl::StatusOr<bool> TakeLine(absl::string_view* bytes);

  ResponseLimits limits_;
  Part part_ = Part::kHead;
  int64_t num_bytes_ = 0;
  std::string head_;  // Its whole lines, each with '\n'.
  std::string line_;  // Of the head or of the chunk framing, incomplete.
  int64_t left_ = 0;  // Bytes of the body or of the chunk to come.
  int http_status_ = 0;
  bool is_event_stream_ = false;
  bool is_reusable_ = false;
  std::string body_;
  std::string event_line_;  // Incomplete.
  std::string event_data_;
  bool has_data_ = false;
};

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_RESPONSE_READER_H_
