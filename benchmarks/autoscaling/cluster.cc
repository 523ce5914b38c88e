#include "benchmarks/autoscaling/cluster.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "engine/admission.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "engine/timed_model_runner.h"

namespace quire {
namespace {

EngineOptions MakeOptions(const ReplicaModel& model) {
  EngineOptions options;
  options.num_blocks = model.num_blocks;
  options.max_model_len = 4096;
  options.vocab_size = 10;
  options.max_num_seqs = model.max_num_seqs;
  options.max_num_batched_tokens = model.max_num_batched_tokens;
  options.enable_prefix_caching = false;
  options.max_num_queued_reqs = 1 << 20;
  options.max_num_queued_tokens = int64_t{1} << 40;
  options.max_num_queued_bytes = int64_t{1} << 40;
  options.target_queue_delay_seconds =
      absl::ToDoubleSeconds(model.target_queue_delay);
  return options;
}

class Replica {
 public:
  Replica(const ReplicaModel& model, absl::Time now)
      : options_(MakeOptions(model)),
        runner_(model.step_base, model.step_per_token, &clock_),
        admission_(options_, now) {
    AdvanceTo(now);
    auto engine = Engine::Create(options_, &runner_, &clock_);
    QUIRE_CHECK(engine.ok());
    engine_ = *std::move(engine);
    created_ = clock_.Now();
  }

  absl::Time now() { return clock_.Now(); }
  absl::Time created() const { return created_; }
  bool HasWork() const { return engine_->HasWork(); }
  int num_open() const { return num_open_; }

  void Add(Request request, absl::Time now) {
    if (!engine_->HasWork()) {
      AdvanceTo(now);
      admission_.NoteIdle(clock_.Now());
    }
    QUIRE_CHECK(admission_.Admit(now, &request).ok());
    QUIRE_CHECK(engine_->AddRequest(std::move(request)).ok());
    ++num_open_;
  }

  void Step(std::vector<OutputEvent>* events) {
    events->clear();
    engine_->Step(events);
    for (const OutputEvent& event : *events) num_open_ -= event.is_last;
    // As EngineLoop does.
    const EngineStats stats = engine_->Stats();
    Admission::Snapshot snapshot;
    snapshot.num_running = stats.num_running;
    snapshot.num_step_tokens = engine_->num_step_tokens();
    snapshot.kv_use = 1.0 - double(stats.num_free_blocks) / stats.num_blocks;
    snapshot.work = engine_->scheduler().counters().work();
    snapshot.mean_output_tokens =
        engine_->scheduler().shares().mean_output_tokens();
    queued_.clear();
    engine_->scheduler().shares().AppendQueued(&queued_);
    admission_.NoteStep(clock_.Now(), snapshot, &queued_, {});
  }

  double Saturation(absl::Time now) const {
    return admission_.monitor().Saturation(now);
  }
  double NumWaiting() const { return engine_->Stats().num_waiting; }
  // Since the last call.
  double TakeBusyPart(absl::Duration period) {
    const absl::Duration busy = runner_.busy() - last_busy_;
    last_busy_ = runner_.busy();
    return std::min(1.0, absl::FDivDuration(busy, period));
  }

 private:
  void AdvanceTo(absl::Time now) {
    if (now > clock_.Now()) clock_.Advance(now - clock_.Now());
  }

  const EngineOptions options_;
  FakeClock clock_;
  TimedModelRunner runner_;
  std::unique_ptr<Engine> engine_;
  Admission admission_;
  std::vector<QueuedShare> queued_;
  absl::Time created_;
  int num_open_ = 0;
  absl::Duration last_busy_;
};

double Percentile(std::vector<double>* values, double part) {
  if (values->empty()) return 0;
  const size_t idx =
      std::min(values->size() - 1, static_cast<size_t>(part * values->size()));
  std::nth_element(values->begin(), values->begin() + idx, values->end());
  return (*values)[idx];
}

class Cluster {
 public:
  Cluster(const ReplicaModel& model, const LoadPlan& plan,
          const ScalerOptions& scaler)
      : model_(model), plan_(plan), scaler_(scaler), random_(plan.seed) {
    const int first = scaler.signal == ScalingSignal::kOracle
                          ? scaler.oracle_replicas[0]
                          : scaler.min_replicas;
    for (int i = 0; i < first; ++i) StartReplica(kBegin - scaler.start_up);
    num_wanted_ = first;
  }

  ClusterResult Run() {
    const absl::Time end =
        kBegin + plan_.level_duration * plan_.requests_per_second.size();
    absl::Time next_arrival = NextArrival(kBegin);
    absl::Time next_scaling = kBegin + scaler_.period;
    while (next_arrival < end || AnyWork()) {
      Replica* earliest = nullptr;
      for (auto* group : {&replicas_, &leaving_}) {
        for (auto& replica : *group) {
          if (replica->HasWork() &&
              (earliest == nullptr || replica->now() < earliest->now())) {
            earliest = replica.get();
          }
        }
      }
      const absl::Time arrival =
          next_arrival < end ? next_arrival : absl::InfiniteFuture();
      const absl::Time step =
          earliest == nullptr ? absl::InfiniteFuture() : earliest->now();
      if (next_scaling <= std::min(arrival, step) && next_scaling <= end) {
        Scale(next_scaling);
        next_scaling += scaler_.period;
      } else if (arrival <= step) {
        Route(arrival);
        next_arrival = NextArrival(arrival);
      } else {
        earliest->Step(&events_);
        NoteEvents();
        RemoveDrained();
      }
    }
    for (const auto& replica : replicas_) Bill(*replica, end);
    result_.p50_ttft_seconds = Percentile(&ttfts_, 0.5);
    result_.p95_ttft_seconds = Percentile(&ttfts_, 0.95);
    result_.num_requests = ttfts_.size();
    return result_;
  }

 private:
  // FakeClock begins at 1 s, and replicas of the beginning are ready.
  static constexpr absl::Time kBegin = absl::FromUnixSeconds(3600);

  size_t LevelAt(absl::Time now) const {
    const int64_t level = absl::ToInt64Microseconds(now - kBegin) /
                          absl::ToInt64Microseconds(plan_.level_duration);
    return std::clamp<int64_t>(level, 0, plan_.requests_per_second.size() - 1);
  }
  double Uniform() { return (random_.Next() >> 11) * 0x1.0p-53; }
  absl::Time NextArrival(absl::Time now) {
    const double rate = plan_.requests_per_second[LevelAt(now)];
    const absl::Time next =
        now + absl::Seconds(-std::log(1 - Uniform()) / rate);
    // Where the level changes, the wait begins anew: that is what Poisson
    // means.
    const absl::Time change =
        kBegin + plan_.level_duration * (LevelAt(now) + 1);
    if (next > change && LevelAt(now) + 1 < plan_.requests_per_second.size()) {
      return NextArrival(change);
    }
    return next;
  }

  void StartReplica(absl::Time now) {
    replicas_.push_back(std::make_unique<Replica>(model_, now));
  }
  bool IsReady(const Replica& replica, absl::Time now) const {
    return now >= replica.created() + scaler_.start_up;
  }
  bool AnyWork() const {
    const auto has_work = [](const auto& r) { return r->HasWork(); };
    return std::any_of(replicas_.begin(), replicas_.end(), has_work) ||
           std::any_of(leaving_.begin(), leaving_.end(), has_work);
  }

  // To the one with the fewest open requests, as gateways do.
  void Route(absl::Time now) {
    Replica* target = nullptr;
    for (auto& replica : replicas_) {
      if (!IsReady(*replica, now)) continue;
      if (target == nullptr || replica->num_open() < target->num_open()) {
        target = replica.get();
      }
    }
    QUIRE_CHECK(target != nullptr);
    Request request;
    request.id = ++last_id_;
    request.arrival_time = now;
    request.prompt_token_ids.assign(
        random_.Between(plan_.min_prompt_tokens, plan_.max_prompt_tokens), 5);
    request.sampling.max_tokens = static_cast<int32_t>(
        random_.Between(plan_.min_output_tokens, plan_.max_output_tokens));
    request.sampling.ignore_eos = true;
    arrival_of_[request.id] = now;
    target->Add(std::move(request), now);
  }

  void NoteEvents() {
    for (const OutputEvent& event : events_) {
      if (event.tokens.empty()) continue;
      const auto it = arrival_of_.find(event.request_id);
      if (it == arrival_of_.end()) continue;
      ttfts_.push_back(absl::ToDoubleSeconds(event.time - it->second));
      arrival_of_.erase(it);
    }
  }

  double Signal(absl::Time now) {
    double sum = 0;
    int num_ready = 0;
    for (auto& replica : replicas_) {
      const double busy = replica->TakeBusyPart(scaler_.period);
      if (!IsReady(*replica, now)) continue;
      ++num_ready;
      switch (scaler_.signal) {
        case ScalingSignal::kSaturation:
          sum += replica->Saturation(now);
          break;
        case ScalingSignal::kWaiting:
          sum += replica->NumWaiting();
          break;
        case ScalingSignal::kCpu:
          sum += busy;
          break;
        case ScalingSignal::kOracle:
          break;
      }
    }
    return sum / std::max(1, num_ready);
  }

  void Scale(absl::Time now) {
    const size_t level = LevelAt(now);
    const double signal = Signal(now);
    int wanted = num_wanted_;
    if (scaler_.signal == ScalingSignal::kOracle) {
      // Early enough to be ready when the level begins.
      const size_t soon = LevelAt(now + scaler_.start_up + scaler_.period);
      wanted = std::max(scaler_.oracle_replicas[level],
                        scaler_.oracle_replicas[soon]);
    } else {
      // desired = ceil(current * signal / target), not within the tolerance;
      // down only to the largest of the last recommendations.
      const double ratio = signal / scaler_.target;
      int recommended = num_wanted_;
      if (std::abs(ratio - 1) > scaler_.tolerance) {
        recommended = static_cast<int>(std::ceil(num_wanted_ * ratio - 1e-9));
      }
      recommended =
          std::clamp(recommended, scaler_.min_replicas, scaler_.max_replicas);
      recommendations_.push_back({now, recommended});
      while (recommendations_.front().first <=
             now - scaler_.scale_down_stabilization) {
        recommendations_.pop_front();
      }
      int largest = recommended;
      for (const auto& [time, number] : recommendations_) {
        largest = std::max(largest, number);
      }
      wanted = recommended > num_wanted_ ? recommended
                                         : std::min(num_wanted_, largest);
    }
    if (result_.replicas_at_level_end.size() <= level) {
      result_.replicas_at_level_end.resize(level + 1);
      result_.signal_at_level_end.resize(level + 1);
    }
    result_.num_changes += wanted != num_wanted_;
    while (static_cast<int>(replicas_.size()) < wanted) StartReplica(now);
    while (static_cast<int>(replicas_.size()) > wanted) {
      Bill(*replicas_.back(), now);
      leaving_.push_back(std::move(replicas_.back()));
      replicas_.pop_back();
    }
    num_wanted_ = wanted;
    result_.replicas_at_level_end[level] = wanted;
    double& mean = result_.signal_at_level_end[level];
    mean += (signal - mean) / 4;
    RemoveDrained();
  }

  // What it was there for, to its end; that it still drains is alike for all.
  void Bill(const Replica& replica, absl::Time end) {
    result_.replica_seconds +=
        absl::ToDoubleSeconds(end - std::max(kBegin, replica.created()));
  }
  void RemoveDrained() {
    leaving_.erase(
        std::remove_if(leaving_.begin(), leaving_.end(),
                       [](const auto& replica) { return !replica->HasWork(); }),
        leaving_.end());
  }

  const ReplicaModel model_;
  const LoadPlan plan_;
  const ScalerOptions scaler_;
  SimulationRandom random_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<std::unique_ptr<Replica>>
      leaving_;  // They finish what they have.
  std::deque<std::pair<absl::Time, int>> recommendations_;
  absl::flat_hash_map<RequestId, absl::Time> arrival_of_;
  std::vector<OutputEvent> events_;
  std::vector<double> ttfts_;
  RequestId last_id_ = 0;
  int num_wanted_ = 0;
  ClusterResult result_;
};

}  // namespace

const char* ScalingSignalName(ScalingSignal signal) {
  static constexpr const char* kNames[] = {"oracle", "quire:saturation",
                                           "vllm:num_requests_waiting", "CPU"};
  return kNames[static_cast<int>(signal)];
}

ClusterResult RunCluster(const ReplicaModel& model, const LoadPlan& plan,
                         const ScalerOptions& scaler) {
  return Cluster(model, plan, scaler).Run();
}

std::vector<int> FindOracle(const ReplicaModel& model, const LoadPlan& plan,
                            absl::Duration target_ttft, int max_replicas) {
  std::vector<int> replicas;
  for (double rate : plan.requests_per_second) {
    LoadPlan level = plan;
    level.requests_per_second = {rate};
    int number = 1;
    for (; number < max_replicas; ++number) {
      ScalerOptions constant;
      constant.signal = ScalingSignal::kOracle;
      constant.oracle_replicas = {number};
      const ClusterResult result = RunCluster(model, level, constant);
      if (absl::Seconds(result.p95_ttft_seconds) <= target_ttft) break;
    }
    replicas.push_back(number);
  }
  return replicas;
}

}  // namespace quire
