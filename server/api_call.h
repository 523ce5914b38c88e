// One HTTP request in the making: turns tokens into the text and JSON of its
// answer, streamed or collected.
#ifndef QUIRE_SERVER_API_CALL_H_
#define QUIRE_SERVER_API_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "engine/request.h"
#include "server/answer_scores.h"
#include "server/call.h"
#include "server/http_server.h"
#include "server/key_limiter.h"
#include "server/openai_api.h"
#include "server/prompt_text.h"
#include "server/stop_strings.h"
#include "server/telemetry/request_record.h"
#include "tokenizer/incremental_detokenizer.h"
#include "tokenizer/tokenizer.h"

namespace quire {

// What the answer needs of one prompt.
struct ApiCallPrompt {
  // If the ids, the scores or (completions) the echo are to be reported.
  std::vector<int32_t> token_ids;
  // What answers with `echo` begin with: the prompt, or the final message of a
  // chat (then without offsets).
  PromptText echo;
};

// What the answer needs of the request.
struct ApiCallOptions {
  ApiKind kind = ApiKind::kChat;
  std::string id;       // "chatcmpl-…" or "cmpl-…".
  std::string model;    // As served.
  int64_t created = 0;  // Unix seconds.
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage_stats = false;
  bool wants_logprobs = false;
  int32_t num_prompt_logprobs = -1;  // Top entries to report; -1: no report.
  int32_t num_echo_logprobs = 0;     // Of the prompt tokens among `logprobs`.
  bool echo = false;
  bool generates_nothing = false;  // What the engine draws is dropped.
  bool return_token_ids = false;
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
  bool return_tokens_as_token_ids = false;
  std::vector<std::string> stop_strings;
  int32_t min_tokens = 0;  // No stop string ends before so many tokens + 1.
  int num_choices = 1;     // Of all prompts: prompt-major.
  int best_of = 1;         // Choices of one prompt, of which
  int n = 1;               // so many are returned.
  std::vector<ApiCallPrompt> prompts;  // Empty: nothing of them is reported.
  int64_t num_prompt_tokens = 0;       // Of all prompts.
  HttpHeaders headers;
  std::shared_ptr<KeyTicket> ticket;  // Null: no limits to keep.
  // Of the log-probabilities that it holds; null: only what a stream writes
  // next.
  std::shared_ptr<AnswerScores> scores;
  std::shared_ptr<RequestRecord> record;  // Null: nothing is to be told.
  absl::Time arrival_time = absl::InfinitePast();
  // Usage tells of drafts, also where there were none.
  bool has_drafts = false;
  // The answer has vLLM's object "metrics" with the times of the request.
  bool has_metrics = false;
};

// Thread-compatible: used by the output thread alone. Every choice ends once,
// by the model (Append with a finish reason), by a stop string or by Fail; when
// all have ended the answer is complete and sent.
class ApiCall : public Call {
 public:
  // `tokenizer` must outlive the call.
  ApiCall(ApiCallOptions options, const Tokenizer* tokenizer,
          std::shared_ptr<HttpResponder> responder);

  // Streams: sends the head of the answer; nothing is written before. To be
  // called once every part of the call was accepted. Idempotent.
  void Start() override;

  // Takes an event of choice `choice_idx` (of the whole call). Returns true if
  // a stop string ended the choice: the engine should abort it. Events of
  // choices that have ended are ignored.
  bool Append(int choice_idx, const OutputEvent& event) override;
  // Streams: writes what the last Appends made.
  void Flush() override;
  // Ends the call with an error: an error response, or an error event in a
  // stream that has begun.
  void Fail(const absl::Status& error) override;

  bool is_behind() const override {
    return options_.stream && responder_->is_behind();
  }
  bool is_costly() const override {
    return options_.wants_logprobs || options_.num_choices > 1;
  }
  void AddCachedTokens(int num_tokens) override {
    num_cached_tokens_ += num_tokens;
  }
  bool is_complete() const override { return is_complete_; }
  // Why the choice ended, as the client is told; none if it has not, or Fail
  // ended it.
  std::optional<FinishReason> finish_reason(int choice_idx) const override {
    return choices_[choice_idx].finish_reason;
  }

 private:
  struct Logprob {
    int32_t token_id;
    float logprob;
    std::vector<TopLogprob> top;
    int64_t text_offset;        // In bytes; -1 for prompt tokens.
    int64_t text_offset_chars;  // As OpenAI counts.
    bool is_known = true;       // Not for the first token of a prompt.
  };
  struct Prompt {
    const ApiCallPrompt* info;        // In options_.
    std::vector<TokenOutput> scored;  // From the second token on, as they come.
  };
  // One chunk of a stream.
  struct Chunk {
    absl::string_view delta;  // JSON of the delta (chat) or the text.
    absl::Span<const Logprob> logprobs;
    absl::Span<const int32_t> token_ids;
    bool is_first = false;  // Of its choice.
    bool is_finish = false;
  };
  struct Choice {
    IncrementalDetokenizer detokenizer;
    StopStringMatcher stops;
    std::string text;  // Not yet written (streams), or all of it.
    // Not yet written, or all; entries wait while their text is held back.
    std::vector<Logprob> logprobs;
    int64_t num_text_chars = 0;   // Detokenized so far,
    int64_t num_text_bytes = 0;   // the same in bytes,
    int64_t num_given_bytes = 0;  // and past the stop strings.
    int64_t num_tokens = 0;
    double sum_logprobs = 0;         // Of its tokens, for best_of.
    std::vector<int32_t> token_ids;  // Not yet written, or all of them.
    bool is_begun = false;
    bool has_first_chunk = false;
    bool is_finish_written = false;
    std::optional<FinishReason> finish_reason;
    std::string stop_reason_json = "null";
  };

  Prompt& PromptOf(int choice_idx) {
    return prompts_[choice_idx / options_.best_of];
  }
  const Prompt& PromptOf(int choice_idx) const {
    return prompts_[choice_idx / options_.best_of];
  }
  // Puts the echo in front.
  void BeginChoice(int choice_idx);
  static void Give(Choice& choice, std::string text);
  bool MayStop(const Choice& choice) const {
    return choice.num_tokens > options_.min_tokens;
  }
  // UNAVAILABLE: there is no room for its log-probabilities.
  absl::Status AppendToken(Choice& choice, const TokenOutput& token,
                           bool is_end);
  void FinishChoice(Choice& choice, FinishReason reason);
  void FinishByStopString(Choice& choice);
  void WriteChunks(int choice_idx, std::string* out);
  void BeginChunk(std::string* out) const;
  void AppendChunk(int choice_idx, const Chunk& chunk, std::string* out) const;
  // ,"prompt_logprobs":…,"prompt_token_ids":… as far as asked for.
  void AppendPromptFields(const Prompt& prompt, std::string* out) const;
  void AppendTokenIds(absl::Span<const int32_t> token_ids,
                      std::string* out) const;
  // The choices to return, in order: of each prompt the n whose tokens have the
  // highest mean log-probability, the best first.
  std::vector<int> ReturnedChoices() const;
  // "null" unless logprobs were asked for.
  void AppendLogprobs(absl::Span<const Logprob> logprobs,
                      std::string* out) const;
  void AppendChatLogprobs(absl::Span<const Logprob> logprobs,
                          std::string* out) const;
  void AppendTopLogprobs(const Logprob& entry, std::string* out) const;
  void AppendCompletionLogprobs(absl::Span<const Logprob> logprobs,
                                std::string* out) const;
  void AppendUsage(std::string* out) const;
  // ,"metrics":{…} if asked for.
  void AppendMetrics(std::string* out) const;
  int64_t CountCompletionTokens() const;
  // Times of the call, over all choices.
  void ObserveTimes(const OutputEvent& event);
  void FillRecord();
  std::string TokenText(int32_t token_id) const;
  void Complete();

  const ApiCallOptions options_;
  const Tokenizer* const tokenizer_;
  const std::shared_ptr<HttpResponder> responder_;
  std::vector<Choice> choices_;
  std::vector<Prompt> prompts_;
  int num_open_choices_;
  int64_t num_cached_tokens_ = 0;
  int64_t num_draft_tokens_ = 0;
  int64_t num_accepted_tokens_ = 0;
  // InfinitePast: not yet.
  absl::Time scheduled_time_ = absl::InfinitePast();
  absl::Time first_token_time_ = absl::InfinitePast();
  absl::Time last_token_time_ = absl::InfinitePast();
  bool has_draft_model_tokens_ = false;  // OutputEvent::is_from_draft_model.
  bool is_started_ = false;
  bool is_complete_ = false;
};

// "stop", "length", "abort", "error": as vLLM names them in metrics and
// answers.
const char* FinishReasonName(FinishReason reason);

}  // namespace quire

#endif  // QUIRE_SERVER_API_CALL_H_
