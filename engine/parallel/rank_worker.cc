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
#include "engine/parallel/device_abort.h"
#include "engine/parallel/liveness.h"
#include "engine/parallel/plan_ring.h"
#include "engine/parallel/rank_bootstrap.h"
#include "engine/parallel/rank_communicators.h"
#include "engine/parallel/rank_digest.h"
#include "engine/parallel/rank_timing.h"
#include "engine/parallel/step_plan_codec.h"
#include "engine/parallel/step_result_codec.h"

namespace quire {
namespace {

constexpr absl::Duration kStuckTimeout = absl::Seconds(2);
// Who loads does not look up from reading.
constexpr absl::Duration kLoadStuckTimeout = absl::Milliseconds(500);
// In a heartbeat.
constexpr size_t kMaxDigests = 256;
// Rank 0 says first who has not loaded in time.
constexpr absl::Duration kLoadVerdictTimeout = absl::Seconds(5);
// Likewise who has not joined: rank 0 waits for the bootstrap timeout of its
// own, which began at another time.
constexpr absl::Duration kJoinVerdictTimeout = absl::Seconds(5);
// Rank 0 may start a moment later than the others.
constexpr absl::Duration kUnsaid = absl::Seconds(1);
// Who meets an error waits so long for what rank 0 says of it.
constexpr absl::Duration kVerdictTimeout = absl::Seconds(1);
// For whoever reads rank 0's last messages, once the connection has ended.
constexpr absl::Duration kLastWordsTimeout = absl::Milliseconds(200);
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
    device_abort_.Join();
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
    leader_pid_ = is_remote ? 0 : getppid();
    if (is_remote) {
      auto connected =
          ConnectTcp(options_.ranks.master,
                     std::min(deadline, Clock::Monotonic()->Now() + kUnsaid));
      if (!connected.ok() && Clock::Monotonic()->Now() < deadline) {
        if (options_.on_log != nullptr) {
          options_.on_log(absl::StrCat(DescribeRank(options_.rank, name_),
                                       " waits for rank 0 at ",
                                       options_.ranks.master.ToString(), ": ",
                                       connected.status().message()));
        }
        connected = ConnectTcp(options_.ranks.master, deadline);
      }
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
    QUIRE_RETURN_IF_ERROR(SayHello(deadline, is_remote));
    load_deadline_ = Clock::Monotonic()->Now() + options_.ranks.load_timeout +
                     kLoadVerdictTimeout;
    watcher_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  ParallelConfig config() const override {
    ParallelConfig config = communicators_.Config(layout_, options_.rank);
    config.progress = &progress_;
    return config;
  }

  absl::StatusOr<std::string> AwaitShared() override {
    QUIRE_ASSIGN_OR_RETURN(Message message, Await(MessageType::kShared));
    return std::move(message.body);
  }

  void AbortOnFailure(std::function<void()> abort) override {
    device_abort_.Set(std::move(abort));
  }

  absl::Status FinishLoading(const LoadedFacts& own) override {
    limits_ = own.limits;
    const absl::Status sent = link_->Send(MessageType::kLoaded, ToBytes(own),
                                          options_.ranks.watchdog);
    if (!sent.ok()) return Ended(sent);
    QUIRE_RETURN_IF_ERROR(Await(MessageType::kServe).status());
    is_serving_ = true;
    return absl::OkStatus();
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

  // Rank 0's next message while it may be waiting for others.
  absl::StatusOr<Message> AwaitAnswer(absl::Time deadline) {
    absl::StatusOr<Message> answer = absl::DeadlineExceededError("");
    while (absl::IsDeadlineExceeded(answer.status()) &&
           Clock::Monotonic()->Now() < deadline) {
      answer = link_->Receive(kMaxControlBytes,
                              Clock::Monotonic()->Now() + kLookAround);
      const absl::Status ended = local_.Check();
      if (ended.ok()) continue;
      // A child that was refused ends before this rank has heard the same.
      if (!answer.ok()) {
        answer = link_->Receive(kMaxControlBytes,
                                Clock::Monotonic()->Now() + kVerdictTimeout);
      }
      if (!answer.ok() || (answer->type != MessageType::kRefusal &&
                           answer->type != MessageType::kFailure)) {
        return ended;
      }
    }
    if (!answer.ok()) {
      return absl::UnavailableError(absl::StrCat(
          DescribeRank(options_.rank, name_), " waits for rank 0 at ",
          options_.ranks.master.ToString(), ": ", answer.status().message()));
    }
    if (answer->type == MessageType::kFailure) return GroupFailed(*answer);
    if (answer->type == MessageType::kRefusal) {
      return absl::FailedPreconditionError(
          answer->body == kPlainRefusal
              ? absl::StrCat(DescribeRank(options_.rank, name_),
                             " is refused at ",
                             options_.ranks.master.ToString(),
                             ": the group has a key, which this rank does not "
                             "have (--group-key-file, QUIRE_GROUP_KEY)")
              : answer->body);
    }
    return answer;
  }

  // The hello, and before it the proof that this rank knows the group's key, if
  // there is one.
  absl::Status Introduce(const Hello& hello, absl::Time deadline,
                         bool is_remote) {
    const GroupKey& key = options_.ranks.key;
    const std::string bytes = ToBytes(hello);
    if (key.empty() || !is_remote) {
      return link_->Send(MessageType::kHello, bytes, absl::Seconds(10));
    }
    const std::string nonce = GroupKey::MakeNonce();
    QUIRE_RETURN_IF_ERROR(
        link_->Send(MessageType::kKnock, nonce, absl::Seconds(10)));
    QUIRE_ASSIGN_OR_RETURN(const Message answer, AwaitAnswer(deadline));
    const absl::string_view body = answer.body;
    const absl::string_view theirs = body.substr(0, GroupKey::kNonceBytes);
    if (answer.type != MessageType::kChallenge ||
        !key.IsProof(body.substr(theirs.size()), kLeaderRole, nonce, theirs)) {
      return absl::FailedPreconditionError(
          absl::StrCat(DescribeRank(options_.rank, name_), ": who answers at ",
                       options_.ranks.master.ToString(),
                       " does not know the group's key (--group-key-file)"));
    }
    return link_->Send(
        MessageType::kProof,
        absl::StrCat(key.Prove(kWorkerRole, nonce, theirs, bytes), bytes),
        absl::Seconds(10));
  }

  absl::Status SayHello(absl::Time deadline, bool is_remote) {
    Hello hello;
    hello.rank = options_.rank;
    hello.name = name_;
    hello.facts = options_.ranks.facts;
    if (mesh_listener_.get() >= 0) {
      hello.mesh_port = LocalAddress(mesh_listener_.get()).port;
    }
    QUIRE_RETURN_IF_ERROR(Introduce(hello, deadline, is_remote));
    QUIRE_ASSIGN_OR_RETURN(
        const Message answer,
        AwaitAnswer(Clock::Monotonic()->Now() +
                    options_.ranks.bootstrap_timeout + kJoinVerdictTimeout));
    if (answer.type != MessageType::kWelcome) {
      return absl::UnavailableError("rank 0 does not say welcome");
    }
    CommunicatorOptions options;
    QUIRE_ASSIGN_OR_RETURN(options.welcome, FromBytes<Welcome>(answer.body));
    leader_name_ = options.welcome.leader_name;
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
      if (message->type == MessageType::kHeartbeat) continue;
      if (message->type == MessageType::kFailure) {
        return Fail(GroupFailed(*message));
      }
      return Fail(absl::UnavailableError(absl::StrCat(
          leader_name_, " sends another message than the one expected")));
    }
  }

  absl::Status RunUntilShutdown(ModelRunner* runner) {
    StepPlanDecoder decoder(limits_);
    StageTimeLimit stage_limit(options_.ranks.watchdog,
                               runner->steps_in_flight());
    SchedulerOutput plan;
    Message message;
    int num_pending = 0;
    for (;;) {
      // While a step runs that can be collected, plans are only looked for; one
      // that is done may be waited for.
      const bool has_room = num_pending < runner->steps_in_flight();
      if (num_pending > 0 && (!has_room || runner->Done() || !HasPlan())) {
        is_in_step_ = true;
        const absl::StatusOr<StepResult> result = runner->Collect();
        is_in_step_ = false;
        QUIRE_RETURN_IF_ERROR(result.status());
        --num_pending;
        QUIRE_RETURN_IF_ERROR(SendResult(*result));
        EndStep(*result);
        continue;
      }
      QUIRE_ASSIGN_OR_RETURN(const bool has_message, ReadPlan(&message));
      if (!has_message) continue;
      absl::Status status;
      switch (message.type) {
        case MessageType::kPlan:
          QUIRE_RETURN_IF_ERROR(decoder.Decode(message.body, &plan));
          communicators_.SetStageTimeout(stage_limit.Next(NumTokensOf(plan)));
          is_in_step_ = true;
          status = runner->Submit(plan);
          is_in_step_ = false;
          QUIRE_RETURN_IF_ERROR(status);
          ++num_pending;
          break;
        case MessageType::kPrepareAhead:
          runner->PrepareAhead();
          break;
        case MessageType::kHeartbeat:
          break;
        case MessageType::kShutdown:
          return absl::OkStatus();
        case MessageType::kFailure:
          return Fail(GroupFailed(message));
        default:
          return absl::DataLossError(
              absl::StrCat(leader_name_, " sends what is no plan"));
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

  // To rank 0, if this one draws for it.
  absl::Status SendResult(const StepResult& result) {
    if (options_.rank != layout_.drawing_rank()) return absl::OkStatus();
    result_bytes_.clear();
    EncodeStepResult(result, &result_bytes_);
    return link_->Send(MessageType::kResult, result_bytes_,
                       options_.ranks.watchdog);
  }

  void EndStep(const StepResult& result) {
    std::lock_guard<std::mutex> lock(mu_);
    const int64_t step_idx = heartbeat_.num_steps_done++;
    if (!layout_.Draws(options_.rank)) return;
    // Of a very fast model's steps the last ones are compared: rank 0 no longer
    // has the first when the heartbeat comes.
    std::vector<StepDigest>& digests = heartbeat_.digests;
    if (digests.size() >= kMaxDigests) digests.erase(digests.begin());
    digests.push_back(DigestOf(step_idx, result));
  }

  absl::Status Fail(absl::Status status) {
    std::lock_guard<std::mutex> lock(mu_);
    FailLocked(std::move(status));
    return status_;
  }

  // Requires: mu_ is held. The first failure counts.
  void FailLocked(absl::Status status) {
    if (!status_.ok()) return;
    status_ = std::move(status);
    failed_.notify_all();
    communicators_.Abort();
  }

  // What the group ended of, if `status` is a consequence of that: rank 0 knows
  // who was lost, and says so before it ends the connection.
  absl::Status Ended(const absl::Status& status) {
    if (absl::IsUnavailable(status)) {
      std::unique_lock<std::mutex> lock(mu_);
      failed_.wait_for(lock, absl::ToChronoNanoseconds(kVerdictTimeout),
                       [this] { return !status_.ok(); });
    }
    return Fail(absl::UnavailableError(status.message()));
  }

  absl::Status GroupFailed(const Message& farewell) const {
    return absl::UnavailableError(
        absl::StrCat(leader_name_, " ends the group: ", farewell.body));
  }

  // Signs of life, and what is not to be waited for by who computes. On its own
  // thread.
  void Watch() {
    NameBeatThread();
    const absl::Duration interval = HeartbeatInterval(options_.ranks);
    WakefulTime awake(interval);
    awake.Advance(Clock::Monotonic()->Now());
    for (;;) {
      absl::Status status = SendHeartbeat();
      if (status.ok()) status = WaitForEnd(interval);
      awake.Advance(Clock::Monotonic()->Now());
      awake_ = awake.total();
      const bool has_ended = !status.ok();
      if (status.ok()) status = CheckLeader();
      if (status.ok()) status = CheckOwnWork();
      if (status.ok()) {
        std::lock_guard<std::mutex> lock(mu_);
        status = local_.Check();
      }
      if (has_ended) status = AwaitLastWords(std::move(status));
      std::lock_guard<std::mutex> lock(mu_);
      // In good order rank 0 says so first, and then goes.
      if (is_stopping_ || has_shut_down_) return;
      if (!status.ok()) FailLocked(std::move(status));
      if (!status_.ok()) break;
    }
    device_abort_.Start();
    std::unique_lock<std::mutex> lock(mu_);
    const absl::Duration patience =
        is_serving_ ? kStuckTimeout : kLoadStuckTimeout;
    if (stopped_.wait_for(lock, absl::ToChronoNanoseconds(patience), [this] {
          return is_stopping_ && !device_abort_.is_running();
        })) {
      return;
    }
    const absl::Status status = status_;
    lock.unlock();
    if (options_.on_stuck != nullptr) options_.on_stuck(status);
  }

  // Without waiting for a rank 0 that takes nothing.
  absl::Status SendHeartbeat() {
    Heartbeat heartbeat;
    {
      std::lock_guard<std::mutex> lock(mu_);
      heartbeat = heartbeat_;
    }
    heartbeat.progress = Progress();
    const absl::StatusOr<bool> is_sent =
        link_->TrySend(MessageType::kHeartbeat, ToBytes(heartbeat));
    if (!is_sent.ok()) {
      return absl::UnavailableError(
          absl::StrCat(leader_name_, ": ", is_sent.status().message()));
    }
    if (!*is_sent || heartbeat.digests.empty()) return absl::OkStatus();
    // Those that came meanwhile are still to be told.
    const int64_t last = heartbeat.digests.back().step_idx;
    std::lock_guard<std::mutex> lock(mu_);
    std::erase_if(heartbeat_.digests, [last](const StepDigest& digest) {
      return digest.step_idx <= last;
    });
    return absl::OkStatus();
  }

  int64_t Progress() const {
    return progress_ + communicators_.activity->num_begun;
  }

  // That this rank does not sleep in the midst of a step. Says so to rank 0,
  // for who computes cannot.
  absl::Status CheckOwnWork() {
    if (!options_.ranks.computes_on_cpu) return absl::OkStatus();
    const bool is_working = is_in_step_ && !communicators_.activity->IsInside();
    const absl::Duration idle = idle_.Update(awake_, is_working, Progress());
    const absl::Duration limit =
        std::min(options_.ranks.heartbeat_timeout, options_.ranks.watchdog);
    if (idle <= limit) return absl::OkStatus();
    int64_t step_idx = 0;
    {
      std::lock_guard<std::mutex> lock(mu_);
      step_idx = heartbeat_.num_steps_done;
    }
    const std::string text =
        absl::StrCat("hangs: none of its threads has computed for ",
                     absl::FormatDuration(limit), " in step ", step_idx);
    link_->TrySend(MessageType::kFailure, text).status().IgnoreError();
    return absl::UnavailableError(
        absl::StrCat(DescribeRank(options_.rank, name_), " ", text));
  }

  // Notes what has come of rank 0; true if it was something.
  bool HasHeard() {
    // While this rank computes or loads nobody else reads them.
    link_->SkipHeartbeats();
    const int64_t num_arrived = link_->NumBytesArrived();
    if (num_arrived == num_arrived_) return false;
    num_arrived_ = num_arrived;
    beats_.Heard(awake_);
    return true;
  }

  absl::Status CheckSilence() {
    if (HasHeard()) return absl::OkStatus();
    const SilenceLimits limits = {options_.ranks.heartbeat_timeout,
                                  options_.ranks.watchdog};
    const absl::Duration silence = beats_.SilenceAt(awake_);
    if (silence <= SilenceToLookInto(limits)) {
      return absl::OkStatus();
    }
    const SilenceCause cause = leader_pid_ != 0 ? LookAtProcess(leader_pid_)
                                                : LookAtConnection(link_->fd());
    if (cause == SilenceCause::kUnreachable) {
      beats_.NoteUnreachable(awake_);
    }
    const absl::Duration limit = MaxSilence(cause, is_serving_, beats_, limits);
    // It may have spoken while it was looked at.
    if (silence <= limit || HasHeard()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat(leader_name_, " hangs: ", DescribeSilence(cause, limit),
                     ", says ", DescribeRank(options_.rank, name_)));
  }

  // That rank 0 lives, and serves in time.
  absl::Status CheckLeader() {
    QUIRE_RETURN_IF_ERROR(CheckSilence());
    if (is_serving_ || Clock::Monotonic()->Now() <= load_deadline_) {
      return absl::OkStatus();
    }
    return absl::UnavailableError(
        absl::StrCat(leader_name_, " does not serve, ",
                     absl::FormatDuration(options_.ranks.load_timeout),
                     " after all ranks had joined, says ",
                     DescribeRank(options_.rank, name_), " (--load-timeout)"));
  }

  // The connection has ended: what rank 0 has said of that, or `status`. Its
  // last messages are those of who computes (one may say that all is in order),
  // who is given time to read them.
  absl::Status AwaitLastWords(absl::Status status) {
    const absl::Time deadline = Clock::Monotonic()->Now() + kLastWordsTimeout;
    while (HasPlan() && Clock::Monotonic()->Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(5));
      std::lock_guard<std::mutex> lock(mu_);
      if (is_stopping_ || has_shut_down_ || !status_.ok()) return status;
    }
    while (const std::optional<Message> message =
               link_->TryReceive(kMaxPlanBytes)) {
      if (message->type == MessageType::kFailure) return GroupFailed(*message);
    }
    return status;
  }

  // Sleeps, but not beyond the end of the connection.
  absl::Status WaitForEnd(absl::Duration interval) {
    pollfd poll_fd = {link_->fd(), POLLRDHUP, 0};
    const int milliseconds =
        static_cast<int>(absl::ToInt64Milliseconds(interval)) + 1;
    if (poll(&poll_fd, 1, milliseconds) > 0) {
      return absl::UnavailableError(
          absl::StrCat(leader_name_, ": the connection has ended"));
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

  std::string leader_name_ = "rank 0";
  absl::Time load_deadline_;
  std::atomic<bool> is_serving_{false};
  std::atomic<bool> is_in_step_{false};

  StepPlanLimits limits_;
  std::string ring_message_, result_bytes_;  // Reused.

  mutable StepProgress progress_{0};  // Lent by config().
  int leader_pid_ = 0;                // 0: on another node.

  // The watcher's.
  absl::Duration awake_;  // Its WakefulTime.
  IdleRecord idle_;       // Of this rank.
  BeatRecord beats_;      // Of rank 0.
  int64_t num_arrived_ = 0;

  mutable std::mutex mu_;  // Guards the following.
  std::condition_variable stopped_, failed_;
  absl::Status status_;
  bool is_stopping_ = false;
  bool has_shut_down_ = false;
  Heartbeat heartbeat_;
  LocalRanks local_;  // The watcher's, once it runs.

  DeviceAbort device_abort_{[this] {
    std::lock_guard<std::mutex> lock(mu_);
    stopped_.notify_all();
  }};
  std::thread watcher_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankWorker>> RankWorker::Join(
    RankWorkerOptions options) {
  auto worker = std::make_unique<RankWorkerImpl>(std::move(options));
  QUIRE_RETURN_IF_ERROR(worker->Init());
  return worker;
}

}  // namespace quire
