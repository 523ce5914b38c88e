#include "server/http/exchange.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace quire {
namespace {

// No exception of a callback may end the socket thread.
void RunCallback(const std::function<void()>& callback) {
  if (!callback) return;
  try {
    callback();
  } catch (...) {
    // Nobody is left to tell: the peer has gone.
  }
}

class ExchangeResponder : public HttpResponder {
 public:
  ExchangeResponder(std::shared_ptr<Exchange> exchange,
                    std::string failure_body)
      : exchange_(std::move(exchange)),
        failure_body_(std::move(failure_body)) {}
  ~ExchangeResponder() override {
    exchange_->Fail(500, std::move(failure_body_));
  }

  void Send(int status, absl::string_view content_type, std::string body,
            const HttpHeaders& headers) override {
    exchange_->Send(status, content_type, std::move(body), headers);
  }
  void StartStream(const HttpHeaders& headers) override {
    exchange_->StartStream(headers);
  }
  void Upgrade(HttpUpgrade upgrade) override {
    exchange_->Upgrade(std::move(upgrade));
  }
  void Write(std::string data) override { exchange_->Write(std::move(data)); }
  bool is_behind() const override { return exchange_->is_behind(); }
  void Finish() override { exchange_->Finish(); }
  void OnDisconnect(std::function<void()> callback) override {
    exchange_->OnDisconnect(std::move(callback));
  }

 private:
  const std::shared_ptr<Exchange> exchange_;
  std::string failure_body_;
};

}  // namespace

std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<Exchange> exchange,
                                             std::string failure_body) {
  return std::make_shared<ExchangeResponder>(std::move(exchange),
                                             std::move(failure_body));
}

Mailbox::Mailbox() : event_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

Mailbox::~Mailbox() {
  if (event_fd_ >= 0) close(event_fd_);
}

bool Mailbox::PostExchange(std::shared_ptr<Exchange> exchange) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_closed_) return false;
  contents_.exchanges.push_back(std::move(exchange));
  WriteBurst* const burst = WriteBurst::current();
  if (burst == nullptr || !is_asleep_) {
    Wake(std::move(lock));
  } else {
    lock.unlock();
    burst->WakeLater(shared_from_this());
  }
  return true;
}

bool Mailbox::PostTask(std::function<void()> task) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_closed_) return false;
  contents_.tasks.push_back(std::move(task));
  Wake(std::move(lock));
  return true;
}

void Mailbox::WakeIfAsleep() {
  reader_core_.AvoidAsIDo();
  Wake(std::unique_lock<std::mutex>(mu_));
}

void Mailbox::Wake(std::unique_lock<std::mutex> lock) {
  const bool was_asleep = std::exchange(is_asleep_, false);
  lock.unlock();
  if (was_asleep) {
    // Interrupted at worst: at its limit, 2^64 - 1, it would wake as well.
    while (eventfd_write(event_fd_, 1) != 0 && errno == EINTR) {
    }
  }
}

bool Mailbox::PrepareToSleep() {
  std::lock_guard<std::mutex> lock(mu_);
  if (!contents_.exchanges.empty() || !contents_.tasks.empty()) return false;
  is_asleep_ = true;
  return true;
}

void Mailbox::Awoken() {
  std::lock_guard<std::mutex> lock(mu_);
  is_asleep_ = false;
}

void Mailbox::Take(Contents* contents) {
  contents->exchanges.clear();
  contents->tasks.clear();
  std::lock_guard<std::mutex> lock(mu_);
  std::swap(contents_, *contents);
}

Mailbox::Contents Mailbox::Close() {
  std::lock_guard<std::mutex> lock(mu_);
  is_closed_ = true;
  return std::exchange(contents_, Contents());
}

void Exchange::Send(int status, absl::string_view content_type,
                    std::string body, const HttpHeaders& headers) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || is_started_) return;
  is_started_ = is_finished_ = true;
  update_.start =
      Start{false, std::nullopt, status, std::string(content_type), headers};
  update_.data = std::move(body);
  update_.is_finished = true;
  PostLocked(std::move(lock));
}

void Exchange::StartStream(const HttpHeaders& headers) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || is_started_) return;
  is_started_ = is_stream_ = true;
  update_.start = Start{true, std::nullopt, 200, "text/event-stream", headers};
  PostLocked(std::move(lock));
}

void Exchange::Upgrade(HttpUpgrade upgrade) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || is_started_) return;
  is_started_ = is_stream_ = true;
  update_.start = Start{true, std::move(upgrade), 101, "", {}};
  PostLocked(std::move(lock));
}

void Exchange::Write(std::string data) {
  if (data.empty()) return;
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || !is_stream_ || is_finished_) return;
  if (update_.data.empty()) {
    update_.data = std::move(data);
  } else {
    update_.data += data;
  }
  PostLocked(std::move(lock));
}

void Exchange::Finish() {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || !is_stream_ || is_finished_) return;
  is_finished_ = update_.is_finished = true;
  PostLocked(std::move(lock));
}

void Exchange::Fail(int status, std::string body) {
  std::unique_lock<std::mutex> lock(mu_);
  if (is_ended_ || is_finished_) return;
  is_finished_ = true;
  if (is_started_) {
    update_.is_broken = true;
  } else {
    is_started_ = true;
    update_.start = Start{false, std::nullopt, status, "application/json", {}};
    update_.data = std::move(body);
    update_.is_finished = true;
  }
  PostLocked(std::move(lock));
}

void Exchange::PostLocked(std::unique_lock<std::mutex> lock) {
  if (is_posted_) return;
  is_posted_ = true;
  lock.unlock();
  mailbox_->PostExchange(shared_from_this());
}

void Exchange::OnDisconnect(std::function<void()> callback) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (!is_ended_) {
      on_disconnect_ = std::move(callback);
      return;
    }
    if (!is_disconnected_) return;
  }
  // Late: still on the server's thread, so that one rule holds for callers that
  // have a lock; but here if the server is no more.
  auto task = [callback = std::move(callback)] { RunCallback(callback); };
  if (!mailbox_->PostTask(task)) task();
}

Exchange::Update Exchange::Take() {
  std::lock_guard<std::mutex> lock(mu_);
  is_posted_ = false;
  return std::exchange(update_, Update());
}

void Exchange::EndFlushed() {
  // Destroyed after the lock is released: it may hold the responder, whose
  // destructor comes back here.
  std::function<void()> dropped;
  std::lock_guard<std::mutex> lock(mu_);
  is_ended_ = true;
  dropped.swap(on_disconnect_);
}

void Exchange::EndDisconnected() {
  std::function<void()> callback;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (is_ended_) return;
    is_ended_ = is_disconnected_ = true;
    update_ = Update();
    callback.swap(on_disconnect_);
  }
  RunCallback(callback);
}

}  // namespace quire
