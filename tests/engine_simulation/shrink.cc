#include "tests/engine_simulation/shrink.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace quire {
namespace {

using RequestEdit = std::function<bool(PlannedRequest*)>;
using HistoryEdit = std::function<bool(History*)>;

// Candidates for a smaller value, boldest first, by attempt; false: no more.
bool SmallerValue(int64_t value, int64_t least, int attempt, int64_t* smaller) {
  if (value <= least) return false;
  const int64_t candidates[] = {least, least + (value - least) / 2, value - 1};
  if (attempt >= 3) return false;
  *smaller = candidates[attempt];
  return true;
}

class Shrinker {
 public:
  Shrinker(History history,
           const std::function<bool(const History&)>& still_fails, int max_runs)
      : history_(std::move(history)),
        still_fails_(still_fails),
        num_runs_left_(max_runs) {}

  History Run() {
    bool has_changed = true;
    while (has_changed && num_runs_left_ > 0) {
      has_changed = DropParts();
      has_changed |= SimplifyRequests();
      has_changed |= SimplifyOptions();
    }
    return std::move(history_);
  }

 private:
  bool Try(History candidate) {
    if (num_runs_left_ <= 0) return false;
    --num_runs_left_;
    if (!still_fails_(candidate)) return false;
    history_ = std::move(candidate);
    return true;
  }

  // part(history): a vector; pieces of it go, large ones first.
  template <typename Part>
  bool DropFrom(const Part& part) {
    bool has_changed = false;
    for (size_t size = part(history_).size(); size >= 1; size /= 2) {
      for (size_t begin = 0; begin < part(history_).size();) {
        History candidate = history_;
        auto& all = part(candidate);
        all.erase(all.begin() + begin,
                  all.begin() + std::min(begin + size, all.size()));
        if (Try(std::move(candidate))) {
          has_changed = true;
        } else {
          begin += size;
        }
      }
    }
    return has_changed;
  }

  bool DropParts() {
    bool has_changed =
        DropFrom([](History & h) -> auto& { return h.requests; });
    has_changed |= DropFrom([](History & h) -> auto& { return h.step_faults; });
    has_changed |= DropFrom([](History & h) -> auto& { return h.jumps; });
    has_changed |= DropFrom([](History & h) -> auto& { return h.commotions; });
    for (size_t i = 0; i < history_.requests.size(); ++i) {
      has_changed |=
          DropFrom([i](History & h) -> auto& { return h.requests[i].aborts; });
    }
    return has_changed;
  }

  // get(history): a reference to a number.
  template <typename Get>
  bool Reduce(const Get& get, int64_t least) {
    bool has_changed = false;
    int64_t smaller = 0;
    for (int attempt = 0;
         SmallerValue(get(history_), least, attempt, &smaller);) {
      History candidate = history_;
      get(candidate) = smaller;
      if (Try(std::move(candidate))) {
        has_changed = true;
        attempt = 0;
      } else {
        ++attempt;
      }
    }
    return has_changed;
  }

  // Does nothing if the edit changes nothing, which it says by false.
  bool Edit(const HistoryEdit& edit) {
    History candidate = history_;
    return edit(&candidate) && Try(std::move(candidate));
  }

  bool SimplifyRequest(size_t i);
  bool SimplifyRequests() {
    bool has_changed = false;
    for (size_t i = 0; i < history_.requests.size(); ++i) {
      has_changed |= SimplifyRequest(i);
    }
    return has_changed;
  }
  bool ShortenPrompt(size_t i);
  bool SimplifyOptions();
  bool SimplifyDrafter();

  History history_;
  const std::function<bool(const History&)>& still_fails_;
  int num_runs_left_;
};

bool Shrinker::ShortenPrompt(size_t i) {
  bool has_changed = false;
  int64_t smaller = 0;
  for (int attempt = 0;
       SmallerValue(history_.requests[i].request.prompt_token_ids.size(), 1,
                    attempt, &smaller);) {
    const bool is_shorter = Edit([i, smaller](History* history) {
      history->requests[i].request.prompt_token_ids.resize(smaller);
      return true;
    });
    has_changed |= is_shorter;
    attempt = is_shorter ? 0 : attempt + 1;
  }
  return has_changed;
}

// Sets a field of a request to what it is by default.
template <typename Field>
RequestEdit Default(Field SamplingParams::*field) {
  return [field](PlannedRequest* planned) {
    SamplingParams& sampling = planned->request.sampling;
    const SamplingParams defaults;
    if (sampling.*field == defaults.*field) return false;
    sampling.*field = defaults.*field;
    return true;
  };
}

bool Shrinker::SimplifyRequest(size_t i) {
  static const std::vector<RequestEdit> kEdits = {
      Default(&SamplingParams::min_tokens),
      Default(&SamplingParams::ignore_eos),
      Default(&SamplingParams::stop_token_ids),
      Default(&SamplingParams::num_logprobs),
      Default(&SamplingParams::num_prompt_logprobs),
      Default(&SamplingParams::presence_penalty),
      Default(&SamplingParams::frequency_penalty),
      Default(&SamplingParams::repetition_penalty),
      Default(&SamplingParams::allowed_token_ids),
      Default(&SamplingParams::seed),
      [](PlannedRequest* planned) {
        return std::exchange(planned->request.sampling.temperature, 0.0f) != 0;
      },
      [](PlannedRequest* planned) {
        return std::exchange(planned->request.priority, 0) != 0;
      },
      [](PlannedRequest* planned) {
        return !std::exchange(planned->request.owner, "").empty();
      },
      [](PlannedRequest* planned) {
        return std::exchange(planned->request.share_weight, 1) != 1;
      },
      [](PlannedRequest* planned) {
        return std::exchange(planned->timeout_micros, -1) >= 0;
      },
      [](PlannedRequest* planned) {
        // The mark of an embed request is a bias more.
        planned->request.sampling.logit_bias.resize(1);
        return std::exchange(planned->request.kind, RequestKind::kGenerate) !=
               RequestKind::kGenerate;
      },
      [](PlannedRequest* planned) {
        return std::exchange(planned->fault, {}).fault != ModelFault::kNone;
      },
  };
  bool has_changed = false;
  for (const RequestEdit& edit : kEdits) {
    has_changed |=
        Edit([&edit, i](History* h) { return edit(&h->requests[i]); });
  }
  has_changed |= Reduce(
      [i](History & h) -> auto& { return h.requests[i].request.n; }, 1);
  has_changed |= Reduce(
      [i](History & h) -> auto& {
        return h.requests[i].request.sampling.max_tokens;
      },
      1);
  has_changed |= Reduce(
      [i](History & h) -> auto& { return h.requests[i].arrival_step; }, 0);
  for (size_t k = 0; k < history_.requests[i].aborts.size(); ++k) {
    has_changed |= Reduce(
        [ i, k ](History & h) -> auto& {
          return h.requests[i].aborts[k].countdown;
        },
        0);
  }
  return has_changed | ShortenPrompt(i);
}

// Takes blocks from the pool, and their tokens from the end of a prompt: all
// but one part in `divisor`, or a single block if it is 0.
bool Deflate(size_t request_idx, int divisor, History* history) {
  std::vector<int32_t>& prompt =
      history->requests[request_idx].request.prompt_token_ids;
  const int num_full =
      static_cast<int>(prompt.size() - 1) / history->options.block_size;
  const int num_less = divisor == 0 ? 1 : num_full / divisor;
  if (num_less < 1 || num_less > num_full ||
      num_less >= history->options.num_blocks) {
    return false;
  }
  prompt.resize(prompt.size() - num_less * history->options.block_size);
  history->options.num_blocks -= num_less;
  return true;
}

bool Shrinker::SimplifyDrafter() {
  if (history_.drafter.quality == DraftQuality::kNone) return false;
  bool has_changed = Edit([](History* h) {
    h->drafter = PlannedDrafter();
    h->options.num_speculative_tokens = 0;
    return true;
  });
  if (has_changed) return true;
  has_changed |= Edit(
      [](History* h) { return std::exchange(h->drafter.is_costly, false); });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->drafter.uses_target_steps, false);
  });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->drafter.gives_probabilities, false);
  });
  has_changed |= Edit(
      [](History* h) { return std::exchange(h->drafter.fails_at, -1) != -1; });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.adapts_drafts, false);
  });
  has_changed |= Reduce(
      [](History & h) -> auto& { return h.options.num_speculative_tokens; }, 1);
  return has_changed;
}

bool Shrinker::SimplifyOptions() {
  bool has_changed = Edit([](History* h) {
    return std::exchange(h->options.enable_prefix_caching, false);
  });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.long_prefill_token_threshold, 0) != 0;
  });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.rope_switch_length, 0) != 0;
  });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.scheduling_policy,
                         SchedulingPolicy::kFcfs) != SchedulingPolicy::kFcfs;
  });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.embeds_every_token, false);
  });
  has_changed |= SimplifyDrafter();
  has_changed |= Edit([](History* h) {
    return std::exchange(h->model_options.eos_per_1000, 0) != 0;
  });
  has_changed |= Edit(
      [](History* h) { return std::exchange(h->shutdown_delay, -1) != -1; });
  has_changed |= Edit([](History* h) {
    return std::exchange(h->options.num_micro_batches, 1) != 1;
  });
  has_changed |= Reduce(
      [](History & h) -> auto& { return h.options.steps_in_flight; },
      history_.options.num_micro_batches);
  has_changed |= Reduce(
      [](History & h) -> auto& { return h.options.max_num_seqs; }, 1);
  has_changed |= Reduce(
      [](History & h) -> auto& { return h.options.max_num_batched_tokens; },
      history_.options.max_num_seqs);
  has_changed |= Reduce(
      [](History & h) -> auto& { return h.options.num_blocks; }, 1);
  // A pool that is just too small stays so if the prompts shrink with it.
  for (size_t i = 0; i < history_.requests.size(); ++i) {
    for (int divisor : {2, 0}) {
      while (
          Edit([i, divisor](History* h) { return Deflate(i, divisor, h); })) {
        has_changed = true;
      }
    }
  }
  for (size_t i = 0; i < history_.step_faults.size(); ++i) {
    has_changed |= Reduce(
        [i](History & h) -> auto& { return h.step_faults[i].submit_no; }, 0);
  }
  return has_changed;
}

}  // namespace

History Shrink(History history,
               const std::function<bool(const History&)>& still_fails,
               int max_runs) {
  return Shrinker(std::move(history), still_fails, max_runs).Run();
}

}  // namespace quire
