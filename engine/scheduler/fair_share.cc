#include "engine/scheduler/fair_share.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "engine/base/status.h"

namespace quire {
namespace {

// Tags are tokens of cost, times this, by weight: a weight of 1000, the
// largest, still tells one token.
constexpr int64_t kTagsPerCost = 1000;

// One answer counts an eighth: some ten answers tell a new habit.
constexpr double kMeanGain = 1.0 / 8;

int64_t ToTags(int64_t cost, int32_t weight) {
  return cost * kTagsPerCost / std::clamp<int32_t>(weight, 1, 1000);
}

// What is taken to have ended before the first answer does.
constexpr double kNumAnswersAtFirst = 0.5;

// A smaller change of the expected length is not worth telling.
constexpr double kChangeToTell = 0.02;

int64_t PromptCost(const Request& request) {
  return kPromptTokenCost *
         std::max<int64_t>(1, request.prompt_token_ids.size());
}

int64_t EstimateCost(const Request& request, double mean_output_tokens) {
  const int64_t prompt_cost = PromptCost(request);
  if (request.kind == RequestKind::kEmbed) return prompt_cost;
  const int64_t num_output =
      std::min<int64_t>(request.sampling.max_tokens,
                        std::llround(std::max(1.0, mean_output_tokens)));
  return prompt_cost + kOutputTokenCost * request.n * num_output;
}

int64_t NumGenerated(const RequestState& request) {
  int64_t sum = 0;
  for (const auto& sequence : request.sequences) {
    sum += sequence->num_generated_tokens();
  }
  return sum;
}

// Answers that have begun; what has ended and is not removed yet is drawn, and
// does not run.
struct Running {
  int64_t num_answers = 0;
  int64_t num_tokens = 0;
  int64_t num_drawn_tokens = 0;
};

Running CountRunning(const ShareAccount& account) {
  Running running;
  // What has started comes first, or nearly so.
  size_t num_left = account.live.size() - account.num_queued;
  for (const RequestState* request : account.live) {
    if (num_left == 0) break;
    if (!request->has_started) continue;
    --num_left;
    if (request->request.kind != RequestKind::kGenerate) continue;
    const int64_t num_tokens = NumGenerated(*request);
    running.num_drawn_tokens += num_tokens;
    if (request->num_unfinished == 0) continue;
    running.num_answers += request->sequences.size();
    running.num_tokens += num_tokens;
  }
  return running;
}

// The mean of lengths of which some are known to be larger only: tokens drawn
// for each answer that ended (the estimate of largest likelihood for answers
// that end at any token alike). Where few have ended that is anything: then no
// more than twice what those that run have had.
double ExpectedOutputTokens(const ShareAccount& account) {
  const double ended = account.num_ended_tokens / account.num_ended;
  const Running running = CountRunning(account);
  if (running.num_answers == 0) return ended;
  const double drawn =
      (account.num_drawn_tokens +
       double(account.num_removed_tokens + running.num_drawn_tokens -
              account.last_drawn_count)) /
      account.num_ended;
  return std::max(ended, std::min(drawn, 2.0 * double(running.num_tokens) /
                                             double(running.num_answers)));
}

void CountEnded(ShareAccount* account, int64_t num_answers, double mean) {
  const int64_t drawn_count =
      account->num_removed_tokens + CountRunning(*account).num_drawn_tokens;
  account->num_drawn_tokens += double(drawn_count - account->last_drawn_count);
  account->last_drawn_count = drawn_count;
  for (int64_t i = 0; i < num_answers; ++i) {
    account->num_drawn_tokens *= 1 - kMeanGain;
    account->num_ended_tokens =
        (1 - kMeanGain) * account->num_ended_tokens + mean;
    account->num_ended = (1 - kMeanGain) * account->num_ended + 1;
  }
}

void CountQueuedAnswers(ShareAccount* account, const Request& request,
                        int sign) {
  account->num_queued += sign;
  account->num_queued_tokens += sign * int64_t(request.prompt_token_ids.size());
  account->num_queued_bytes += sign * request.num_bytes;
  account->num_queued_prompt_cost += sign * PromptCost(request);
  if (request.kind == RequestKind::kEmbed) return;
  const uint32_t max_tokens = std::max(0, request.sampling.max_tokens);
  ShareAccount::Answers& answers =
      account->queued_answers[std::bit_width(max_tokens)];
  answers.num += sign * request.n;
  answers.num_max_tokens += sign * int64_t{request.n} * max_tokens;
}

int64_t PendingDelta(const ShareAccount& account) {
  int64_t sum = 0;
  for (const ShareAccount::Correction& c : account.corrections) sum += c.delta;
  return sum;
}

}  // namespace

int64_t FairShare::VirtualTime(const Level& level) {
  int64_t first = std::numeric_limits<int64_t>::max();
  for (const auto& [owner, account] : level.accounts) {
    const auto started =
        std::find_if(account.live.begin(), account.live.end(),
                     [](const RequestState* r) { return r->has_started; });
    if (started != account.live.end()) first = std::min(first, (*started)->tag);
  }
  return first == std::numeric_limits<int64_t>::max() ? level.last_started_tag
                                                      : first;
}

int64_t FairShare::ServicePosition(const Level& level) {
  int64_t first = level.last_started_tag;
  for (const auto& [owner, account] : level.accounts) {
    if (account.num_queued == 0 || !account.last_started_tag) continue;
    first = std::min(first, *account.last_started_tag);
  }
  return first;
}

void FairShare::Add(RequestState* request) {
  Level& level = levels_[request->priority];
  const auto [it, is_new] = level.accounts.try_emplace(request->request.owner);
  ShareAccount& account = it->second;
  if (is_new) {
    account.mean_output_tokens = mean_output_tokens_;
    account.num_ended = kNumAnswersAtFirst;
    account.num_ended_tokens = kNumAnswersAtFirst * mean_output_tokens_;
    account.num_drawn_tokens = account.num_ended_tokens;
    account.expected_output_tokens = mean_output_tokens_;
  }
  account.weight = request->request.share_weight;
  request->account = &account;
  request->estimated_cost =
      EstimateCost(request->request, account.mean_output_tokens);
  int64_t from = account.next_tag;
  request->tag = from;
  // Alone, an owner's tags only follow each other.
  if (level.accounts.size() > 1) {
    // Corrections that have not taken effect are yet to move it.
    const int64_t pending = PendingDelta(account);
    request->tag = std::max(from, VirtualTime(level) - pending);
    from = std::max(request->tag, ServicePosition(level) - pending);
  }
  account.next_tag = from + std::max<int64_t>(1, ToTags(request->estimated_cost,
                                                        account.weight));
  account.live.push_back(request);
  CountQueuedAnswers(&account, request->request, 1);
  ++level.num_live;
  ++queued_version_;
}

void FairShare::LeaveQueue(RequestState* request) {
  CountQueuedAnswers(request->account, request->request, -1);
  ++queued_version_;
}

void FairShare::NoteStart(RequestState* request) {
  LeaveQueue(request);
  request->has_started = true;
  request->account->last_started_tag = request->tag;
  Level& level = levels_[request->priority];
  level.last_started_tag = std::max(level.last_started_tag, request->tag);
  DropIdleAccounts(&level);
}

void FairShare::NoteEnd(RequestState* request) {
  if (!request->has_started) LeaveQueue(request);
  ShareAccount& account = *request->account;
  const int64_t num_output = NumGenerated(*request);
  int64_t cost = 0;
  if (request->has_started) {
    cost =
        kPromptTokenCost * (int64_t(request->request.prompt_token_ids.size()) -
                            request->num_cached_tokens) +
        kOutputTokenCost * num_output;
    const double mean = double(num_output) / request->sequences.size();
    if (request->request.kind == RequestKind::kGenerate) {
      account.mean_output_tokens +=
          kMeanGain * (mean - account.mean_output_tokens);
      mean_output_tokens_ += kMeanGain * (mean - mean_output_tokens_);
      CountEnded(&account, request->sequences.size(), mean);
    }
  }
  account.corrections.push_back(
      {request->tag, ToTags(cost, account.weight) -
                         ToTags(request->estimated_cost, account.weight)});
  has_pending_ = true;
}

void FairShare::Remove(RequestState* request) {
  const auto level = levels_.find(request->priority);
  QUIRE_CHECK(level != levels_.end());
  if (request->has_started && request->request.kind == RequestKind::kGenerate) {
    request->account->num_removed_tokens += NumGenerated(*request);
  }
  std::vector<RequestState*>& live = request->account->live;
  live.erase(std::find(live.begin(), live.end(), request));
  request->account = nullptr;
  // Nobody is behind anybody any more: all begin anew.
  if (--level->second.num_live == 0) {
    levels_.erase(level);
  }
}

void FairShare::DropIdleAccounts(Level* level) {
  if (level->accounts.size() == 1) return;
  const int64_t virtual_time = VirtualTime(*level);
  for (auto it = level->accounts.begin(); it != level->accounts.end();) {
    const ShareAccount& account = it->second;
    const bool is_idle =
        account.live.empty() &&
        account.next_tag + PendingDelta(account) <= virtual_time;
    it = is_idle ? level->accounts.erase(it) : std::next(it);
  }
}

// Only what came after the request was placed by its estimate: what waited
// before it gains nothing from a long prompt that is withdrawn.
void FairShare::Correct(ShareAccount* account) {
  auto& corrections = account->corrections;
  for (size_t i = 0; i < corrections.size(); ++i) {
    const auto [tag, delta] = corrections[i];
    for (auto it = account->live.rbegin();
         it != account->live.rend() && (*it)->tag > tag; ++it) {
      (*it)->tag += delta;
    }
    for (size_t k = i + 1; k < corrections.size(); ++k) {
      if (corrections[k].tag > tag) corrections[k].tag += delta;
    }
    if (account->last_started_tag > tag) *account->last_started_tag += delta;
    account->next_tag += delta;
  }
  corrections.clear();
}

bool FairShare::Settle() {
  if (!has_pending_) return false;
  has_pending_ = false;
  bool may_differ = false;
  for (auto& [priority, level] : levels_) {
    for (auto& [owner, account] : level.accounts) {
      if (account.corrections.empty()) continue;
      Correct(&account);
      may_differ |= level.accounts.size() > 1;
    }
  }
  return may_differ;
}

void FairShare::Revalue() {
  for (auto& [priority, level] : levels_) {
    for (auto& [owner, account] : level.accounts) {
      if (account.num_queued == 0) continue;
      const double expected = ExpectedOutputTokens(account);
      if (std::abs(expected - account.expected_output_tokens) <=
          kChangeToTell * account.expected_output_tokens) {
        continue;
      }
      account.expected_output_tokens = expected;
      ++queued_version_;
    }
  }
}

int64_t FairShare::CostOfQueued(const ShareAccount& account) {
  double num_output = 0;
  for (const ShareAccount::Answers& answers : account.queued_answers) {
    num_output += std::min(
        double(answers.num_max_tokens),
        double(answers.num) * std::max(1.0, account.expected_output_tokens));
  }
  return account.num_queued_prompt_cost +
         kOutputTokenCost * std::llround(num_output);
}

void FairShare::AppendQueued(std::vector<QueuedShare>* queued) const {
  for (const auto& [priority, level] : levels_) {
    for (const auto& [owner, account] : level.accounts) {
      if (account.num_queued == 0) continue;
      queued->push_back({owner, priority, account.weight, account.num_queued,
                         account.num_queued_tokens, account.num_queued_bytes,
                         CostOfQueued(account),
                         account.expected_output_tokens});
    }
  }
}

}  // namespace quire
