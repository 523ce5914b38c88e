// The class behind edge_engine.h. edge_engine.cc has requests and the link,
// edge_engine_drafts.cc what the draft model does, with a link and without.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_IMPL_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_IMPL_H_

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/base/status.h"
#include "engine/engine.h"
#include "engine/speculative/link/draft_ahead.h"
#include "engine/speculative/link/edge_engine.h"

namespace quire {

// Types of edge_engine*.cc alone.
namespace edge_engine {

struct Choice {
  DraftChain chain;
  bool is_finished = false;
  bool is_drafting = false;    // The chain was begun, and has not broken.
  bool has_draft_end = false;  // The last draft ends the text.
  // The request in the local engine: of drafts, or of an answer offline.
  RequestId local_id = 0;      // 0: none.
  int64_t draft_position = 0;  // Of the next draft it will bring.
  absl::Time drafted_at = absl::InfinitePast();
  absl::Time heard_at = absl::InfinitePast();
};

struct EdgeRequest {
  Request request;
  uint64_t seed = 0;
  bool is_offline = false;
  // The local request of all choices, of one that began offline; else 0.
  RequestId offline_id = 0;
  absl::Time submitted_at;
  int64_t num_scored = 0;  // Of the prompt.
  int num_unfinished = 0;
  std::vector<Choice> choices;
};

// What a request of the local engine is for.
struct LocalUse {
  RequestId request_id = 0;
  int choice_idx = 0;  // Its choice 0 is this one.
  bool is_draft = false;
};

}  // namespace edge_engine

class EdgeEngineImpl final : public EdgeEngine,
                             private EdgeLinkHandler,
                             private OutputSink {
 public:
  EdgeEngineImpl(const EdgeEngineOptions& options,
                 const EngineOptions& engine_options, Clock* clock,
                 OutputSink* sink)
      : options_(options),
        engine_options_(engine_options),
        clock_(clock),
        sink_(sink),
        cloud_(options.link.peer) {
    cloud_.max_model_len = engine_options.max_model_len;
    cloud_.vocab_size = engine_options.vocab_size;
  }

  ~EdgeEngineImpl() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_stopping_ = true;
      is_up_ = false;  // From here on the link is not used any more.
      deadlines_changed_.notify_all();
    }
    if (deadline_thread_.joinable()) deadline_thread_.join();
    // Both call this object from threads of theirs.
    link_.reset();
    {
      std::lock_guard<std::mutex> lock(mu_);
      EndAll(FinishReason::kAbort, absl::OkStatus());
    }
    local_.reset();
  }

  absl::Status Start(ModelRunner* runner) {
    QUIRE_ASSIGN_OR_RETURN(
        local_, EngineLoop::Create(engine_options_, runner, clock_, this));
    QUIRE_ASSIGN_OR_RETURN(link_, EdgeLink::Create(options_.link, this));
    std::lock_guard<std::mutex> lock(mu_);
    is_started_ = true;
    started_.notify_all();
    deadline_thread_ = std::thread([this] { WatchDeadlines(); });
    return absl::OkStatus();
  }

  RequestId NewRequestId() override {
    std::lock_guard<std::mutex> lock(mu_);
    return next_request_id_++;
  }

  absl::Status Submit(Request request) override;
  void Abort(RequestId id, int32_t choice_idx, bool reason_is_stop) override;

  void StartDraining() override {
    std::lock_guard<std::mutex> lock(mu_);
    is_draining_ = true;
  }
  bool WaitUntilIdle(absl::Duration timeout) override {
    std::unique_lock<std::mutex> lock(mu_);
    return idle_.wait_for(
        lock, absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24))),
        [this] { return requests_.empty(); });
  }
  EngineStats Stats() const override;
  absl::Status Health() const override { return local_->Health(); }
  bool is_hanging() const override { return local_->is_hanging(); }

  absl::Status WaitForCloud(absl::Duration timeout) override {
    return link_->WaitForAnswer(timeout);
  }
  LinkPeer Cloud() const override {
    std::lock_guard<std::mutex> lock(mu_);
    return cloud_;
  }
  EdgeLinkStats LinkStats() const override;
  absl::Status Readiness() const override {
    const absl::Status state = link_->State();
    if (state.ok() || options_.offline == OfflinePolicy::kDraft) {
      return absl::OkStatus();
    }
    return absl::UnavailableError("there is no link to the cloud");
  }

 private:
  using Choice = edge_engine::Choice;
  using EdgeRequest = edge_engine::EdgeRequest;
  using LocalUse = edge_engine::LocalUse;

  // EdgeLinkHandler, on the link's thread.
  void OnUp(const LinkPeer& cloud) override;
  absl::Status OnFrame(LinkFrameType type, absl::string_view payload) override;
  void OnRoundTrip(absl::Duration round_trip) override {
    std::lock_guard<std::mutex> lock(mu_);
    round_trip_ = round_trip;
    policy_.NoteRoundTrip(round_trip);
  }
  void OnDown(const absl::Status& reason) override;
  // OutputSink of the local engine, on its thread.
  void Push(std::vector<OutputEvent> events) override;

  // All below require mu_.
  absl::Status Validate(const Request& request) const;
  absl::Status StartOffline(EdgeRequest* state);
  // Goes on with the draft model; what cannot ends with an error.
  void ContinueOffline(EdgeRequest* state);
  void ContinueChoiceOffline(EdgeRequest* state, int choice_idx);
  void HandleCloudEvent(EdgeRequest* state, OutputEvent event);
  void HandleDrafts(EdgeRequest* state, int choice_idx,
                    const OutputEvent& event);
  void HandleOfflineEvent(EdgeRequest* state, const LocalUse& use,
                          OutputEvent event);
  void Draft(EdgeRequest* state, int choice_idx);
  void StopDrafting(EdgeRequest* state, int choice_idx);
  Request MakeLocalRequest(const EdgeRequest& state, int choice_idx,
                           int max_tokens) const;
  // Hands the event on; with a finish reason the choice ends by it. The request
  // may be gone afterwards.
  void Emit(EdgeRequest* state, OutputEvent event);
  void FinishChoice(EdgeRequest* state, int choice_idx, FinishReason reason,
                    const absl::Status& error);
  void EndAll(FinishReason reason, const absl::Status& error);
  void EndOverdue(EdgeRequest* state);
  // The body of deadline_thread_: the cloud may be silent when a deadline
  // comes.
  void WatchDeadlines();
  void Notice(const std::string& line) const {
    if (options_.link.on_notice) options_.link.on_notice(line);
  }

  const EdgeEngineOptions options_;
  const EngineOptions engine_options_;
  Clock* const clock_;
  OutputSink* const sink_;

  // Guards all but link_ and local_. Taken before the mutexes of these and of
  // the sink; none of them calls back while it holds its own.
  mutable std::mutex mu_;
  std::condition_variable idle_;
  std::condition_variable started_;
  bool is_started_ = false;
  bool is_stopping_ = false;
  bool is_draining_ = false;
  bool is_up_ = false;
  LinkPeer cloud_;
  bool has_told_of_offline_ = false;  // Since the link was up.
  DraftAheadPolicy policy_{0};
  absl::Duration round_trip_;
  RequestId next_request_id_ = 1;
  uint64_t num_seeds_drawn_ = 0;
  absl::flat_hash_map<RequestId, std::unique_ptr<EdgeRequest>> requests_;
  absl::flat_hash_map<RequestId, LocalUse> local_uses_;
  // Of unfinished requests that have one.
  std::set<std::pair<absl::Time, RequestId>> deadlines_;
  std::condition_variable deadlines_changed_;
  std::string frame_;   // Scratch.
  EngineStats totals_;  // Counters of what the cloud and this engine drew.
  int64_t num_draft_tokens_sent_ = 0;
  int64_t num_breaks_ = 0;
  int64_t num_offline_requests_ = 0;

  std::thread deadline_thread_;  // Joined first.
  std::unique_ptr<EngineLoop> local_;
  std::unique_ptr<EdgeLink> link_;  // Last: its thread uses all of the above.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_ENGINE_IMPL_H_
