#include "engine/parallel/rank_worker.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/shared_memory.h"
#include "engine/base/status.h"
#include "engine/parallel/control_link.h"
#include "engine/parallel/plan_ring.h"
#include "engine/parallel/rank_bootstrap.h"
#include "engine/parallel/rank_communicators.h"
#include "engine/parallel/rank_digest.h"
#include "engine/parallel/step_plan_codec.h"

namespace quire {
namespace {

constexpr absl::Duration kMeshTimeout = absl::Seconds(20);
constexpr absl::Duration kStuckTimeout = absl::Seconds(2);
// In a heartbeat.
constexpr size_t kMaxDigests = 256;
// Between looks at whether the group still exists, while no plan comes.
constexpr absl::Duration kLookAround = absl::Milliseconds(100);

class RankWorkerImpl : public RankWorker {
 public:
  explicit RankWorkerImpl(RankWorkerOptions options)
      : options_(std::move(options)),
        layout_(options_.ranks.layout),
        name_(ProcessName()) {}

  ~RankWorkerImpl() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
    }
    stopped_.notify_all();
    if (watcher_.joinable()) watcher_.join();
    if (aborter_.joinable()) aborter_.join();
    if (has_shut_down_) local_.WaitAndKill(absl::Seconds(2));
  }

  absl::Status Init() {
    OwnedFd link_fd(std::exchange(options_.link_fd, -1));
    OwnedFd memory_fd(std::exchange(options_.memory_fd, -1));
    QUIRE_RETURN_IF_ERROR(layout_.Validate());
    if (options_.rank < 1 || options_.rank >= layout_.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", options_.rank, " is none of ", layout_.size(), " ranks"));
    }
    QUIRE_RETURN_IF_ERROR(ShareMemory(std::move(memory_fd)));
    const absl::Time deadline =
        Clock::Monotonic()->Now() + options_.ranks.bootstrap_timeout;
    const bool is_remote = link_fd.get() < 0;
    if (is_remote) {
      auto connected = ConnectTcp(options_.ranks.master, deadline);
      if (!connected.ok()) {
        return absl::UnavailableError(absl::StrCat(
            DescribeRank(options_.rank, name_), " ",
            connected.status().message(), " (rank 0, for ",
            absl::FormatDuration(options_.ranks.bootstrap_timeout), ")"));
      }
      link_fd = *std::move(connected);
      SetTcpOptions(link_fd.get(), options_.ranks.watchdog);
    }
    const HostPort own_address = LocalAddress(link_fd.get());
    link_ = std::make_unique<ControlLink>(std::move(link_fd));
    if (NeedsMesh(layout_, options_.rank)) {
      QUIRE_ASSIGN_OR_RETURN(
          mesh_listener_,
          ListenTcp(
              {is_remote ? own_address.host : options_.ranks.master.host, 0}));
    }
    QUIRE_RETURN_IF_ERROR(SayHello(deadline));
    watcher_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  ParallelConfig config() const override {
    return communicators_.Config(layout_, options_.rank);
  }

  absl::StatusOr<std::string> AwaitShared() override {
    QUIRE_ASSIGN_OR_RETURN(Message message, Await(MessageType::kShared));
    return std::move(message.body);
  }

  void AbortOnFailure(std::function<void()> abort) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (status_.ok()) {
        abort_device_ = std::move(abort);
        return;
      }
    }
    abort();
  }

  absl::Status FinishLoading(const LoadedFacts& own) override {
    limits_ = own.limits;
    const absl::Status sent = link_->Send(MessageType::kLoaded, ToBytes(own),
                                          options_.ranks.watchdog);
    if (!sent.ok()) return Ended(sent);
    return Await(MessageType::kServe).status();
  }

  absl::Status Run(ModelRunner* runner) override {
    const absl::Status status = RunUntilShutdown(runner);
    if (status.ok()) {
      std::lock_guard<std::mutex> lock(mu_);
      has_shut_down_ = true;
      return status;
    }
    const absl::Status ended = Ended(status);
    ReportFailure(ended);
    return ended;
  }

  void ReportFailure(const absl::Status& status) override {
    if (link_ == nullptr) return;
    link_->Send(MessageType::kFailure, status.message(), absl::Seconds(1))
        .IgnoreError();
  }

  absl::Status Health() const override {
    std::lock_guard<std::mutex> lock(mu_);
    return status_;
  }

 private:
  // The node's first rank makes it for the others; a lone one needs none.
  absl::Status ShareMemory(OwnedFd memory_fd) {
    const int node = layout_.NodeOf(options_.rank);
    const NodeMemoryLayout layout = LayOutNodeMemory(layout_, node);
    if (memory_fd.get() >= 0) {
      QUIRE_ASSIGN_OR_RETURN(memory_, SharedMemory::Map(memory_fd.release()));
      if (memory_->num_bytes() != layout.num_bytes) {
        return absl::InvalidArgumentError(
            absl::StrCat("the node shares ", memory_->num_bytes(),
                         " bytes instead of ", layout.num_bytes));
      }
    } else if (layout_.local_size() > 1) {
      QUIRE_ASSIGN_OR_RETURN(memory_, SharedMemory::Create(layout.num_bytes));
      QUIRE_ASSIGN_OR_RETURN(local_, LocalRanks::Start(options_.local_workers,
                                                       memory_->fd(), nullptr));
    }
    if (node == 0 && memory_.has_value()) {
      ring_.emplace(memory_->data() + layout.ring,
                    options_.rank % layout_.local_size() - 1);
    }
    return absl::OkStatus();
  }

  absl::Status SayHello(absl::Time deadline) {
    Hello hello;
    hello.rank = options_.rank;
    hello.name = name_;
    hello.facts = options_.ranks.facts;
    if (mesh_listener_.get() >= 0) {
      hello.mesh_port = LocalAddress(mesh_listener_.get()).port;
    }
    QUIRE_RETURN_IF_ERROR(
        link_->Send(MessageType::kHello, ToBytes(hello), absl::Seconds(10)));
    absl::StatusOr<Message> answer = absl::DeadlineExceededError("");
    while (absl::IsDeadlineExceeded(answer.status()) &&
           Clock::Monotonic()->Now() < deadline) {
      answer = link_->Receive(kMaxControlBytes,
                              Clock::Monotonic()->Now() + kLookAround);
      QUIRE_RETURN_IF_ERROR(local_.Check());
    }
    if (!answer.ok()) {
      return absl::UnavailableError(absl::StrCat(
          DescribeRank(options_.rank, name_), " waits for rank 0 at ",
          options_.ranks.master.ToString(), ": ", answer.status().message()));
    }
    if (answer->type == MessageType::kRefusal) {
      return absl::FailedPreconditionError(answer->body);
    }
    if (answer->type != MessageType::kWelcome) {
      return absl::UnavailableError("rank 0 does not say welcome");
    }
    CommunicatorOptions options;
    QUIRE_ASSIGN_OR_RETURN(options.welcome, FromBytes<Welcome>(answer->body));
    if (options.welcome.mesh.size() != size_t(layout_.size())) {
      return absl::UnavailableError(absl::StrCat(
          options.welcome.leader_name, " has ", options.welcome.mesh.size(),
          " ranks instead of ", layout_.size()));
    }
    options.layout = layout_;
    options.rank = options_.rank;
    options.memory = memory_.has_value() ? &*memory_ : nullptr;
    options.master_host = options_.ranks.master.host;
    options.mesh_listener = mesh_listener_.get();
    options.deadline = Clock::Monotonic()->Now() + kMeshTimeout;
    options.timeout = options_.ranks.watchdog;
    QUIRE_ASSIGN_OR_RETURN(communicators_, ConnectRanks(options));
    return link_->Send(MessageType::kJoined, "", absl::Seconds(10));
  }

  // The next message of rank 0, which must be this one.
  absl::StatusOr<Message> Await(MessageType type) {
    for (;;) {
      QUIRE_RETURN_IF_ERROR(Health());
      auto message = link_->Receive(kMaxControlBytes,
                                    Clock::Monotonic()->Now() + kLookAround);
      if (absl::IsDeadlineExceeded(message.status())) continue;
      if (!message.ok()) return Ended(message.status());
      if (message->type == type) return message;
      return Fail(
          absl::UnavailableError("rank 0 sends another message than "
                                 "the one expected"));
    }
  }

  absl::Status RunUntilShutdown(ModelRunner* runner) {
    StepPlanDecoder decoder(limits_);
    SchedulerOutput plan;
    Message message;
    int num_pending = 0;
    for (;;) {
      // While a step runs that can be collected, plans are only looked for.
      const bool has_room = num_pending < runner->steps_in_flight();
      if (num_pending > 0 && (!has_room || !HasPlan())) {
        QUIRE_ASSIGN_OR_RETURN(const StepResult result, runner->Collect());
        --num_pending;
        EndStep(result);
        continue;
      }
      QUIRE_ASSIGN_OR_RETURN(const bool has_message, ReadPlan(&message));
      if (!has_message) continue;
      switch (message.type) {
        case MessageType::kPlan:
          QUIRE_RETURN_IF_ERROR(decoder.Decode(message.body, &plan));
          QUIRE_RETURN_IF_ERROR(runner->Submit(plan));
          ++num_pending;
          break;
        case MessageType::kPrepareAhead:
          runner->PrepareAhead();
          break;
        case MessageType::kShutdown:
          return absl::OkStatus();
        default:
          return absl::DataLossError("rank 0 sends what is no plan");
      }
    }
  }

  bool HasPlan() const {
    return ring_.has_value() ? ring_->HasMessage() : link_->HasMessage();
  }

  // False if none has come for a while.
  absl::StatusOr<bool> ReadPlan(Message* message) {
    QUIRE_RETURN_IF_ERROR(Health());
    if (ring_.has_value()) {
      QUIRE_ASSIGN_OR_RETURN(
          const bool has_message,
          ring_->Read(&ring_message_, kLookAround, options_.ranks.watchdog));
      if (!has_message) return false;
      if (ring_message_.empty()) return absl::DataLossError("an empty plan");
      message->type = static_cast<MessageType>(ring_message_[0]);
      message->body.assign(ring_message_, 1);
      return true;
    }
    auto received =
        link_->Receive(kMaxPlanBytes, Clock::Monotonic()->Now() + kLookAround,
                       options_.ranks.watchdog);
    if (absl::IsDeadlineExceeded(received.status())) return false;
    QUIRE_RETURN_IF_ERROR(received.status());
    *message = *std::move(received);
    return true;
  }

  void EndStep(const StepResult& result) {
    std::lock_guard<std::mutex> lock(mu_);
    const int64_t step_idx = heartbeat_.num_steps_done++;
    if (layout_.pipeline_size > 1) return;
    // Of a very fast model's steps the last ones are compared: rank 0 no longer
    // has the first when the heartbeat comes.
    std::vector<StepDigest>& digests = heartbeat_.digests;
    if (digests.size() >= kMaxDigests) digests.erase(digests.begin());
    digests.push_back(DigestOf(step_idx, result));
  }

  absl::Status Fail(absl::Status status) {
    std::lock_guard<std::mutex> lock(mu_);
    if (status_.ok()) {
      status_ = std::move(status);
      communicators_.Abort();
    }
    return status_;
  }

  // Requires: mu_ is held, the group has failed. Not on a thread that must get
  // on: a library's abort waits for whom it likes.
  void StartDeviceAbort() {
    if (abort_device_ == nullptr) return;
    is_aborting_ = true;
    aborter_ = std::thread([this, abort = std::move(abort_device_)] {
      abort();
      std::lock_guard<std::mutex> lock(mu_);
      is_aborting_ = false;
      stopped_.notify_all();
    });
  }

  // What the group ended of, if `status` is a consequence of that.
  absl::Status Ended(const absl::Status& status) {
    return Fail(absl::UnavailableError(status.message()));
  }

  // Signs of life, and what is not to be waited for by who computes. On its own
  // thread.
  void Watch() {
    const absl::Duration interval =
        std::min(absl::Milliseconds(100), options_.ranks.watchdog / 20);
    std::unique_lock<std::mutex> lock(mu_);
    while (!is_stopping_ && !has_shut_down_ && status_.ok()) {
      const std::string bytes = ToBytes(heartbeat_);
      heartbeat_.digests.clear();
      lock.unlock();
      absl::Status status =
          link_->Send(MessageType::kHeartbeat, bytes, options_.ranks.watchdog);
      if (status.ok()) status = WaitForEnd(interval);
      if (!status.ok()) {
        status =
            absl::UnavailableError(absl::StrCat("rank 0: ", status.message()));
      } else {
        status = local_.Check();
      }
      lock.lock();
      // In good order rank 0 says so first, and then goes.
      if (!status.ok() && !has_shut_down_ && !is_stopping_ && status_.ok()) {
        const bool may_be_in_order = HasPlan();
        lock.unlock();
        // The message of good order is read by who computes.
        if (may_be_in_order) absl::SleepFor(absl::Milliseconds(200));
        lock.lock();
        if (has_shut_down_ || is_stopping_) return;
        if (status_.ok()) status_ = std::move(status);
      }
    }
    if (status_.ok()) return;
    communicators_.Abort();
    StartDeviceAbort();
    if (stopped_.wait_for(lock, absl::ToChronoNanoseconds(kStuckTimeout),
                          [this] { return is_stopping_ && !is_aborting_; })) {
      return;
    }
    const absl::Status status = status_;
    lock.unlock();
    if (options_.on_stuck != nullptr) options_.on_stuck(status);
  }

  // Sleeps, but not beyond the end of the connection.
  absl::Status WaitForEnd(absl::Duration interval) {
    pollfd poll_fd = {link_->fd(), POLLRDHUP, 0};
    const int milliseconds =
        static_cast<int>(absl::ToInt64Milliseconds(interval)) + 1;
    if (poll(&poll_fd, 1, milliseconds) > 0) {
      return absl::UnavailableError("the connection has ended");
    }
    return absl::OkStatus();
  }

  RankWorkerOptions options_;
  const RankLayout layout_;
  const std::string name_;

  // Written before the watcher starts.
  std::optional<SharedMemory> memory_;
  std::optional<PlanRingReader> ring_;  // On rank 0's node.
  std::unique_ptr<ControlLink> link_;
  OwnedFd mesh_listener_;
  RankCommunicators communicators_;

  StepPlanLimits limits_;
  std::string ring_message_;  // Reused.

  mutable std::mutex mu_;  // Guards the following.
  std::condition_variable stopped_;
  absl::Status status_;
  bool is_stopping_ = false;
  bool has_shut_down_ = false;
  Heartbeat heartbeat_;
  LocalRanks local_;  // The watcher's, once it runs.

  std::function<void()> abort_device_;  // Null: no device, or it has been.
  bool is_aborting_ = false;

  std::thread watcher_, aborter_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankWorker>> RankWorker::Join(
    RankWorkerOptions options) {
  auto worker = std::make_unique<RankWorkerImpl>(std::move(options));
  QUIRE_RETURN_IF_ERROR(worker->Init());
  return worker;
}

}  // namespace quire
