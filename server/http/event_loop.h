// The one thread that owns all sockets.
//
// It accepts, reads requests until they are complete, hands them over, and
// writes all answers; none of its calls blocks. Workers therefore never wait
// for a client, and a connection that is idle or slow costs memory but no
// thread.
//
// Life of a connection:
//
//   accept -> kHead --head ok--> kBody --complete--> kAnswering -+-> kLingering
//               ^ |                |                  |  ^       |    -> closed
//               | +---- error -----+------------------|--+       |
//               +------------- keep-alive, next request ---------+
//                                                     +-- 101 --> kUpgraded
//
// In kUpgraded bytes go both ways, to a callback and from the responder, until
// one side ends it.
//
// A peer that shuts down its sending side (EPOLLRDHUP) counts as gone, though
// TCP would let it still read: no HTTP client in use does that and waits, while
// for one that went away this is the earliest sign, and a generation for nobody
// costs much.
#ifndef QUIRE_SERVER_HTTP_EVENT_LOOP_H_
#define QUIRE_SERVER_HTTP_EVENT_LOOP_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/http/chunked_decoder.h"
#include "server/http/exchange.h"
#include "server/http/head_guard.h"
#include "server/http/listener.h"
#include "server/http/response_head.h"
#include "server/http/tls.h"
#include "server/http_server.h"
#include "server/telemetry/request_record.h"

namespace quire {

// A complete request on its way to a handler.
struct PendingRequest {
  RequestHead head;
  std::shared_ptr<const ApiKeyOwner> owner;
  std::string body;
  absl::Time arrival_time;
  std::shared_ptr<Exchange> exchange;
  std::shared_ptr<RequestRecord> record;
};

enum class ListenerKind : uint8_t { kMain, kOperations };

// What the event loop asks of the server. Called on the socket thread: must not
// block, must not throw.
class RequestSink {
 public:
  struct Verdict {
    int status = 0;  // 0: read the body and dispatch.
    const char* message = "";
    HttpHeaders headers;
    std::shared_ptr<const ApiKeyOwner> owner;  // Of the key, where one counts.
    absl::string_view route;  // Its path; empty if the request hits none.
    RouteAccess access = RouteAccess::kPublic;  // Of the route.
  };

  virtual ~RequestSink() = default;
  // Routing and authentication; before the body is read.
  virtual Verdict Admit(const RequestHead& head, ListenerKind listener) = 0;
  // False if the server is overloaded; the request is then dropped.
  virtual bool Dispatch(PendingRequest request) = 0;
  virtual std::string ErrorBody(int status, absl::string_view message) = 0;
  // A response's head is written. `head` may be empty, or read in part only, if
  // it was not acceptable.
  virtual void OnResponse(const RequestHead& head, int status) = 0;
  // A line for the log: see HttpServerOptions.
  virtual void OnNotice(const std::string& line) = 0;
  virtual void OnInfo(const std::string& line) = 0;
};

class EventLoop {
 public:
  // `sink` is borrowed until Stop has returned.
  EventLoop(const HttpServerOptions& options, RequestSink* sink);
  ~EventLoop();  // Stops without grace.
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Takes connections of `main` (with `tls`, if it is not null) and of
  // `operations`, if there is one. Call once.
  absl::Status Start(Listener main, std::unique_ptr<TlsContext> tls,
                     std::optional<Listener> operations);
  // See HttpServer. Not from a callback of the loop, which it waits for, nor
  // twice at the same time.
  void Stop(absl::Duration grace);
  void SetCloseConnections() { close_connections_ = true; }
  int num_open_requests() const { return num_open_requests_; }

  // Takes over an accepted socket. Thread-safe.
  void Adopt(int fd);
  // Tells that the body of a dispatched request is no longer in memory.
  // Thread-safe.
  void ReleaseBodyBytes(int64_t num_bytes) { num_body_bytes_ -= num_bytes; }

 private:
  enum class State : uint8_t {
    kHead,  // Between requests, or in a head.
    kBody,
    kAnswering,  // From the last byte of the request to the last of the answer.
    kUpgraded,   // Speaks another protocol, which is not ours.
    kLingering,  // Answered and shut down; reads on so that the answer arrives.
    kClosed,     // Freed at the end of this round of events.
  };

  struct Port {
    ListenerKind kind = ListenerKind::kMain;
    Listener listener;
    int max_connections = 0;
    int num_connections = 0;
  };

  struct Connection {
    int fd = -1;
    Port* port = nullptr;
    std::unique_ptr<TlsSession> tls;  // Null: plain.
    State state = State::kHead;
    uint32_t watched_events = 0;
    absl::Time deadline = absl::InfiniteFuture();
    // Its place in timers_; earlier than `deadline` while that only moves away.
    absl::Time timer_at = absl::InfiniteFuture();
    // When the state began; in kHead, when its first byte came, once it has.
    absl::Time since;
    absl::Time arrival_time;

    // Came to a full port: is told so, unless it asks for the server's state.
    bool is_over_limit = false;

    std::string in;  // Received, not consumed; may hold further requests.
    bool has_skipped_blank_line = false;
    HeadScanner scanner;
    RequestHead head;
    std::shared_ptr<const ApiKeyOwner> owner;  // As the head was admitted.
    std::shared_ptr<RequestRecord>
        record;  // From the head to the answer's end.
    ChunkedDecoder decoder{0};
    std::string body;

    std::shared_ptr<Exchange> exchange;  // Null: the answer is our own.
    std::string out;
    size_t num_sent = 0;            // Of `out`.
    size_t num_unsent_counted = 0;  // In num_unsent_bytes_.
    absl::Time unsent_since;        // If there is something unsent.
    // The largest write of a stream since all was sent: one event may be larger
    // than what is buffered, and its reader is not slow for that.
    size_t largest_write = 0;
    absl::Time progress_at;  // Last time the peer took something.
    absl::Time written_at;   // Last time the stream said something.
    bool keep_alive = true;
    bool is_stream = false;
    bool is_chunked = false;
    bool is_complete = false;  // All of the answer is in `out`.
    bool is_in_read_again = false;
    int64_t num_sent_unasked = 0;  // Since the kernel was asked what it holds.
    bool is_held_by_kernel = false;
    std::optional<HttpUpgrade> upgrade;  // Of kUpgraded.

    size_t num_unsent() const { return out.size() - num_sent; }
    // Its reader does not keep up.
    bool is_behind() const { return num_unsent() > 0 || is_held_by_kernel; }
    bool is_established() const {
      return tls == nullptr || tls->is_established();
    }
  };

  void Run();
  void HandleEvent(void* tag, uint32_t events);
  void HandleMailbox();
  void HandleLater();
  void BeginDrain();
  void CloseAll();

  bool WatchPort(Port* port, uint32_t events, int operation);
  void AcceptAll(Port* port);
  void AddConnection(Port* port, int fd);
  void RefuseConnection(const Port& port, int fd);
  void RefuseForLackOfDescriptors(const Port& port);
  // Closes a connection of a full port that is between requests, or whose
  // request head does not come, if there is one: among the oldest.
  void MakeRoom(Port* port);
  void PauseAccepting();
  void ResumeAccepting();
  void ReloadCertificates();

  // As recv and send.
  ssize_t Receive(Connection* c);
  ssize_t Send(Connection* c);
  void OnReadable(Connection* c);
  // For bytes that TLS holds and that no event will tell of.
  void ReadAgainIfPending(Connection* c);
  void ReadAgain();
  void Advance(Connection* c);
  bool AdvanceHead(Connection* c);
  bool AdvanceBody(Connection* c);
  void BeginRequest(Connection* c);
  void BeginRecord(Connection* c);
  // `headers` with what every answer carries besides.
  HttpHeaders WithRecordHeaders(Connection* c, const HttpHeaders& headers);
  void EndRecord(Connection* c, bool is_cut_off);
  void Dispatch(Connection* c);

  void RespondError(Connection* c, HttpError error, bool keep_alive,
                    const HttpHeaders& headers = {});
  void HandleUpdate(Exchange* exchange);
  void AppendStart(Connection* c, const Exchange::Start& start,
                   size_t content_length);
  void AppendStreamData(Connection* c, absl::string_view data);
  void AppendUpgrade(Connection* c, HttpUpgrade upgrade);
  // Gives what came to the other protocol. May close the connection.
  void AdvanceUpgraded(Connection* c);
  void Flush(Connection* c);
  void AskWhatKernelHolds(Connection* c);
  void CountUnsent(Connection* c);
  // While all hold too much together: cuts who has held most for longest.
  void LimitUnsent();
  void FinishResponse(Connection* c);

  void Linger(Connection* c);
  void Close(Connection* c);
  void SetState(Connection* c, State state);
  void Watch(Connection* c);
  void SetDeadline(Connection* c);
  absl::Time DeadlineOf(const Connection& c) const;
  void OnDeadline(Connection* c);
  void RunTimers();
  int MillisToNextTimer() const;

  const HttpServerOptions options_;
  const HeadLimits head_limits_;
  RequestSink* const sink_;
  const std::shared_ptr<Mailbox> mailbox_;
  std::atomic<bool> close_connections_{false};
  std::atomic<int> num_open_requests_{0};
  std::atomic<int64_t> num_body_bytes_{0};  // Received, not yet handled.

  std::thread thread_;
  std::mutex drain_mu_;
  std::condition_variable drained_;
  bool is_drained_ = false;  // Guarded by drain_mu_.

  // Socket thread only, from here on (and before it starts).
  int epoll_fd_ = -1;
  std::unique_ptr<TlsContext> tls_;
  absl::Time reload_at_ = absl::InfiniteFuture();
  std::vector<std::unique_ptr<Port>> ports_;  // The first is the main one.
  int spare_fd_ = -1;  // Given up to answer one more when none is left.
  bool is_draining_ = false;
  bool is_stopping_ = false;
  absl::Time now_;
  absl::Time accept_again_at_ = absl::InfiniteFuture();
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;  // By fd.
  std::vector<std::unique_ptr<Connection>> closed_;
  std::set<std::pair<absl::Time, Connection*>> timers_;
  int num_busy_ = 0;              // Connections in kBody or kAnswering.
  int64_t num_unsent_bytes_ = 0;  // Of all connections, as last counted.
  // Connections to read from without waiting for an event; the second while
  // that is done.
  std::vector<Connection*> read_again_, reading_again_;
  std::vector<char> read_buffer_;
  Mailbox::Contents mail_;  // A member, so that it keeps its capacity.
  // Posted, and to be handled when the streams that go on are written.
  std::deque<std::shared_ptr<Exchange>> later_;
};

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_EVENT_LOOP_H_
