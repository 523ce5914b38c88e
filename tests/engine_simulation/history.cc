#include "tests/engine_simulation/history.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/random.h"

namespace quire {
namespace {

class HistoryDrawer {
 public:
  HistoryDrawer(uint64_t seed, HistoryKind kind) : kind_(kind), random_(seed) {
    history_.seed = seed;
  }
  History Draw();

 private:
  void DrawOptions();
  void DrawDrafter();
  void DrawDocuments();
  void DrawRequests();
  void DrawStepFaults();
  void DrawShares();
  std::vector<int32_t> DrawPrompt();
  Request DrawRequest();
  void MakeEmbedRequest(int namespace_no, Request* request);
  void DrawSampling(SamplingParams* sampling);
  PlannedAbort DrawAbort(const Request& request);
  PlannedModelFault DrawFault(const Request& request);

  bool Chance(int per_1000) {
    return static_cast<int>(random_.Below(1000)) < per_1000;
  }
  int Between(int low, int high) {
    return static_cast<int>(random_.Between(low, high));
  }
  int32_t DrawToken() {
    return static_cast<int32_t>(random_.Below(history_.options.vocab_size));
  }
  template <typename T, size_t kSize>
  T OneOf(const T (&values)[kSize]) {
    return values[random_.Below(kSize)];
  }

  const HistoryKind kind_;
  SimulationRandom random_;
  History history_;
  std::vector<std::vector<int32_t>> documents_;
};

void HistoryDrawer::DrawOptions() {
  EngineOptions& options = history_.options;
  options.block_size = OneOf({1, 2, 4, 8, 16});
  // 8 to 512, small ones as often as large ones.
  options.num_blocks = 8 << random_.Below(7);
  options.num_blocks -=
      static_cast<int>(random_.Below(uint64_t(options.num_blocks / 4)));
  options.num_blocks = std::max(options.num_blocks, 8);
  options.max_model_len = Between(8, 200);
  options.vocab_size = Chance(500) ? 40 : 5000;
  options.max_num_seqs = Between(1, 12);
  options.max_num_batched_tokens =
      options.max_num_seqs + OneOf({0, 1, 8, 64, 300});
  options.long_prefill_token_threshold = OneOf({0, 0, 1, 5, 32});
  options.max_num_scored_tokens = OneOf({1, 3, 16, 500});
  if (Chance(300)) options.scheduling_policy = SchedulingPolicy::kPriority;
  options.enable_embed = Chance(500);
  options.embeds_every_token = Chance(500);
  options.enable_prefix_caching = Chance(800);
  options.steps_in_flight = Chance(100) ? 3 : Between(1, 2);
  options.eos_token_ids = {1};
  if (Chance(300)) options.eos_token_ids.push_back(3);
  options.cache_seed = random_.Next();
  options.random_seed = random_.Next();
  history_.model_options.eos_per_1000 = OneOf({0, 5, 50, 200});
  // From a stream of its own: a seed keeps the rest of its history.
  SimulationRandom rope_random(options.random_seed);
  if (rope_random.Below(8) == 0) {
    options.rope_switch_length = static_cast<int>(rope_random.Between(1, 100));
  }
  SimulationRandom stage_random(options.random_seed + 1);
  if (options.steps_in_flight > 1 && stage_random.Below(3) == 0) {
    options.num_micro_batches = options.steps_in_flight;
  }
  DrawDrafter();
}

void HistoryDrawer::DrawDrafter() {
  // From a stream of its own, too.
  SimulationRandom random(history_.options.cache_seed);
  const auto chance = [&random](int per_1000) {
    return static_cast<int>(random.Below(1000)) < per_1000;
  };
  if (!chance(600) && kind_ != HistoryKind::kDrafted) return;
  EngineOptions& options = history_.options;
  options.num_speculative_tokens =
      static_cast<int>(random.Between(1, chance(500) ? 4 : 20));
  options.adapts_drafts = chance(500);
  PlannedDrafter& drafter = history_.drafter;
  drafter.quality = static_cast<DraftQuality>(random.Between(1, 4));
  drafter.is_costly = chance(300);
  drafter.uses_target_steps = chance(300);
  drafter.gives_probabilities = chance(300);
  if (chance(200)) drafter.fails_at = random.Between(0, 100);
  drafter.fails_by_nonsense = chance(500);
}

void HistoryDrawer::DrawDocuments() {
  for (int i = 0; i < 4; ++i) {
    std::vector<int32_t> document;
    for (int k = 0; k < 200; ++k) document.push_back(DrawToken());
    documents_.push_back(std::move(document));
  }
  // Two that part in the middle.
  documents_[1] = documents_[0];
  for (size_t k = random_.Below(100); k < documents_[1].size(); ++k) {
    documents_[1][k] = (documents_[1][k] + 1) % history_.options.vocab_size;
  }
}

std::vector<int32_t> HistoryDrawer::DrawPrompt() {
  const EngineOptions& options = history_.options;
  const int max_len = MaxNumTokens(options) - 1;
  std::vector<int32_t> prompt;
  if (Chance(250) && !history_.requests.empty()) {
    // The next turn of a conversation, as if the first answer was given whole.
    const uint64_t idx = random_.Below(history_.requests.size());
    const PlannedRequest& before = history_.requests[idx];
    prompt = before.request.prompt_token_ids;
    if (before.flaw == Flaw::kNone) {
      const HashModelAnswer answer = AnswerAlone(
          options, history_.model_options, before.request,
          MixBits(options.random_seed, idx), 0, MaxNumTokens(options));
      prompt.insert(prompt.end(), answer.token_ids.begin(),
                    answer.token_ids.end());
    }
  }
  if (prompt.empty()) {
    int length = 0;
    if (Chance(500)) {
      // Around a multiple of the block size.
      length = Between(0, max_len / options.block_size) * options.block_size +
               Between(-1, 1);
    } else {
      length = Between(1, Chance(500) ? max_len : std::min(max_len, 12));
    }
    length = std::clamp(length, 1, max_len);
    const auto& document = documents_[random_.Below(documents_.size())];
    prompt.assign(document.begin(), document.begin() + length);
  }
  if (Chance(400)) {
    for (int i = Between(1, 6); i > 0; --i) prompt.push_back(DrawToken());
  }
  if (static_cast<int>(prompt.size()) > max_len) prompt.resize(max_len);
  return prompt;
}

void HistoryDrawer::DrawSampling(SamplingParams* sampling) {
  sampling->temperature = Chance(500) ? 0.0f : 1.0f;
  if (Chance(800)) sampling->seed = random_.Next();
  sampling->max_tokens =
      Chance(100) ? INT32_MAX : Between(1, Chance(300) ? 100 : 12);
  if (Chance(200)) sampling->min_tokens = Between(1, 8);
  sampling->ignore_eos = Chance(200);
  if (Chance(300)) {
    for (int i = 0; i < 3; ++i) sampling->stop_token_ids.push_back(DrawToken());
  }
  if (Chance(100)) sampling->num_logprobs = Between(0, 3);
  if (Chance(150)) sampling->num_prompt_logprobs = Between(0, 2);
  if (Chance(100)) sampling->presence_penalty = 0.5f;
  if (Chance(100)) sampling->frequency_penalty = -0.5f;
  if (Chance(150)) sampling->repetition_penalty = 1.25f;
  if (Chance(50)) {
    for (int i = 0; i < 5; ++i) {
      sampling->allowed_token_ids.push_back(DrawToken());
    }
  }
}

Request HistoryDrawer::DrawRequest() {
  Request request;
  request.id = history_.requests.size() + 1;
  request.prompt_token_ids = DrawPrompt();
  const int namespace_no = Between(0, 2);
  request.cache_namespace = absl::StrCat("key-", namespace_no);
  request.sampling.logit_bias = HashNamespaceBias(namespace_no);
  DrawSampling(&request.sampling);
  if (Chance(250)) request.n = Between(2, 5);
  if (Chance(500)) request.priority = Between(-2, 2);
  if (history_.options.enable_embed && Chance(300)) {
    MakeEmbedRequest(namespace_no, &request);
  }
  return request;
}

void HistoryDrawer::MakeEmbedRequest(int namespace_no, Request* request) {
  request->kind = RequestKind::kEmbed;
  request->n = 1;
  request->sampling = SamplingParams();
  request->sampling.logit_bias =
      HashNamespaceBias(namespace_no, RequestKind::kEmbed);
  // Up to the last position: there is no answer to leave room for.
  if (Chance(100)) {
    request->prompt_token_ids.resize(MaxNumTokens(history_.options), 7);
  }
}

PlannedAbort HistoryDrawer::DrawAbort(const Request& request) {
  PlannedAbort abort;
  abort.trigger = static_cast<AbortTrigger>(random_.Below(kNumAbortTriggers));
  if (Chance(150)) abort.trigger = AbortTrigger::kPreempted;  // Rare.
  abort.countdown = Chance(500) ? 0 : Between(0, 12);
  if (Chance(400)) abort.choice_idx = Between(0, request.n - 1);
  abort.is_stop = Chance(300);
  return abort;
}

PlannedModelFault HistoryDrawer::DrawFault(const Request& request) {
  PlannedModelFault fault;
  fault.choice_idx = Between(0, request.n - 1);
  if (Chance(700)) {
    fault.fault = ModelFault::kNotFinite;
    fault.at =
        Between(0, static_cast<int>(request.prompt_token_ids.size()) + 4);
  } else {
    fault.fault = static_cast<ModelFault>(
        Between(static_cast<int>(ModelFault::kTokenOutside),
                static_cast<int>(ModelFault::kNumModelFaults) - 1));
    fault.at = Between(0, 6);
  }
  return fault;
}

void HistoryDrawer::DrawRequests() {
  const int num_requests = kind_ == HistoryKind::kDrafted
                               ? Between(1, 6)
                               : Between(1, OneOf({8, 40, 120}));
  const int arrivals_per_1000 = OneOf({20, 100, 400, 1000});
  const int burst_size = Between(1, 5);
  const int aborts_per_1000 = OneOf({0, 50, 500});
  const int faults_per_1000 = OneOf({0, 0, 50, 200});
  int64_t step = 0;
  for (int i = 0; i < num_requests; ++i) {
    if (i % burst_size == 0) {
      step += Between(0, 2 * 1000 / arrivals_per_1000);
    }
    PlannedRequest planned;
    planned.arrival_step = step;
    planned.request = DrawRequest();
    while (Chance(aborts_per_1000) && planned.aborts.size() < 3) {
      planned.aborts.push_back(DrawAbort(planned.request));
    }
    if (Chance(faults_per_1000)) planned.fault = DrawFault(planned.request);
    if (Chance(20)) {
      planned.flaw =
          static_cast<Flaw>(Between(1, static_cast<int>(Flaw::kNumFlaws) - 1));
    }
    history_.requests.push_back(std::move(planned));
  }
  while (Chance(400)) {
    history_.commotions.push_back(
        {random_.Between(0, step + 50), /*aborts_everything=*/Chance(300)});
  }
  while (Chance(500)) {
    PlannedJump jump;
    jump.step = random_.Between(0, step + 50);
    // Up to an hour; never to the epoch, which means "not scheduled".
    jump.nanos = random_.Between(-3600, 3600) * 1'000'000'000 + 1;
    jump.within_step = Chance(500);
    history_.jumps.push_back(jump);
  }
  const auto by_step = [](const auto& a, const auto& b) {
    return a.step < b.step;
  };
  std::sort(history_.commotions.begin(), history_.commotions.end(), by_step);
  std::sort(history_.jumps.begin(), history_.jumps.end(), by_step);
}

void HistoryDrawer::DrawStepFaults() {
  // 300: the engine soon sees three in a row.
  const int faults_per_1000 = OneOf({0, 0, 0, 5, 20, 300});
  if (faults_per_1000 == 0) return;
  const bool is_tampering = Chance(500);
  for (int64_t submit_no = 0; submit_no < 1000; ++submit_no) {
    if (!Chance(faults_per_1000)) continue;
    const StepFault last =
        is_tampering ? StepFault::kNumStepFaults : StepFault::kResultEarly;
    history_.step_faults.push_back(
        {submit_no,
         static_cast<StepFault>(random_.Below(static_cast<int>(last)))});
  }
}

// From a stream of its own: a seed keeps the rest of its history.
void HistoryDrawer::DrawShares() {
  SimulationRandom random(MixBits(history_.seed, 1));
  const bool has_owners = random.Below(2) == 0;
  const bool has_weights = random.Below(2) == 0;
  const bool has_timeouts = random.Below(4) == 0;
  for (PlannedRequest& planned : history_.requests) {
    if (has_owners) {
      // An owner may have several namespaces, but no namespace two owners.
      planned.request.owner = planned.request.cache_namespace;
      if (has_weights) {
        planned.request.share_weight =
            1 + static_cast<int32_t>(planned.request.owner.back() - '0') * 7;
      }
    }
    if (has_timeouts && random.Below(3) == 0) {
      planned.timeout_micros = random.Between(0, 100'000);
    }
  }
}

History HistoryDrawer::Draw() {
  DrawOptions();
  DrawDocuments();
  DrawRequests();
  DrawStepFaults();
  DrawShares();
  if (Chance(150)) history_.shutdown_delay = Between(0, 40);
  return std::move(history_);
}

std::string DescribeSampling(const SamplingParams& sampling) {
  const SamplingParams defaults;
  std::string text = absl::StrCat("max_tokens ", sampling.max_tokens);
  const auto add = [&text](const auto&... parts) {
    absl::StrAppend(&text, ", ", parts...);
  };
  if (sampling.temperature > 0) add("sampled");
  if (sampling.seed.has_value()) add("seed ", *sampling.seed);
  if (sampling.min_tokens > 0) add("min_tokens ", sampling.min_tokens);
  if (sampling.ignore_eos) add("ignore_eos");
  if (!sampling.stop_token_ids.empty()) {
    add("stop tokens ", absl::StrJoin(sampling.stop_token_ids, " "));
  }
  if (!sampling.allowed_token_ids.empty()) {
    add("allowed tokens ", absl::StrJoin(sampling.allowed_token_ids, " "));
  }
  if (sampling.num_logprobs >= 0) add("logprobs ", sampling.num_logprobs);
  if (sampling.num_prompt_logprobs >= 0) {
    add("prompt_logprobs ", sampling.num_prompt_logprobs);
  }
  if (sampling.presence_penalty != defaults.presence_penalty ||
      sampling.frequency_penalty != defaults.frequency_penalty ||
      sampling.repetition_penalty != defaults.repetition_penalty) {
    add("penalties ", sampling.presence_penalty, " ",
        sampling.frequency_penalty, " ", sampling.repetition_penalty);
  }
  return text;
}

std::string DescribeDrafter(const History& history) {
  static constexpr const char* kQualities[] = {"none", "right", "wrong",
                                               "random", "mixed"};
  const PlannedDrafter& drafter = history.drafter;
  return absl::StrCat(
      "drafts are ", kQualities[static_cast<int>(drafter.quality)],
      ", at most ", history.options.num_speculative_tokens,
      history.options.adapts_drafts ? ", as many as pay" : "",
      drafter.is_costly ? ", costly" : "",
      drafter.uses_target_steps ? ", steps are observed" : "",
      drafter.gives_probabilities ? ", with probabilities" : "",
      drafter.fails_at < 0
          ? ""
          : absl::StrCat(", failing in call ", drafter.fails_at,
                         drafter.fails_by_nonsense ? " by nonsense" : ""),
      "\n");
}

// Long ones in part.
std::string DescribeTokens(const std::vector<int32_t>& ids) {
  if (ids.size() <= 16) return absl::StrJoin(ids, " ");
  return absl::StrCat(absl::StrJoin(ids.begin(), ids.begin() + 8, " "), " ... ",
                      absl::StrJoin(ids.end() - 4, ids.end(), " "));
}

std::string DescribeRequest(const PlannedRequest& planned) {
  static constexpr const char* kFlaws[] = {
      "",          "prompt too long", "no prompt", "token out of vocabulary",
      "n is zero", "id in use"};
  static constexpr const char* kFaults[] = {"",
                                            "not finite from position ",
                                            "token outside at token ",
                                            "token negative at token ",
                                            "no token at token ",
                                            "two at token "};
  const Request& request = planned.request;
  std::string text = absl::StrCat(
      "step ", planned.arrival_step, ": request ", request.id,
      " arrives: ", request.prompt_token_ids.size(), " prompt tokens [",
      DescribeTokens(request.prompt_token_ids), "], n ", request.n, ", ",
      request.cache_namespace, ", priority ", request.priority, ", ",
      request.kind == RequestKind::kEmbed ? "embed"
                                          : DescribeSampling(request.sampling));
  if (!request.owner.empty()) {
    absl::StrAppend(&text, "; of ", request.owner, ", weight ",
                    request.share_weight);
  }
  if (planned.timeout_micros >= 0) {
    absl::StrAppend(&text, "; timeout ", planned.timeout_micros, " us");
  }
  if (planned.flaw != Flaw::kNone) {
    absl::StrAppend(
        &text, "; to be refused: ", kFlaws[static_cast<int>(planned.flaw)]);
  }
  for (const PlannedAbort& abort : planned.aborts) {
    absl::StrAppend(
        &text, "\n  aborted", abort.is_stop ? " (stop)" : "", " when ",
        AbortTriggerName(abort.trigger), ", after ", abort.countdown, " times",
        abort.choice_idx < 0 ? ", all choices"
                             : absl::StrCat(", choice ", abort.choice_idx));
  }
  if (planned.fault.fault != ModelFault::kNone) {
    absl::StrAppend(&text, "\n  model: choice ", planned.fault.choice_idx, ", ",
                    kFaults[static_cast<int>(planned.fault.fault)],
                    planned.fault.at);
  }
  return absl::StrCat(text, "\n");
}

}  // namespace

const char* AbortTriggerName(AbortTrigger trigger) {
  static constexpr const char* kNames[] = {
      "waiting",   "in prefill", "decoding", "preempted",
      "finishing", "collecting", "anything"};
  return kNames[static_cast<int>(trigger)];
}

int MaxNumTokens(const EngineOptions& options) {
  return std::min(options.max_model_len,
                  options.num_blocks * options.block_size);
}

History DrawHistory(uint64_t seed, HistoryKind kind) {
  return HistoryDrawer(seed, kind).Draw();
}

std::string Describe(const History& history) {
  static constexpr const char* kFaults[] = {"is refused",
                                            "is refused after it ran",
                                            "fails when collected",
                                            "gets the next one's number",
                                            "gets the result before",
                                            "misses a row",
                                            "has a row too many",
                                            "names a wrong slot",
                                            "lacks a score"};
  const EngineOptions& options = history.options;
  std::string text = absl::StrCat(
      "pool ", options.num_blocks, " blocks x ", options.block_size,
      ", context ", options.max_model_len, ", ", options.max_num_seqs,
      " slots, ", options.max_num_batched_tokens,
      " tokens per step, threshold ", options.long_prefill_token_threshold,
      ", RoPE switch ", options.rope_switch_length, ", ",
      options.steps_in_flight, " steps in flight, ", options.num_micro_batches,
      " micro-batches, prefix cache ",
      options.enable_prefix_caching ? "on" : "off", ", ",
      options.scheduling_policy == SchedulingPolicy::kPriority ? "by priority"
                                                               : "by arrival",
      ", at most ", options.max_num_scored_tokens,
      " scores per step, embeddings of ",
      options.embeds_every_token ? "every" : "the last", " token, end tokens ",
      absl::StrJoin(options.eos_token_ids, " "), "\n");
  if (history.drafter.quality != DraftQuality::kNone) {
    absl::StrAppend(&text, DescribeDrafter(history));
  }
  for (const PlannedRequest& planned : history.requests) {
    absl::StrAppend(&text, DescribeRequest(planned));
  }
  for (const PlannedStepFault& fault : history.step_faults) {
    absl::StrAppend(&text, "submit ", fault.submit_no, ": ",
                    kFaults[static_cast<int>(fault.fault)], "\n");
  }
  for (const PlannedJump& jump : history.jumps) {
    absl::StrAppend(&text, "step ", jump.step, ": the clock jumps ",
                    jump.nanos / 1'000'000'000, " s",
                    jump.within_step ? " within the step" : "", "\n");
  }
  for (const PlannedCommotion& commotion : history.commotions) {
    absl::StrAppend(&text, "step ", commotion.step, ": ",
                    commotion.aborts_everything
                        ? "everything is aborted\n"
                        : "requests that do not exist are aborted\n");
  }
  if (history.shutdown_delay >= 0) {
    absl::StrAppend(&text, "shutdown ", history.shutdown_delay,
                    " steps after the last arrival\n");
  }
  return text;
}

}  // namespace quire
