#include "server/telemetry/log_writer.h"

#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace quire {
namespace {

// How often a writer that waits for its reader looks whether it is to end.
constexpr int kPollMillis = 50;
constexpr absl::Duration kEndTimeout = absl::Seconds(1);
constexpr absl::Duration kStuckTimeout = absl::Milliseconds(100);

}  // namespace

struct LogWriter::State {
  State(int fd, int64_t max_queued_bytes,
        std::shared_ptr<TelemetryCounts> counts)
      : fd(fd), max_queued_bytes(max_queued_bytes), counts(std::move(counts)) {}

  void Run();
  // False if it was lost in part or as a whole.
  bool WriteAll(absl::string_view data);
  void CountLost(absl::string_view data) {
    counts->num_log_lines_dropped += std::count(data.begin(), data.end(), '\n');
  }

  const int fd;
  const int64_t max_queued_bytes;
  const std::shared_ptr<TelemetryCounts> counts;
  std::atomic<bool> is_abandoned{false};
  std::atomic<int64_t> num_written_bytes{0};
  std::mutex mu;
  std::condition_variable has_work;
  std::condition_variable is_idle;
  std::string queue;  // Guarded by mu, as all below.
  bool is_writing = false;
  bool is_stopping = false;
  bool has_thread = false;
  // Of the writer alone: what was written ends within a line.
  bool is_within_line = false;
};

bool LogWriter::State::WriteAll(absl::string_view data) {
  while (!data.empty()) {
    pollfd waiting = {fd, POLLOUT, 0};
    const int ready = poll(&waiting, 1, kPollMillis);
    if (is_abandoned) return false;
    if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
    // A pipe that polls writable takes so much at once without blocking.
    const ssize_t size =
        write(fd, data.data(), std::min<size_t>(data.size(), PIPE_BUF));
    if (size < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (size <= 0) {
      CountLost(data);
      return false;
    }
    is_within_line = data[size - 1] != '\n';
    data.remove_prefix(size);
    num_written_bytes += size;
  }
  return true;
}

void LogWriter::State::Run() {
  std::string batch;
  std::unique_lock<std::mutex> lock(mu);
  for (;;) {
    has_work.wait(lock, [this] { return is_stopping || !queue.empty(); });
    if (queue.empty()) return;
    batch.clear();
    batch.swap(queue);
    is_writing = true;
    lock.unlock();
    // What a full disk cut off must not swallow the next line's beginning.
    if (!is_within_line || WriteAll("\n")) {
      WriteAll(batch);
    } else {
      CountLost(batch);
    }
    lock.lock();
    is_writing = false;
    if (queue.empty()) is_idle.notify_all();
  }
}

LogWriter::LogWriter(int fd, int64_t max_queued_bytes,
                     std::shared_ptr<TelemetryCounts> counts)
    : state_(std::make_shared<State>(fd, max_queued_bytes, std::move(counts))) {
  // The signals are others', and a closed pipe is an error, not an end.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  try {
    // Detached: it cannot be joined while a write is stuck.
    std::thread([state = state_] {
      pthread_setname_np(pthread_self(), "log");
      state->Run();
    }).detach();
    state_->has_thread = true;
  } catch (const std::system_error&) {
    // No thread, no log: every line counts as dropped.
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

LogWriter::~LogWriter() {
  // A reader that takes nothing for a while has stopped: the end is not delayed
  // for it.
  const absl::Time deadline = absl::Now() + kEndTimeout;
  int64_t num_written = -1;
  while (!Flush(kStuckTimeout) && absl::Now() < deadline &&
         std::exchange(num_written, state_->num_written_bytes.load()) !=
             state_->num_written_bytes) {
  }
  std::lock_guard<std::mutex> lock(state_->mu);
  state_->is_stopping = true;
  state_->is_abandoned = true;
  state_->queue.clear();
  state_->has_work.notify_one();
}

void LogWriter::Write(absl::string_view line) {
  {
    std::lock_guard<std::mutex> lock(state_->mu);
    const int64_t size = static_cast<int64_t>(line.size()) + 1;
    if (state_->has_thread &&
        static_cast<int64_t>(state_->queue.size()) + size <=
            state_->max_queued_bytes) {
      const bool was_empty = state_->queue.empty();
      state_->queue.append(line.data(), line.size());
      state_->queue += '\n';
      if (!was_empty || state_->is_writing) return;
    } else {
      ++state_->counts->num_log_lines_dropped;
      return;
    }
  }
  state_->has_work.notify_one();
}

bool LogWriter::Flush(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(state_->mu);
  if (!state_->has_thread) return true;
  return state_->is_idle.wait_for(
      lock, absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24))),
      [this] { return state_->queue.empty() && !state_->is_writing; });
}

}  // namespace quire
