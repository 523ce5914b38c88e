// Life of the loop: start and stop, accepting, timers, closing. What happens on
// a connection is in event_loop_connection.cc.
#include "server/http/event_loop.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/short_slice.h"

namespace quire {
namespace {

// One receive; a larger one does not make large bodies faster on loopback.
constexpr size_t kReadBufferBytes = 64 << 10;
// Streams are written once a round: a request takes 10 to 20 us to be read and
// handed on, a connection about as long to be taken.
constexpr int kMaxEventsPerRound = 64;
// A handshake takes up to a millisecond: streams are written in between.
constexpr int kMaxTlsEventsPerRound = 8;
// Leaves the loop to others during a storm of connects.
constexpr int kMaxAcceptsPerRound = 32;
// In a round, for answers that begin and for readers who do not keep up.
constexpr absl::Duration kTimeForLater = absl::Microseconds(300);
// Connections beyond the limit that are kept for the time their 503 needs.
constexpr int kMaxRefusedConnections = 512;
// Of the operations listener, beside the others.
constexpr int kMaxOpsConnections = 256;
// How often the files of certificate and key are looked at.
constexpr absl::Duration kReloadInterval = absl::Seconds(1);
// Connections that a full server looks at, at most, to find one that has sent
// no whole request head: one that does goes first.
constexpr int kMaxLooksForRoom = 256;
constexpr absl::Duration kAcceptPause = absl::Milliseconds(20);
// The kernel doubles it. Linux's own default grows to megabytes for a slow
// reader, which would hide it from max_buffered_bytes.
constexpr int kSendBufferBytes = 128 << 10;

void SetOption(int fd, int level, int name, int value) {
  // Best effort: each only improves latency or clean-up.
  setsockopt(fd, level, name, &value, sizeof(value));
}

// Accepted sockets inherit these from the listening one.
void SetSocketOptions(const Listener& listener, int64_t stall_millis) {
  const int fd = listener.fd();
  SetOption(fd, SOL_SOCKET, SO_SNDBUF, kSendBufferBytes);
  if (!listener.is_tcp()) return;
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(stall_millis));
  // Notices a peer whose machine vanished while a long answer is computed.
  SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
}

int OpenSpare() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

}  // namespace

EventLoop::EventLoop(const HttpServerOptions& options, RequestSink* sink)
    : options_(options),
      head_limits_{options.max_head_bytes, options.max_header_fields,
                   options.max_target_bytes},
      sink_(sink),
      mailbox_(std::make_shared<Mailbox>()),
      read_buffer_(kReadBufferBytes) {}

EventLoop::~EventLoop() {
  Stop(absl::ZeroDuration());
  mailbox_->Close();  // Open still if the thread never ran.
}

absl::Status EventLoop::Start(Listener main, std::unique_ptr<TlsContext> tls,
                              std::optional<Listener> operations) {
  tls_ = std::move(tls);
  ports_.push_back(std::make_unique<Port>(
      Port{ListenerKind::kMain, std::move(main), options_.max_connections}));
  if (operations.has_value()) {
    ports_.push_back(std::make_unique<Port>(
        Port{ListenerKind::kOperations, *std::move(operations),
             std::min(options_.max_connections, kMaxOpsConnections)}));
  }
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  spare_fd_ = OpenSpare();
  // Edge-triggered: each write to it is an event, and it is never read.
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLET;
  event.data.ptr = mailbox_.get();
  bool is_ok =
      epoll_fd_ >= 0 && mailbox_->is_valid() && spare_fd_ >= 0 &&
      epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, mailbox_->event_fd(), &event) == 0;
  for (const auto& port : ports_) {
    SetSocketOptions(port->listener,
                     absl::ToInt64Milliseconds(options_.write_stall_timeout));
    is_ok = is_ok && WatchPort(port.get(), EPOLLIN, EPOLL_CTL_ADD);
  }
  if (!is_ok) {
    const int error = errno;
    CloseAll();
    return absl::UnavailableError(
        absl::StrCat("HTTP server: ", std::strerror(error)));
  }
  now_ = Clock::Monotonic()->Now();
  if (tls_ != nullptr) reload_at_ = now_ + kReloadInterval;
  try {
    thread_ = std::thread([this] { Run(); });
  } catch (const std::system_error&) {
    CloseAll();
    return absl::UnavailableError("HTTP server: cannot start a thread");
  }
  return absl::OkStatus();
}

void EventLoop::Stop(absl::Duration grace) {
  if (!thread_.joinable()) return;
  mailbox_->PostTask([this] { BeginDrain(); });
  if (grace > absl::ZeroDuration()) {
    std::unique_lock<std::mutex> lock(drain_mu_);
    drained_.wait_for(
        lock, absl::ToChronoMilliseconds(std::min(grace, absl::Hours(24))),
        [this] { return is_drained_; });
  }
  mailbox_->PostTask([this] { is_stopping_ = true; });
  thread_.join();
}

void EventLoop::Adopt(int fd) {
  if (!mailbox_->PostTask([this, fd] { AddConnection(ports_[0].get(), fd); }))
    close(fd);
}

void EventLoop::Run() {
  pthread_setname_np(pthread_self(), "http-io");
  TakeShortSlices();
  mailbox_->BindReader();
  epoll_event events[kMaxEventsPerRound];
  const int max_events =
      tls_ == nullptr ? kMaxEventsPerRound : kMaxTlsEventsPerRound;
  while (!is_stopping_) {
    // A task of the mailbox may have set anything, hence the order.
    const bool may_sleep =
        mailbox_->PrepareToSleep() && read_again_.empty() && later_.empty();
    const int timeout = may_sleep ? MillisToNextTimer() : 0;
    const int num_events = epoll_wait(epoll_fd_, events, max_events, timeout);
    mailbox_->Awoken();
    now_ = Clock::Monotonic()->Now();
    for (int i = 0; i < num_events; ++i) {
      HandleEvent(events[i].data.ptr, events[i].events);
    }
    HandleMailbox();
    RunTimers();
    ReadAgain();
    closed_.clear();
    if (is_draining_ && num_busy_ == 0) {
      std::lock_guard<std::mutex> lock(drain_mu_);
      is_drained_ = true;
      drained_.notify_all();
    }
  }
  CloseAll();
  // Callbacks that were registered too late for their connection.
  for (const auto& task : mailbox_->Close().tasks) task();
}

void EventLoop::HandleEvent(void* tag, uint32_t events) {
  if (tag == mailbox_.get()) return;
  for (const auto& port : ports_) {
    if (tag == port.get()) return AcceptAll(port.get());
  }
  auto* const c = static_cast<Connection*>(tag);
  if (c->state == State::kClosed) return;
  if (events & (EPOLLERR | EPOLLHUP)) return Close(c);
  if ((events & EPOLLRDHUP) &&
      (c->state == State::kAnswering || c->state == State::kUpgraded)) {
    return Close(c);
  }
  const bool is_readable = (events & (EPOLLIN | EPOLLRDHUP)) ||
                           (c->tls != nullptr && c->tls->receive_needs_write());
  if (events & EPOLLOUT) {
    Flush(c);
    Advance(c);
    ReadAgainIfPending(c);
  }
  if (c->state != State::kClosed && is_readable) OnReadable(c);
}

// What is closed in a round lives to its end: no pointer dangles here.
void EventLoop::ReadAgain() {
  reading_again_.swap(read_again_);
  for (Connection* c : reading_again_) {
    c->is_in_read_again = false;
    if (c->state != State::kClosed) OnReadable(c);
  }
  reading_again_.clear();
}

void EventLoop::HandleMailbox() {
  mailbox_->Take(&mail_);
  for (const auto& task : mail_.tasks) task();
  for (auto& exchange : mail_.exchanges) {
    const auto* const c = static_cast<Connection*>(exchange->connection);
    // A thousand answers that begin in one moment, or readers who have stopped
    // and whose buffers grow, do not show in the gaps of everybody else.
    if (c != nullptr && c->is_stream && !c->is_behind()) {
      HandleUpdate(exchange.get());
    } else {
      later_.push_back(std::move(exchange));
    }
  }
  mail_.tasks.clear();
  mail_.exchanges.clear();
  HandleLater();
}

void EventLoop::HandleLater() {
  if (later_.empty()) return;
  const absl::Time begin = Clock::Monotonic()->Now();
  do {
    HandleUpdate(later_.front().get());
    later_.pop_front();
  } while (!later_.empty() &&
           Clock::Monotonic()->Now() - begin < kTimeForLater);
}

void EventLoop::BeginDrain() {
  is_draining_ = true;
  close_connections_ = true;
  for (const auto& port : ports_) port->listener.Close();
  std::vector<Connection*> idle;
  for (const auto& [fd, c] : connections_) {
    if (c->state == State::kHead && c->in.empty()) idle.push_back(c.get());
  }
  for (Connection* c : idle) Close(c);
}

void EventLoop::CloseAll() {
  while (!connections_.empty()) Close(connections_.begin()->second.get());
  closed_.clear();
  for (const auto& port : ports_) port->listener.Close();
  for (int* fd : {&spare_fd_, &epoll_fd_}) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
}

bool EventLoop::WatchPort(Port* port, uint32_t events, int operation) {
  epoll_event event = {};
  event.events = events;
  event.data.ptr = port;
  return epoll_ctl(epoll_fd_, operation, port->listener.fd(), &event) == 0;
}

void EventLoop::AcceptAll(Port* port) {
  for (int i = 0; i < kMaxAcceptsPerRound && port->listener.fd() >= 0; ++i) {
    const int fd = accept4(port->listener.fd(), nullptr, nullptr,
                           SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      AddConnection(port, fd);
    } else if (errno == EMFILE || errno == ENFILE) {
      RefuseForLackOfDescriptors(*port);
      if (spare_fd_ < 0) return PauseAccepting();
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return;
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return PauseAccepting();  // No memory, for instance.
    }
  }
}

void EventLoop::AddConnection(Port* port, int fd) {
  if (is_draining_) {
    close(fd);
    return;
  }
  if (port->num_connections >= port->max_connections) MakeRoom(port);
  const bool is_full = port->num_connections >= port->max_connections;
  const bool has_tls = port->kind == ListenerKind::kMain && tls_ != nullptr;
  // Before the handshake there is no way to say why.
  if (port->num_connections >= port->max_connections + kMaxRefusedConnections ||
      (is_full && has_tls)) {
    RefuseConnection(*port, fd);
    return;
  }
  auto owned = std::make_unique<Connection>();
  Connection* const c = owned.get();
  c->fd = fd;
  c->port = port;
  c->since = now_;
  if (has_tls) c->tls = tls_->NewSession(fd);
  epoll_event event = {};
  event.events = c->watched_events = EPOLLIN | EPOLLRDHUP;
  event.data.ptr = c;
  if ((has_tls && c->tls == nullptr) ||
      epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    close(fd);
    return;
  }
  connections_[fd] = std::move(owned);
  ++port->num_connections;
  c->is_over_limit = is_full;
  SetDeadline(c);
}

void EventLoop::MakeRoom(Port* port) {
  // In the order of their deadlines, which is about that of their arrival: with
  // so many that ask for nothing, each has the more time the fewer come.
  int num_looks = 0;
  for (const auto& [deadline, c] : timers_) {
    if (c->port == port && c->state == State::kHead) return Close(c);
    if (++num_looks == kMaxLooksForRoom) return;
  }
}

void EventLoop::RefuseConnection(const Port& port, int fd) {
  if (port.kind == ListenerKind::kMain && tls_ != nullptr) {
    close(fd);
    return;
  }
  std::string out;
  const std::string body = sink_->ErrorBody(503, "too many connections");
  ResponseHead head;
  head.status = 503;
  head.content_type = "application/json";
  head.content_length = body.size();
  head.keep_alive = false;
  AppendResponseHead(head,
                     {{"Retry-After", "1"}, {"X-Request-Id", NewTraceId()}},
                     std::time(nullptr), &out);
  sink_->OnResponse(RequestHead(), head.status);
  out += body;
  // A new socket's buffer takes it whole; closing with unread data would reset
  // the connection and take the answer away.
  (void)!send(fd, out.data(), out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  shutdown(fd, SHUT_WR);
  (void)!recv(fd, read_buffer_.data(), read_buffer_.size(), MSG_DONTWAIT);
  close(fd);
}

void EventLoop::RefuseForLackOfDescriptors(const Port& port) {
  if (spare_fd_ >= 0) close(spare_fd_);
  const int fd = accept4(port.listener.fd(), nullptr, nullptr,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) RefuseConnection(port, fd);
  spare_fd_ = OpenSpare();
}

void EventLoop::PauseAccepting() {
  for (const auto& port : ports_) WatchPort(port.get(), 0, EPOLL_CTL_MOD);
  accept_again_at_ = now_ + kAcceptPause;
}

void EventLoop::ResumeAccepting() {
  accept_again_at_ = absl::InfiniteFuture();
  if (spare_fd_ < 0) spare_fd_ = OpenSpare();
  for (const auto& port : ports_) {
    if (port->listener.fd() >= 0 &&
        !WatchPort(port.get(), EPOLLIN, EPOLL_CTL_MOD)) {
      accept_again_at_ = now_ + kAcceptPause;  // A port must not stay deaf.
    }
  }
}

void EventLoop::ReloadCertificates() {
  reload_at_ = now_ + kReloadInterval;
  const absl::StatusOr<bool> is_reloaded = tls_->ReloadIfChanged();
  if (!is_reloaded.ok()) {
    sink_->OnNotice(absl::StrCat("the old certificate stays in force: ",
                                 is_reloaded.status().message()));
  } else if (*is_reloaded) {
    sink_->OnInfo("the certificate was read again");
  }
}

void EventLoop::Close(Connection* c) {
  if (c->state == State::kClosed) return;
  SetState(c, State::kClosed);
  if (c->timer_at != absl::InfiniteFuture()) timers_.erase({c->timer_at, c});
  num_body_bytes_ -= c->body.size();
  num_unsent_bytes_ -= std::exchange(c->num_unsent_counted, 0);
  --c->port->num_connections;
  close(c->fd);  // Leaves the epoll set with it.
  auto it = connections_.find(c->fd);
  closed_.push_back(std::move(it->second));
  connections_.erase(it);
  if (auto exchange = std::move(c->exchange)) {
    exchange->connection = nullptr;
    --num_open_requests_;
    exchange->EndDisconnected();
  }
  EndRecord(c, /*is_cut_off=*/true);
}

void EventLoop::SetState(Connection* c, State state) {
  const auto is_busy = [](State s) {
    return s == State::kBody || s == State::kAnswering;
  };
  num_busy_ += is_busy(state) - is_busy(c->state);
  c->state = state;
}

void EventLoop::Watch(Connection* c) {
  if (c->state == State::kClosed) return;
  // While a request is being answered nothing more is read: what a client sends
  // ahead stays in the kernel.
  uint32_t events = EPOLLRDHUP;
  if (c->state != State::kAnswering) events |= EPOLLIN;
  if (c->num_unsent() > 0 ||
      (c->tls != nullptr && c->tls->receive_needs_write())) {
    events |= EPOLLOUT;
  }
  if (events == c->watched_events) return;
  epoll_event event = {};
  event.events = c->watched_events = events;
  event.data.ptr = c;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, c->fd, &event) != 0) Close(c);
}

void EventLoop::SetDeadline(Connection* c) {
  if (c->state == State::kClosed) return;
  c->deadline = DeadlineOf(*c);
  // Deadlines mostly move away: a timer that comes too early is put back then
  // (RunTimers), so that a stream's writes do not touch the set.
  if (c->deadline >= c->timer_at) return;
  if (c->timer_at != absl::InfiniteFuture()) timers_.erase({c->timer_at, c});
  c->timer_at = c->deadline;
  timers_.insert({c->timer_at, c});
}

void EventLoop::RunTimers() {
  if (now_ >= accept_again_at_) ResumeAccepting();
  if (now_ >= reload_at_) ReloadCertificates();
  while (!timers_.empty() && timers_.begin()->first <= now_) {
    Connection* const c = timers_.begin()->second;
    timers_.erase(timers_.begin());
    c->timer_at = absl::InfiniteFuture();
    if (c->deadline <= now_) OnDeadline(c);
    SetDeadline(c);
  }
}

int EventLoop::MillisToNextTimer() const {
  absl::Time next = std::min(accept_again_at_, reload_at_);
  if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
  if (next == absl::InfiniteFuture()) return -1;
  // Rounded up, or the loop would spin for the last fraction.
  const int64_t millis = absl::ToInt64Milliseconds(
      next - now_ + absl::Milliseconds(1) - absl::Nanoseconds(1));
  return static_cast<int>(std::clamp<int64_t>(millis, 0, 1 << 30));
}

}  // namespace quire
