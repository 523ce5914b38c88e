// What happens on one connection: reading requests, writing answers, deadlines.
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "engine/base/clock.h"
#include "server/http/event_loop.h"

namespace quire {
namespace {

// Per connection and round, so that one fast uploader does not hold the rest.
constexpr size_t kMaxReadPerRound = 256 << 10;
// Answers that are not copied behind their head.
constexpr size_t kLargeBody = 64 << 10;
// How long an answered connection is read on for the peer to take the answer:
// closing with unread data would reset it (RFC 9112 9.6).
constexpr absl::Duration kLingerTimeout = absl::Seconds(2);
// Bodies of all requests that are received or wait for a worker may take as
// much memory as this many of the largest (512 MiB with the default limit).
constexpr int64_t kMaxLargestBodies = 64;
// Buffers above this are freed when they are empty.
constexpr size_t kKeptBufferBytes = 16 << 10;
// Of a path that is no route's, for the log.
constexpr size_t kMaxRecordedPath = 256;
// As nginx counts clients that did not wait; never sent.
constexpr int kStatusClientGone = 499;
constexpr absl::string_view kPing = ": ping\n\n";
// A reader of a stream of large writes may be behind by so many of them.
constexpr size_t kWritesExcused = 16;
constexpr size_t kMaxExcusedBytes = 4 << 20;
// Of a stream, not taken by the peer's kernel: seconds of text. The buffer of
// the own one, from which on a send fails, holds half a minute of it, in which
// a reader who has stopped would count as any other.
constexpr int kMaxHeldBytes = 8 << 10;
constexpr int64_t kBytesBetweenAsks = 2 << 10;

void ReleaseIfLarge(std::string* buffer) {
  buffer->clear();
  if (buffer->capacity() > kKeptBufferBytes) std::string().swap(*buffer);
}

}  // namespace

ssize_t EventLoop::Receive(Connection* c) {
  // After the answer nothing is read but what is in the way of closing.
  if (c->tls != nullptr && c->state != State::kLingering) {
    return c->tls->Receive(read_buffer_.data(), read_buffer_.size());
  }
  return recv(c->fd, read_buffer_.data(), read_buffer_.size(), 0);
}

ssize_t EventLoop::Send(Connection* c) {
  const char* const data = c->out.data() + c->num_sent;
  if (c->tls != nullptr) return c->tls->Send(data, c->num_unsent());
  return send(c->fd, data, c->num_unsent(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

void EventLoop::OnReadable(Connection* c) {
  for (size_t total = 0; total < kMaxReadPerRound;) {
    if (c->state == State::kAnswering || c->state == State::kClosed) return;
    const ssize_t size = Receive(c);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      if (c->tls != nullptr) {
        Watch(c);
        SetDeadline(c);  // The handshake may have ended.
      }
      return;
    }
    if (size <= 0) return Close(c);
    total += size;
    if (c->state == State::kLingering) continue;
    if (c->state == State::kHead && c->in.empty()) {
      c->since = c->arrival_time = now_;
    }
    c->in.append(read_buffer_.data(), size);
    Advance(c);
    // A record of TLS is smaller than the buffer.
    if (c->tls == nullptr && size < static_cast<ssize_t>(read_buffer_.size())) {
      return;
    }
  }
  ReadAgainIfPending(c);
}

void EventLoop::ReadAgainIfPending(Connection* c) {
  const bool reads = c->state == State::kHead || c->state == State::kBody ||
                     c->state == State::kUpgraded;
  if (!reads || c->tls == nullptr || !c->tls->has_pending()) return;
  // Once: a connection that is closed lives only to the end of its round.
  if (!std::exchange(c->is_in_read_again, true)) read_again_.push_back(c);
}

// Consumes `in` as far as possible. Not recursive: a client may send any number
// of requests ahead, and many are answered at once.
void EventLoop::Advance(Connection* c) {
  bool goes_on = true;
  while (goes_on) {
    switch (c->state) {
      case State::kHead:
        goes_on = AdvanceHead(c);
        break;
      case State::kBody:
        goes_on = AdvanceBody(c);
        break;
      case State::kUpgraded:
        AdvanceUpgraded(c);
        goes_on = false;
        break;
      default:
        goes_on = false;
    }
  }
  SetDeadline(c);
}

// False if more bytes are needed.
bool EventLoop::AdvanceHead(Connection* c) {
  // One empty line before a request is forgiven (RFC 9112 2.2).
  if (!c->has_skipped_blank_line && c->in.compare(0, 2, "\r\n") == 0) {
    c->has_skipped_blank_line = true;
    c->in.erase(0, 2);
    c->scanner = HeadScanner();
  }
  size_t head_size = 0;
  if (auto error = c->scanner.Scan(c->in, head_limits_, &head_size)) {
    RespondError(c, *error, false);
    return true;
  }
  if (head_size == 0) return false;
  const auto error = ParseHead(absl::string_view(c->in).substr(0, head_size),
                               head_limits_, &c->head);
  c->in.erase(0, head_size);
  if (error) {
    RespondError(c, *error, false);
  } else {
    BeginRequest(c);
  }
  return true;
}

// A record with what is known of any request, its head being readable or not.
void EventLoop::BeginRecord(Connection* c) {
  c->record = NewRequestRecord(options_.observer);
  c->record->request_id = NewTraceId();
  c->record->arrival_time = c->arrival_time;
  c->record->wall_arrival = absl::Now() - (now_ - c->arrival_time);
}

HttpHeaders EventLoop::WithRecordHeaders(Connection* c,
                                         const HttpHeaders& headers) {
  if (c->record == nullptr) BeginRecord(c);
  HttpHeaders all = headers;
  const auto id = std::find_if(all.begin(), all.end(), [](const auto& field) {
    return absl::EqualsIgnoreCase(field.first, "x-request-id");
  });
  if (id == all.end()) {
    all.emplace_back("X-Request-Id", c->record->request_id);
  } else {
    c->record->request_id = id->second;
  }
  if (c->record->trace.has_trace()) {
    all.emplace_back("traceresponse", TraceResponse(c->record->trace));
  }
  return all;
}

// The record lives on while whoever answered has more to write into it.
void EventLoop::EndRecord(Connection* c, bool is_cut_off) {
  const auto record = std::move(c->record);
  if (record == nullptr) return;
  // Not now_: tokens came since the loop woke.
  record->end_time = Clock::Monotonic()->Now();
  record->is_cut_off = is_cut_off;
  if (record->status == 0) record->status = kStatusClientGone;
}

void EventLoop::BeginRequest(Connection* c) {
  RequestSink::Verdict verdict = sink_->Admit(c->head, c->port->kind);
  BeginRecord(c);
  RequestRecord& record = *c->record;
  if (const absl::string_view given = c->head.Field("x-request-id");
      IsHarmlessRequestId(given)) {
    record.request_id = std::string(given);
  }
  record.method = c->head.method;
  record.route = std::string(verdict.route);
  if (record.route.empty())
    record.path = c->head.path.substr(0, kMaxRecordedPath);
  record.is_probe =
      !verdict.route.empty() && verdict.access == RouteAccess::kOperations;
  record.is_api = verdict.status == 0 && verdict.access == RouteAccess::kApi;
  if (verdict.owner != nullptr) record.owner = verdict.owner->name;
  record.trace = ReadTraceContext(c->head.fields);
  if (options_.observer != nullptr) options_.observer->OnBegin(&record);
  if (verdict.status != 0) {
    RespondError(c, {verdict.status, verdict.message},
                 c->head.keep_alive && !c->head.has_body(), verdict.headers);
    return;
  }
  if (c->is_over_limit) {
    if (verdict.access != RouteAccess::kOperations) {
      RespondError(c, {503, "too many connections"}, false,
                   {{"Retry-After", "1"}});
      return;
    }
    c->head.keep_alive = false;
  }
  c->owner = std::move(verdict.owner);
  if (!c->head.is_chunked && c->head.content_length > options_.max_body_bytes) {
    RespondError(c, {413, "request body too large"}, false);
    return;
  }
  if (!c->head.has_body()) return Dispatch(c);
  c->decoder = ChunkedDecoder(options_.max_body_bytes);
  c->since = now_;
  SetState(c, State::kBody);
  if (c->head.expect_continue && c->in.empty()) {
    c->out += "HTTP/1.1 100 Continue\r\n\r\n";
    Flush(c);
  }
}

// False if more bytes are needed.
bool EventLoop::AdvanceBody(Connection* c) {
  const size_t size_before = c->body.size();
  bool is_complete = false;
  size_t num_consumed = 0;
  std::optional<HttpError> error;
  if (c->head.is_chunked) {
    error = c->decoder.Decode(c->in, &c->body, &num_consumed);
    is_complete = c->decoder.is_done();
  } else {
    num_consumed =
        std::min<size_t>(c->head.content_length - size_before, c->in.size());
    c->body.append(c->in, 0, num_consumed);
    is_complete =
        static_cast<int64_t>(c->body.size()) == c->head.content_length;
  }
  num_body_bytes_ += c->body.size() - size_before;
  c->in.erase(0, num_consumed);
  if (error) {
    RespondError(c, *error, false);
    return true;
  }
  if (num_body_bytes_ > kMaxLargestBodies * options_.max_body_bytes) {
    RespondError(c, {503, "too many request bodies in memory"}, false,
                 {{"Retry-After", "1"}});
    return true;
  }
  if (!is_complete) return false;
  Dispatch(c);
  return true;
}

void EventLoop::Dispatch(Connection* c) {
  PendingRequest request;
  request.exchange = c->exchange = std::make_shared<Exchange>(mailbox_);
  c->exchange->connection = c;
  request.body.swap(c->body);
  request.arrival_time = c->arrival_time;
  request.head = c->head;
  request.owner = std::move(c->owner);
  request.record = c->record;
  const int64_t num_body_bytes = request.body.size();
  SetState(c, State::kAnswering);
  ++num_open_requests_;
  if (sink_->Dispatch(std::move(request))) {
    Watch(c);
    return;
  }
  num_body_bytes_ -= num_body_bytes;
  c->exchange->connection = nullptr;
  c->exchange->EndFlushed();
  c->exchange.reset();
  --num_open_requests_;
  RespondError(c, {503, "the server is overloaded"}, false,
               {{"Retry-After", "1"}});
}

void EventLoop::RespondError(Connection* c, HttpError error, bool keep_alive,
                             const HttpHeaders& headers) {
  num_body_bytes_ -= c->body.size();
  ReleaseIfLarge(&c->body);
  SetState(c, State::kAnswering);
  c->progress_at = now_;
  c->keep_alive = keep_alive && !close_connections_;
  const std::string body = sink_->ErrorBody(error.status, error.message);
  ResponseHead head;
  head.status = error.status;
  head.content_type = "application/json";
  head.content_length = body.size();
  head.keep_alive = c->keep_alive;
  const HttpHeaders all_headers = WithRecordHeaders(c, headers);
  c->record->status = error.status;
  c->record->refusal = error.message;
  AppendResponseHead(head, all_headers, std::time(nullptr), &c->out);
  sink_->OnResponse(c->head, error.status);
  if (c->head.method != "HEAD") c->out += body;
  c->is_complete = true;
  Flush(c);
}

void EventLoop::HandleUpdate(Exchange* exchange) {
  Exchange::Update update = exchange->Take();
  auto* const c = static_cast<Connection*>(exchange->connection);
  if (c == nullptr) return;
  // The kernel takes no more and will tell when it does: trying costs a system
  // call for each write to each reader who does not keep up.
  const bool is_blocked =
      c->num_unsent() > 0 && (c->watched_events & EPOLLOUT) != 0;
  if (c->num_unsent() == 0) c->progress_at = now_;
  c->written_at = now_;
  if (update.start && update.start->upgrade.has_value()) {
    AppendUpgrade(c, *std::move(update.start->upgrade));
  } else if (update.start) {
    AppendStart(c, *update.start, update.data.size());
  }
  if (!c->is_complete) {
    c->largest_write = std::max(c->largest_write, update.data.size());
    if (c->is_stream) {
      AppendStreamData(c, update.data);
    } else if (update.data.size() < kLargeBody) {
      c->out += update.data;
    } else {
      // Instead of a second copy.
      update.data.insert(0, c->out);
      c->out = std::move(update.data);
    }
    if (update.is_finished) {
      if (c->is_chunked) c->out += "0\r\n\r\n";
      c->is_complete = true;
    }
  }
  const bool is_stream = c->is_stream;
  const size_t max_buffered = c->upgrade.has_value()
                                  ? c->upgrade->max_buffered_bytes
                                  : options_.max_buffered_bytes;
  // Log-probabilities of many choices: steps of hundreds of kilobytes.
  const size_t excused =
      std::min(kMaxExcusedBytes, kWritesExcused * c->largest_write);
  if (!is_blocked) {
    Flush(c);
  } else {
    CountUnsent(c);
  }
  LimitUnsent();
  if (c->state == State::kClosed) return;
  if (update.is_broken ||
      (is_stream &&
       c->num_unsent() > c->largest_write + std::max(max_buffered, excused))) {
    return Close(c);
  }
  Advance(c);
  ReadAgainIfPending(c);
}

void EventLoop::AppendStart(Connection* c, const Exchange::Start& start,
                            size_t content_length) {
  const bool is_head = c->head.method == "HEAD";
  c->keep_alive = c->head.keep_alive && !close_connections_;
  ResponseHead head;
  head.status = start.status;
  head.content_type = start.content_type;
  head.content_length = content_length;
  if (start.is_stream) {
    c->is_stream = true;
    c->is_chunked = c->head.minor_version == 1 && !is_head;
    if (c->head.minor_version == 0) c->keep_alive = false;
    head.framing = c->head.minor_version == 1 ? BodyFraming::kChunked
                                              : BodyFraming::kClose;
  }
  head.keep_alive = c->keep_alive;
  const HttpHeaders all_headers = WithRecordHeaders(c, start.headers);
  c->record->status = start.status;
  AppendResponseHead(head, all_headers, std::time(nullptr), &c->out);
  sink_->OnResponse(c->head, start.status);
  // Neither has a body, whatever the handler sent.
  if (is_head || start.status == 204 || start.status == 304) {
    c->is_complete = true;
  }
}

void EventLoop::AppendUpgrade(Connection* c, HttpUpgrade upgrade) {
  c->out +=
      "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ";
  c->out += upgrade.protocol;
  c->out += "\r\n\r\n";
  if (c->record == nullptr) BeginRecord(c);
  c->record->status = 101;
  sink_->OnResponse(c->head, 101);
  c->upgrade = std::move(upgrade);
  c->is_stream = true;
  c->is_chunked = false;
  c->keep_alive = false;
  c->since = now_;
  SetState(c, State::kUpgraded);
  Watch(c);
}

void EventLoop::AdvanceUpgraded(Connection* c) {
  if (c->in.empty()) return;
  c->since = now_;
  bool goes_on = false;
  try {
    goes_on = c->upgrade->on_bytes(c->in);
  } catch (...) {
    // No memory, for instance: this connection ends, not the thread.
  }
  ReleaseIfLarge(&c->in);
  if (!goes_on) Close(c);
}

void EventLoop::AppendStreamData(Connection* c, absl::string_view data) {
  if (data.empty()) return;  // An empty chunk would end the stream.
  if (c->is_chunked) absl::StrAppendFormat(&c->out, "%x\r\n", data.size());
  c->out.append(data.data(), data.size());
  if (c->is_chunked) c->out += "\r\n";
}

// Sends what the kernel takes. May finish the answer or close the connection.
void EventLoop::Flush(Connection* c) {
  while (c->num_unsent() > 0) {
    const ssize_t size = Send(c);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    if (size < 0) return Close(c);
    c->num_sent += size;
    c->num_sent_unasked += size;
    c->progress_at = now_;
  }
  if (c->is_stream) AskWhatKernelHolds(c);
  CountUnsent(c);
  if (c->num_unsent() == 0) {
    ReleaseIfLarge(&c->out);
    c->num_sent = c->largest_write = 0;
    const bool is_answering =
        c->state == State::kAnswering || c->state == State::kUpgraded;
    if (is_answering && c->is_complete) FinishResponse(c);
  } else if (c->num_sent > c->out.size() / 2) {
    c->out.erase(0, c->num_sent);
    c->num_sent = 0;
  }
  if (c->exchange != nullptr) c->exchange->SetBehind(c->is_behind());
  Watch(c);
  SetDeadline(c);
}

void EventLoop::AskWhatKernelHolds(Connection* c) {
  if (!c->is_held_by_kernel && c->num_sent_unasked < kBytesBetweenAsks) return;
  c->num_sent_unasked = 0;
  int num_held = 0;
  c->is_held_by_kernel =
      ioctl(c->fd, SIOCOUTQ, &num_held) == 0 && num_held > kMaxHeldBytes;
}

void EventLoop::CountUnsent(Connection* c) {
  const size_t num_unsent = c->num_unsent();
  if (c->num_unsent_counted == 0) c->unsent_since = now_;
  num_unsent_bytes_ += num_unsent;
  num_unsent_bytes_ -= c->num_unsent_counted;
  c->num_unsent_counted = num_unsent;
}

void EventLoop::LimitUnsent() {
  while (num_unsent_bytes_ > options_.max_unsent_bytes) {
    Connection* worst = nullptr;
    double most = -1;  // Byte-seconds.
    for (const auto& [fd, c] : connections_) {
      if (c->num_unsent_counted == 0) continue;
      const double held = absl::ToDoubleSeconds(now_ - c->unsent_since) *
                          static_cast<double>(c->num_unsent_counted);
      if (held <= most) continue;
      most = held;
      worst = c.get();
    }
    if (worst == nullptr) return;
    Close(worst);
  }
}

void EventLoop::FinishResponse(Connection* c) {
  if (auto exchange = std::move(c->exchange)) {
    exchange->connection = nullptr;
    --num_open_requests_;
    exchange->EndFlushed();
  }
  EndRecord(c, /*is_cut_off=*/false);
  // While draining only what was announced as the last answer: a connection
  // that closes unannounced may cost its client the next request.
  if (!c->keep_alive || is_draining_) return Linger(c);
  c->is_stream = c->is_chunked = c->is_complete = false;
  c->is_held_by_kernel = false;
  c->has_skipped_blank_line = false;
  c->scanner = HeadScanner();
  c->head = RequestHead();
  // An idle connection keeps no buffers.
  if (c->in.empty()) std::string().swap(c->in);
  std::string().swap(c->out);
  c->since = c->arrival_time = now_;
  SetState(c, State::kHead);
}

void EventLoop::Linger(Connection* c) {
  if (c->tls != nullptr) c->tls->SendClose();
  shutdown(c->fd, SHUT_WR);
  std::string().swap(c->in);
  c->since = now_;
  SetState(c, State::kLingering);
}

absl::Time EventLoop::DeadlineOf(const Connection& c) const {
  switch (c.state) {
    case State::kHead:
      return c.since + (c.in.empty() && c.is_established()
                            ? options_.keep_alive_timeout
                            : options_.head_timeout);
    case State::kBody:
      return c.since +
             std::min(options_.body_timeout,
                      options_.body_grace +
                          absl::Seconds(static_cast<double>(c.body.size()) /
                                        options_.min_body_bytes_per_second));
    case State::kAnswering:
      if (c.num_unsent() > 0) {
        return c.progress_at + options_.write_stall_timeout;
      }
      if (c.is_stream) return c.written_at + options_.stream_ping_interval;
      return absl::InfiniteFuture();
    case State::kUpgraded:
      return std::min(c.since + c.upgrade->idle_timeout,
                      c.num_unsent() > 0
                          ? c.progress_at + options_.write_stall_timeout
                          : absl::InfiniteFuture());
    case State::kLingering:
      return c.since + kLingerTimeout;
    case State::kClosed:
      break;
  }
  return absl::InfiniteFuture();
}

void EventLoop::OnDeadline(Connection* c) {
  switch (c->state) {
    case State::kHead:
      if (c->in.empty()) return Close(c);  // Idle; nothing was asked.
      return RespondError(c, {408, "the request head took too long"}, false);
    case State::kBody:
      return RespondError(c, {408, "the request body took too long"}, false);
    case State::kAnswering:
      if (c->num_unsent() > 0) return Close(c);
      // Between two writes of the handler, which are whole events.
      AppendStreamData(c, kPing);
      c->written_at = c->progress_at = now_;
      return Flush(c);
    case State::kUpgraded:
    case State::kLingering:
      return Close(c);
    case State::kClosed:
      return;
  }
}

}  // namespace quire
