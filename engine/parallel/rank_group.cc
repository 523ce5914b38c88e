#include "engine/parallel/rank_group.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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

// From the failure of the group to the end of the process, if need be.
constexpr absl::Duration kStuckTimeout = absl::Seconds(4);
// Who loads has no request to end, and does not look up from reading.
constexpr absl::Duration kLoadStuckTimeout = absl::Milliseconds(200);
// From the last message of a run in good order to the end of its processes.
constexpr absl::Duration kShutdownTimeout = absl::Seconds(2);
// Who finds the group broken waits so long for the monitor, which knows why.
constexpr absl::Duration kVerdictTimeout = absl::Seconds(1);
// Of rank 0's own steps, to compare with those of ranks that are behind.
constexpr size_t kNumDigests = 4096;

// One rank as rank 0 sees it. Guarded by the group's mutex, but for the link.
struct Peer {
  std::string name;
  std::unique_ptr<ControlLink> link;  // Null for rank 0.
  bool is_local = false;              // Gets plans through the ring.
  bool has_joined = false;
  std::optional<LoadedFacts> loaded;
  BeatRecord beats;
  int64_t num_steps_done = 0;
  int64_t progress = 0;  // Heartbeat's.
  // When it last got on, or got work; of use while steps sent are not done.
  absl::Time behind_since;
};

class RankGroupImpl : public RankGroup, private ModelRunner {
 public:
  explicit RankGroupImpl(RankGroupOptions options)
      : options_(std::move(options)),
        layout_(options_.ranks.layout),
        peers_(layout_.size()) {}

  ~RankGroupImpl() override {
    const bool is_healthy = Health().ok();
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
    }
    stopped_.notify_all();
    Wake();
    if (monitor_.joinable()) monitor_.join();
    device_abort_.Join();
    // Who is still at the last step must not miss rank 0 meanwhile.
    if (is_healthy && is_serving_) ShutDown();
    {
      std::lock_guard<std::mutex> lock(mu_);
      has_ended_ = true;
    }
    stopped_.notify_all();
    if (beater_.joinable()) beater_.join();
    if (wake_fd_ >= 0) close(wake_fd_);
  }

  // For the other nodes.
  absl::Status Listen() {
    const HostPort& master = options_.ranks.master;
    auto listener = ListenTcp(master);
    if (!listener.ok()) {
      return absl::Status(listener.status().code(),
                          absl::StrCat(listener.status().message(),
                                       " (--master-port, rank 0 on node 0)"));
    }
    listener_ = *std::move(listener);
    const std::string host = LocalAddress(listener_.get()).host;
    if ((host == "0.0.0.0" || host == "::") && master.host != host &&
        !master.host.empty() && options_.on_log != nullptr) {
      options_.on_log(absl::StrCat(
          "--master-addr ", master.host,
          " is no address of node 0, or not known yet: listening on all that "
          "it has, port ",
          master.port));
    }
    return absl::OkStatus();
  }

  absl::Status Init() {
    QUIRE_RETURN_IF_ERROR(layout_.Validate());
    const NodeMemoryLayout memory_layout = LayOutNodeMemory(layout_, 0);
    if (layout_.local_size() > 1) {
      QUIRE_ASSIGN_OR_RETURN(memory_,
                             SharedMemory::Create(memory_layout.num_bytes));
      ring_.emplace(memory_->data() + memory_layout.ring,
                    layout_.local_size() - 1);
    }
    if (layout_.num_nodes > 1) {
      QUIRE_RETURN_IF_ERROR(Listen());
    }
    if (NeedsMesh(layout_, 0)) {
      QUIRE_ASSIGN_OR_RETURN(mesh_listener_,
                             ListenTcp({options_.ranks.master.host, 0}));
    }
    std::vector<OwnedFd> links;
    QUIRE_ASSIGN_OR_RETURN(
        local_,
        LocalRanks::Start(options_.local_workers,
                          memory_.has_value() ? memory_->fd() : -1, &links));
    reception_.emplace(options_, listener_.get());
    for (size_t i = 0; i < links.size(); ++i) {
      reception_->AddLocal(options_.local_workers[i].rank, std::move(links[i]));
    }
    QUIRE_RETURN_IF_ERROR(reception_->AwaitAll(local_));
    QUIRE_RETURN_IF_ERROR(Connect());
    load_deadline_ = Clock::Monotonic()->Now() + options_.ranks.load_timeout;
    monitor_ = std::thread([this] { Monitor(); });
    beater_ = std::thread([this] { ShowLife(); });
    return AwaitPeers([](const Peer& peer) { return peer.has_joined; });
  }

  ParallelConfig config() const override {
    ParallelConfig config = communicators_.Config(layout_, 0);
    config.progress = &progress_;
    return config;
  }

  absl::Status Share(const std::string& bytes) override {
    for (const Peer& peer : peers_) {
      if (peer.link == nullptr) continue;
      QUIRE_RETURN_IF_ERROR(peer.link->Send(MessageType::kShared, bytes,
                                            options_.ranks.watchdog));
    }
    return absl::OkStatus();
  }

  void AbortOnFailure(std::function<void()> abort) override {
    device_abort_.Set(std::move(abort));
  }

  absl::StatusOr<LoadedFacts> FinishLoading(const LoadedFacts& own) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      peers_[0].loaded = own;
    }
    QUIRE_RETURN_IF_ERROR(
        AwaitPeers([](const Peer& peer) { return peer.loaded.has_value(); }));
    LoadedFacts least = own;
    for (size_t rank = 1; rank < peers_.size(); ++rank) {
      const Peer& peer = peers_[rank];
      const absl::Status status =
          CompareLoaded(own, DescribeRank(0, ProcessName()), *peer.loaded,
                        DescribeRank(static_cast<int>(rank), peer.name));
      if (!status.ok()) return Fail(absl::UnavailableError(status.message()));
      least = LeastOf(least, *peer.loaded);
    }
    for (const Peer& peer : peers_) {
      if (peer.link == nullptr) continue;
      const absl::Status sent =
          peer.link->Send(MessageType::kServe, "", options_.ranks.watchdog);
      if (!sent.ok()) return Broken(sent);
    }
    is_serving_ = true;
    return least;
  }

  ModelRunner* WrapRunner(ModelRunner* own) override {
    QUIRE_CHECK(own_ == nullptr && is_serving_);
    own_ = own;
    stage_limit_.emplace(options_.ranks.watchdog, own->steps_in_flight());
    return this;
  }

  absl::Status Health() const override {
    std::lock_guard<std::mutex> lock(mu_);
    return status_;
  }

  // ModelRunner, on the engine's thread.

  int steps_in_flight() const override { return own_->steps_in_flight(); }

  absl::Status Submit(const SchedulerOutput& output) override {
    QUIRE_RETURN_IF_ERROR(Health());
    plan_bytes_.clear();
    plan_bytes_.push_back(static_cast<char>(MessageType::kPlan));
    EncodeStepPlan(output, &plan_bytes_);
    BeginStep(output);
    communicators_.SetStageTimeout(stage_limit_->Next(NumTokensOf(output)));
    absl::Status status = SendEncoded();
    if (status.ok()) status = own_->Submit(output);
    return status.ok() ? status : Broken(status);
  }

  absl::StatusOr<StepResult> Collect() override {
    absl::StatusOr<StepResult> result = own_->Collect();
    if (!result.ok()) return Broken(result.status());
    // A rank that is gone may be found by the collectives or not: what was
    // computed is right either way.
    const int64_t step_idx = EndStep();
    if (!layout_.Draws(0)) result = AwaitResult(result->step_id);
    if (result.ok()) NoteDigest(DigestOf(step_idx, *result));
    return result;
  }

  bool Done() const override {
    if (!own_->Done()) return false;
    if (layout_.Draws(0)) return true;
    std::lock_guard<std::mutex> lock(mu_);
    return !results_.empty() || !status_.ok();
  }

  bool PrepareAhead() override {
    if (!Health().ok()) return false;
    const absl::Status sent = Send(MessageType::kPrepareAhead, "");
    if (!sent.ok()) {
      Broken(sent).IgnoreError();
      return false;
    }
    return own_->PrepareAhead();
  }

 private:
  // Every rank ends by itself; what does not is killed with local_.
  void ShutDown() {
    Send(MessageType::kShutdown, "").IgnoreError();
    communicators_ = {};
    const absl::Time deadline = Clock::Monotonic()->Now() + kShutdownTimeout;
    for (const Peer& peer : peers_) {
      if (peer.link == nullptr || peer.is_local) continue;
      while (!peer.link->HasEnded() && Clock::Monotonic()->Now() < deadline) {
        absl::SleepFor(absl::Milliseconds(2));
      }
    }
    local_.WaitAndKill(deadline - Clock::Monotonic()->Now());
  }

  absl::Status Connect() {
    std::random_device random;
    Welcome welcome;
    welcome.leader_name = DescribeRank(0, ProcessName());
    for (uint64_t& word : welcome.token) {
      word = uint64_t{random()} << 32 | random();
    }
    welcome.mesh.resize(layout_.size());
    if (mesh_listener_.get() >= 0) {
      welcome.mesh[0].port = LocalAddress(mesh_listener_.get()).port;
    }
    for (int rank = 1; rank < layout_.size(); ++rank) {
      JoinedRank& joined = reception_->joined()[rank];
      welcome.mesh[rank] = {joined.host, joined.hello.mesh_port};
      peers_[rank].name = joined.hello.name;
      peers_[rank].link = std::move(joined.link);
      peers_[rank].is_local = layout_.NodeOf(rank) == 0;
    }
    for (Peer& peer : peers_) {
      if (peer.link == nullptr) continue;
      QUIRE_RETURN_IF_ERROR(peer.link->Send(MessageType::kWelcome,
                                            ToBytes(welcome), kMeshTimeout));
    }
    CommunicatorOptions options;
    options.layout = layout_;
    options.memory = memory_.has_value() ? &*memory_ : nullptr;
    options.welcome = std::move(welcome);
    options.master_host = options_.ranks.master.host;
    options.mesh_listener = mesh_listener_.get();
    options.deadline = Clock::Monotonic()->Now() + kMeshTimeout;
    options.timeout = options_.ranks.watchdog;
    QUIRE_ASSIGN_OR_RETURN(communicators_, ConnectRanks(options));
    return absl::OkStatus();
  }

  // Until `is_ready` of every other rank, or a failure.
  template <typename IsReady>
  absl::Status AwaitPeers(const IsReady& is_ready) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [&] {
      return !status_.ok() ||
             std::all_of(peers_.begin() + 1, peers_.end(), is_ready);
    });
    return status_;
  }

  absl::Status Send(MessageType type, absl::string_view body) {
    plan_bytes_.assign(1, static_cast<char>(type));
    plan_bytes_.append(body.data(), body.size());
    return SendEncoded();
  }

  // plan_bytes_: the type, then the body.
  absl::Status SendEncoded() {
    const absl::string_view bytes = plan_bytes_;
    if (ring_.has_value()) {
      const absl::Status status = ring_->Write(bytes, options_.ranks.watchdog);
      if (!status.ok()) return status;
    }
    for (const Peer& peer : peers_) {
      if (peer.link == nullptr || peer.is_local) continue;
      QUIRE_RETURN_IF_ERROR(peer.link->Send(static_cast<MessageType>(bytes[0]),
                                            bytes.substr(1),
                                            options_.ranks.watchdog));
    }
    return absl::OkStatus();
  }

  void BeginStep(const SchedulerOutput& output) {
    const absl::Time now = Clock::Monotonic()->Now();
    std::lock_guard<std::mutex> lock(mu_);
    int64_t first_step = num_steps_sent_;
    for (const Peer& peer : peers_) {
      first_step = std::min(first_step, peer.num_steps_done);
    }
    // Of the steps that some rank has not done.
    step_sizes_.push_back(NumTokensOf(output));
    while (static_cast<int64_t>(step_sizes_.size()) >
           num_steps_sent_ + 1 - first_step) {
      step_sizes_.pop_front();
    }
    for (Peer& peer : peers_) {
      if (peer.num_steps_done == num_steps_sent_) peer.behind_since = now;
    }
    ++num_steps_sent_;
  }

  // This rank's part of it; the number of steps before it.
  int64_t EndStep() {
    std::lock_guard<std::mutex> lock(mu_);
    peers_[0].behind_since = Clock::Monotonic()->Now();
    return peers_[0].num_steps_done++;
  }

  void NoteDigest(const StepDigest& digest) {
    std::lock_guard<std::mutex> lock(mu_);
    digests_.push_back(digest);
    if (digests_.size() > kNumDigests) digests_.pop_front();
  }

  // What the last stage has drawn; the monitor takes it in.
  absl::StatusOr<StepResult> AwaitResult(int64_t step_id) {
    std::unique_lock<std::mutex> lock(mu_);
    drawn_.wait(lock, [this] { return !results_.empty() || !status_.ok(); });
    if (results_.empty()) return status_;
    StepResult result = std::move(results_.front());
    results_.pop_front();
    if (result.step_id == step_id) return result;
    FailLocked(absl::UnavailableError(absl::StrCat(
        DescribeRank(layout_.drawing_rank(),
                     peers_[layout_.drawing_rank()].name),
        " tells of step ", result.step_id, " in place of ", step_id)));
    return status_;
  }

  // Requires: mu_ is held. The first failure counts. All that waits ends, and
  // so do the other ranks, which are told why and see their connection end.
  void FailLocked(absl::Status status) {
    if (!status_.ok()) return;
    status_ = std::move(status);
    failed_at_ = Clock::Monotonic()->Now();
    if (ring_.has_value()) ring_->Stop();
    communicators_.Abort();
    constexpr size_t kMaxTextBytes = 2048;
    const absl::string_view why =
        absl::string_view(status_.message()).substr(0, kMaxTextBytes);
    for (const Peer& peer : peers_) {
      if (peer.link == nullptr) continue;
      peer.link->TrySend(MessageType::kFailure, why).status().IgnoreError();
      peer.link->Disconnect();
    }
    changed_.notify_all();
    drawn_.notify_all();
    Wake();
  }

  absl::Status Fail(absl::Status status) {
    std::lock_guard<std::mutex> lock(mu_);
    FailLocked(std::move(status));
    return status_;
  }

  // `status` is what the engine's thread has met with, perhaps in consequence
  // of what the monitor is about to find.
  absl::Status Broken(const absl::Status& status) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kVerdictTimeout),
                      [this] { return !status_.ok(); });
    FailLocked(absl::UnavailableError(
        absl::StrCat(DescribeRank(0, ProcessName()), ": ", status.message())));
    return status_;
  }

  void Wake() {
    const uint64_t one = 1;
    (void)!write(wake_fd_, &one, sizeof(one));
  }

  // The monitor's thread.

  void Monitor() {
    const absl::Duration tick = HeartbeatInterval(options_.ranks) / 2;
    WakefulTime awake(tick);
    std::vector<pollfd> fds;
    for (const Peer& peer : peers_) {
      if (peer.link != nullptr) fds.push_back({peer.link->fd(), POLLIN, 0});
    }
    if (listener_.get() >= 0) fds.push_back({listener_.get(), POLLIN, 0});
    fds.push_back({wake_fd_, POLLIN, 0});
    for (;;) {
      poll(fds.data(), fds.size(),
           static_cast<int>(absl::ToInt64Milliseconds(tick)) + 1);
      awake.Advance(Clock::Monotonic()->Now());
      awake_ = awake.total();
      {
        std::lock_guard<std::mutex> lock(mu_);
        if (is_stopping_) return;
        if (!status_.ok()) break;
      }
      if (listener_.get() >= 0) reception_->RefuseLate();
      for (size_t rank = 1; rank < peers_.size(); ++rank) {
        ReadMessages(static_cast<int>(rank));
      }
      std::lock_guard<std::mutex> lock(mu_);
      if (const absl::Status status = local_.Check(); !status.ok()) {
        FailLocked(status);
      }
      const absl::Time now = Clock::Monotonic()->Now();
      FindSilentRank();
      FindHungRank(now);
      if (now > load_deadline_) FindUnloadedRank();
    }
    device_abort_.Start();
    std::unique_lock<std::mutex> lock(mu_);
    const auto is_stopping = [this] {
      return is_stopping_ && !device_abort_.is_running();
    };
    // What hears of its end ends by itself.
    stopped_.wait_for(lock, std::chrono::milliseconds(500), is_stopping);
    local_.Kill();
    const absl::Duration patience =
        is_serving_ ? kStuckTimeout : kLoadStuckTimeout;
    if (stopped_.wait_for(lock, absl::ToChronoNanoseconds(patience),
                          is_stopping)) {
      return;
    }
    const absl::Status status = status_;
    lock.unlock();
    if (options_.on_stuck != nullptr) options_.on_stuck(status);
  }

  // The others give up a rank 0 that says nothing. Who does not read is not
  // waited for. On a thread of its own: the monitor may have to wait for the
  // end of a message.
  void ShowLife() {
    NameBeatThread();
    const auto interval =
        absl::ToChronoNanoseconds(HeartbeatInterval(options_.ranks));
    std::unique_lock<std::mutex> lock(mu_);
    while (!has_ended_ && status_.ok()) {
      lock.unlock();
      for (const Peer& peer : peers_) {
        if (peer.link == nullptr) continue;
        // That a connection has ended, ReadMessages finds.
        peer.link->TrySend(MessageType::kHeartbeat, "").status().IgnoreError();
      }
      lock.lock();
      stopped_.wait_for(lock, interval,
                        [this] { return has_ended_ || !status_.ok(); });
    }
  }

  void ReadMessages(int rank) {
    Peer& peer = peers_[rank];
    while (peer.link->HasMessage()) {
      // Results may be long, and come from afar.
      const bool draws = rank == layout_.drawing_rank();
      auto message = peer.link->Receive(
          draws ? kMaxPlanBytes : kMaxControlBytes,
          Clock::Monotonic()->Now() + absl::Seconds(1),
          draws ? options_.ranks.watchdog : absl::Seconds(1));
      std::optional<StepResult> result;
      absl::Status status = message.status();
      if (status.ok() && draws && message->type == MessageType::kResult) {
        auto decoded = DecodeStepResult(message->body);
        status = decoded.status();
        if (decoded.ok()) result = *std::move(decoded);
      }
      std::lock_guard<std::mutex> lock(mu_);
      if (!status_.ok()) return;
      if (result.has_value()) {
        peer.beats.Heard(awake_);
        results_.push_back(*std::move(result));
        drawn_.notify_one();
      } else if (status.ok()) {
        status = TakeMessage(rank, *message);
      }
      if (status.ok()) continue;
      // How a child ended says more than that its connection did, or than what
      // another rank says of it.
      absl::Status reason = AwaitEnd(message.ok() ? -1 : rank);
      if (reason.ok()) {
        reason = absl::UnavailableError(absl::StrCat(
            DescribeRank(rank, peer.name), ": ", status.message()));
      }
      return FailLocked(std::move(reason));
    }
  }

  // A killed process closes its connection a moment before it can be waited
  // for. The end of a child by a signal; of `rank`, by itself, too; or OK.
  absl::Status AwaitEnd(int rank) {
    if (layout_.local_size() == 1) return absl::OkStatus();
    const absl::Time deadline =
        Clock::Monotonic()->Now() + absl::Milliseconds(100);
    for (;;) {
      absl::Status status = local_.CheckKilled();
      if (status.ok() && rank >= 0 && peers_[rank].is_local) {
        status = local_.Check();
      }
      if (!status.ok() || Clock::Monotonic()->Now() > deadline) return status;
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  absl::Status TakeMessage(int rank, const Message& message) {
    Peer& peer = peers_[rank];
    peer.beats.Heard(awake_);
    switch (message.type) {
      case MessageType::kJoined:
        peer.has_joined = true;
        changed_.notify_all();
        return absl::OkStatus();
      case MessageType::kLoaded: {
        QUIRE_ASSIGN_OR_RETURN(peer.loaded,
                               FromBytes<LoadedFacts>(message.body));
        changed_.notify_all();
        return absl::OkStatus();
      }
      case MessageType::kHeartbeat: {
        QUIRE_ASSIGN_OR_RETURN(const Heartbeat heartbeat,
                               FromBytes<Heartbeat>(message.body));
        if (heartbeat.num_steps_done != peer.num_steps_done ||
            heartbeat.progress != peer.progress) {
          peer.num_steps_done = heartbeat.num_steps_done;
          peer.progress = heartbeat.progress;
          peer.behind_since = Clock::Monotonic()->Now();
        }
        return CompareDigests(heartbeat);
      }
      case MessageType::kFailure:
        return absl::UnavailableError(message.body);
      default:
        return absl::DataLossError("a message that no worker sends");
    }
  }

  // Of the steps that rank 0 has collected itself; a rank that is ahead is
  // compared by its next heartbeat, or not at all.
  absl::Status CompareDigests(const Heartbeat& heartbeat) const {
    for (const StepDigest& theirs : heartbeat.digests) {
      const auto ours =
          std::lower_bound(digests_.begin(), digests_.end(), theirs.step_idx,
                           [](const StepDigest& digest, int64_t step_idx) {
                             return digest.step_idx < step_idx;
                           });
      if (ours == digests_.end() || ours->step_idx != theirs.step_idx ||
          ours->hash == theirs.hash) {
        continue;
      }
      return absl::UnavailableError(absl::StrCat(
          "drew other tokens than rank 0 in step ", theirs.step_idx));
    }
    return absl::OkStatus();
  }

  // For how long `peer` may get no further with its step. Requires: it is
  // behind.
  absl::Duration StepTimeout(const Peer& peer) const {
    const int64_t num_left = num_steps_sent_ - peer.num_steps_done;
    // A rank that takes back what it has said is given no time for that.
    const int64_t num_known = static_cast<int64_t>(step_sizes_.size());
    int64_t num_tokens =
        num_left <= num_known ? step_sizes_[num_known - num_left] : 0;
    // Stages wait for each other, also for what others have done already.
    if (layout_.pipeline_size > 1) {
      num_tokens =
          std::accumulate(step_sizes_.begin(), step_sizes_.end(), int64_t{0});
    }
    return options_.ranks.watchdog + kMaxTimePerToken * num_tokens;
  }

  void FindSilentRank() {
    const SilenceLimits limits = {options_.ranks.heartbeat_timeout,
                                  options_.ranks.watchdog};
    for (int rank = 1; rank < layout_.size(); ++rank) {
      Peer& peer = peers_[rank];
      const absl::Duration silence = peer.beats.SilenceAt(awake_);
      if (silence <= SilenceToLookInto(limits)) {
        continue;
      }
      const SilenceCause cause = peer.is_local
                                     ? LookAtProcess(local_.PidOf(rank))
                                     : LookAtConnection(peer.link->fd());
      if (cause == SilenceCause::kUnreachable) {
        peer.beats.NoteUnreachable(awake_);
      }
      const absl::Duration limit =
          MaxSilence(cause, is_serving_, peer.beats, limits);
      // It may have spoken while it was looked at.
      if (silence <= limit || peer.link->HasMessage()) continue;
      return FailLocked(absl::UnavailableError(absl::StrCat(
          NameOf(rank), " hangs: ", DescribeSilence(cause, limit))));
    }
  }

  void FindHungRank(absl::Time now) {
    const int64_t progress = progress_ + communicators_.activity->num_begun;
    if (Peer& own = peers_[0]; own.progress != progress) {
      own.progress = progress;
      own.behind_since = now;
    }
    bool is_late = false;
    int64_t num_steps_done = num_steps_sent_;
    for (const Peer& peer : peers_) {
      if (peer.num_steps_done == num_steps_sent_) continue;
      is_late |= now - peer.behind_since > StepTimeout(peer);
      num_steps_done = std::min(num_steps_done, peer.num_steps_done);
    }
    if (!is_late) return;
    // Those that wait for the one that hangs have come further: in a collective
    // of the same step, at least.
    std::vector<int> stuck;
    for (int rank = 0; rank < layout_.size(); ++rank) {
      if (peers_[rank].num_steps_done == num_steps_done) stuck.push_back(rank);
    }
    // Of stages that have come as far as each other the later one may wait for
    // activations, or the first one for somebody to take them.
    const bool is_one_stage =
        layout_.StageOf(stuck.front()) == layout_.StageOf(stuck.back());
    if (is_one_stage) KeepThoseBehind(&stuck);
    std::vector<std::string> names;
    for (const int rank : stuck) names.push_back(NameOf(rank));
    FailLocked(absl::UnavailableError(absl::StrCat(
        absl::StrJoin(names, is_one_stage ? ", " : " or "),
        " hangs: gets no further with step ", num_steps_done, " for ",
        absl::FormatDuration(StepTimeout(peers_[stuck[0]])))));
  }

  // Ranks of one stage have the same layers and collectives.
  void KeepThoseBehind(std::vector<int>* ranks) const {
    int64_t least = peers_[ranks->front()].progress;
    for (const int rank : *ranks) {
      least = std::min(least, peers_[rank].progress);
    }
    std::erase_if(*ranks,
                  [&](int rank) { return peers_[rank].progress != least; });
  }

  std::string NameOf(int rank) const {
    return DescribeRank(rank, rank == 0 ? ProcessName() : peers_[rank].name);
  }

  void FindUnloadedRank() {
    if (is_serving_) return;
    std::vector<std::string> names;
    for (size_t rank = 0; rank < peers_.size(); ++rank) {
      if (peers_[rank].loaded.has_value()) continue;
      names.push_back(NameOf(static_cast<int>(rank)));
    }
    if (names.empty()) return;
    FailLocked(absl::UnavailableError(absl::StrCat(
        absl::StrJoin(names, ", "), names.size() == 1 ? " has" : " have",
        " not loaded ", absl::FormatDuration(options_.ranks.load_timeout),
        " after all ranks had joined ", DescribeRank(0, ProcessName()),
        " (--load-timeout)")));
  }

  const RankGroupOptions options_;
  const RankLayout layout_;
  const int wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

  // Written before the monitor starts.
  std::optional<SharedMemory> memory_;
  std::optional<PlanRingWriter> ring_;
  OwnedFd listener_, mesh_listener_;
  std::optional<RankReception> reception_;  // The monitor's, once it runs.
  absl::Duration awake_;                    // The monitor's WakefulTime.
  RankCommunicators communicators_;
  absl::Time load_deadline_;

  // The engine thread's.
  ModelRunner* own_ = nullptr;
  std::optional<StageTimeLimit> stage_limit_;
  std::string plan_bytes_;  // Reused.

  std::atomic<bool> is_serving_{false};
  mutable StepProgress progress_{0};  // Lent by config().

  mutable std::mutex mu_;  // Guards the following; links are thread-safe.
  std::condition_variable changed_, drawn_, stopped_;
  std::vector<Peer> peers_;  // [size]
  LocalRanks local_;
  absl::Status status_;
  absl::Time failed_at_;
  bool is_stopping_ = false;
  bool has_ended_ = false;
  int64_t num_steps_sent_ = 0;
  std::deque<int64_t> step_sizes_;  // Tokens of the steps sent last.
  std::deque<StepDigest> digests_;  // Ascending by step.
  std::deque<StepResult> results_;  // Of the last stage, not collected yet.

  DeviceAbort device_abort_{[this] {
    std::lock_guard<std::mutex> lock(mu_);
    stopped_.notify_all();
  }};
  std::thread monitor_, beater_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(
    RankGroupOptions options) {
  auto group = std::make_unique<RankGroupImpl>(std::move(options));
  QUIRE_RETURN_IF_ERROR(group->Init());
  return group;
}

}  // namespace quire
