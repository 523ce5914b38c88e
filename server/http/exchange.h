// What a handler's thread and the socket thread share about one response.
//
//   any thread                       socket thread (EventLoop)
//   Send, Write, ...  --Exchange-->  Take, then send() without blocking
//                     --Mailbox--->  which exchanges have something new
//
// Both sides hold shared pointers, so a responder may outlive its connection
// and the whole server.
#ifndef QUIRE_SERVER_HTTP_EXCHANGE_H_
#define QUIRE_SERVER_HTTP_EXCHANGE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/other_core.h"
#include "server/http/write_burst.h"
#include "server/http_server.h"

namespace quire {

class Exchange;

// The socket thread's inbox. Thread-safe (std::mutex, which ThreadSanitizer
// understands; the packaged abseil is not instrumented).
//
// A step of the engine writes to every stream. The event descriptor is written
// only if the reader sleeps, and for a burst (WriteBurst) once and not as often
// as the reader falls asleep within it.
class Mailbox : public WriteBurst::Reader,
                public std::enable_shared_from_this<Mailbox> {
 public:
  struct Contents {
    std::vector<std::shared_ptr<Exchange>> exchanges;
    std::vector<std::function<void()>> tasks;
  };

  Mailbox();
  ~Mailbox() override;
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // False if there is no descriptor left for the process.
  bool is_valid() const { return event_fd_ >= 0; }
  int event_fd() const { return event_fd_; }  // Watch it edge-triggered.

  // False, and nothing happens, after Close.
  bool PostExchange(std::shared_ptr<Exchange> exchange);
  bool PostTask(std::function<void()> task);

  // For the reader. From PrepareToSleep until Awoken every post writes to the
  // descriptor; false if there is something to take already.
  bool PrepareToSleep();
  void Awoken();
  // Of a burst. The reader is kept off the writer's core, too: it would wait
  // there for the end of the next burst.
  void WakeIfAsleep() override;
  // On the reader's thread.
  void BindReader() { reader_core_.Bind(); }
  // Swaps, so that both vectors keep their capacity.
  void Take(Contents* contents);
  // Refuses all further posts; returns what was not taken. Must be called in
  // the end: an exchange that nobody takes would keep the mailbox alive.
  Contents Close();

 private:
  void Wake(std::unique_lock<std::mutex> lock);

  int event_fd_;
  std::mutex mu_;
  Contents contents_;  // Guarded by mu_, as all below.
  bool is_asleep_ = false;
  bool is_closed_ = false;
  OtherCore reader_core_;  // Not guarded: of the thread that writes bursts.
};

// One request's answer. Thread-safe. States only move downwards:
//   open -> answered by Send | streaming -> finished
//   any  -> ended (flushed, or the peer is gone): everything is a no-op then.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  struct Start {
    bool is_stream = false;
    std::optional<HttpUpgrade> upgrade;  // Then a stream besides.
    int status = 200;
    std::string content_type;
    HttpHeaders headers;
  };
  // What happened since the last Take.
  struct Update {
    std::optional<Start> start;
    std::string data;
    bool is_finished = false;  // `data` is the last of it.
    bool is_broken = false;    // The stream cannot be completed: cut it off.
  };

  explicit Exchange(std::shared_ptr<Mailbox> mailbox)
      : mailbox_(std::move(mailbox)) {}

  // The methods of HttpResponder.
  void Send(int status, absl::string_view content_type, std::string body,
            const HttpHeaders& headers);
  void StartStream(const HttpHeaders& headers);
  void Upgrade(HttpUpgrade upgrade);
  void Write(std::string data);
  void Finish();
  void OnDisconnect(std::function<void()> callback);
  bool is_behind() const { return is_behind_; }

  // The handler failed or dropped its responder: sends `status` with `body` as
  // JSON if nothing was sent yet, cuts an unfinished stream off, and does
  // nothing if the answer is complete.
  void Fail(int status, std::string body);

  // For the socket thread only.
  Update Take();
  void EndFlushed();       // The answer is with the kernel.
  void EndDisconnected();  // Runs the callback of OnDisconnect.
  void SetBehind(bool is_behind) { is_behind_ = is_behind; }

  // The connection that the answer goes to. Owned and read by the socket thread
  // only; null once the connection is gone.
  void* connection = nullptr;

 private:
  void PostLocked(std::unique_lock<std::mutex> lock);

  const std::shared_ptr<Mailbox> mailbox_;
  std::atomic<bool> is_behind_{false};
  std::mutex mu_;
  Update update_;           // Guarded by mu_, as all below.
  bool is_posted_ = false;  // In the mailbox, not taken yet.
  bool is_started_ = false;
  bool is_stream_ = false;
  bool is_finished_ = false;
  bool is_ended_ = false;
  bool is_disconnected_ = false;
  std::function<void()> on_disconnect_;
};

// The handler's end of an exchange. `failure_body`: of the 500 that is sent if
// it is dropped unanswered.
std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<Exchange> exchange,
                                             std::string failure_body);

}  // namespace quire

#endif  // QUIRE_SERVER_HTTP_EXCHANGE_H_
