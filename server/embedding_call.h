// One call of POST /v1/embeddings: gives its inputs to the engine a few at a
// time, and makes one answer of their vectors.
#ifndef QUIRE_SERVER_EMBEDDING_CALL_H_
#define QUIRE_SERVER_EMBEDDING_CALL_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine_loop.h"
#include "engine/request.h"
#include "server/call.h"
#include "server/http_server.h"
#include "server/key_limiter.h"
#include "server/output_processor.h"
#include "server/telemetry/request_record.h"

namespace quire {

struct EmbeddingCallOptions {
  std::string id;       // "embd-…".
  std::string model;    // As served.
  int64_t created = 0;  // Unix seconds.
  bool is_base64 = false;
  int dimensions = 0;  // Of the answer; 0: all.
  bool normalize = true;
  // Inputs in the engine at once. One call may bring thousands: the others wait
  // here, so that calls of others find room in the queue and are not far behind
  // in it.
  int max_in_flight = 128;
  HttpHeaders headers;
  std::shared_ptr<KeyTicket> ticket;      // Null: no limits to keep.
  std::shared_ptr<RequestRecord> record;  // Null: nothing is to be told.
};

// The Call's methods are the output thread's; Submit and Cancel are
// thread-safe. `engine` and `output` must outlive the output thread.
class EmbeddingCall : public Call,
                      public std::enable_shared_from_this<EmbeddingCall> {
 public:
  // `requests`: one for each input, in order, of kind kEmbed.
  EmbeddingCall(EmbeddingCallOptions options, std::vector<Request> requests,
                EngineLoop* engine, OutputProcessor* output,
                std::shared_ptr<HttpResponder> responder);

  // Gives the first inputs to the engine. From here on the call answers,
  // whatever happens: with 503 if the first is not accepted. To be called once.
  void Submit();
  // The client has gone: aborts what the engine has and drops the rest.
  void Cancel();

  void Start() override {}
  bool Append(int input_idx, const OutputEvent& event) override;
  void Flush() override;
  void Fail(const absl::Status& error) override;
  void AddCachedTokens(int num_tokens) override {
    num_cached_tokens_ += num_tokens;
  }
  bool is_complete() const override { return is_complete_; }
  std::optional<FinishReason> finish_reason(int input_idx) const override;

 private:
  CallPart PartOf(int input_idx) const;  // mu_ is held.
  void SubmitNext();
  void Complete();
  void FillRecord(const char* finish_reason);

  const EmbeddingCallOptions options_;
  EngineLoop* const engine_;
  OutputProcessor* const output_;
  const std::shared_ptr<HttpResponder> responder_;
  const int num_inputs_;

  // Of the output thread.
  std::vector<std::string> vectors_;  // JSON of each input's; empty until then.
  int num_open_inputs_;
  int64_t num_cached_tokens_ = 0;
  absl::Time scheduled_time_ = absl::InfinitePast();  // Of the first input.
  bool is_complete_ = false;

  int64_t num_prompt_tokens_ = 0;  // Set by the constructor.
  // A std::mutex: ThreadSanitizer does not see through the packaged abseil's.
  std::mutex mu_;
  std::vector<Request> requests_;  // Guarded by mu_, as all below.
  // Requests before it were given to the engine.
  int next_input_ = 0;
  bool is_cancelled_ = false;
};

}  // namespace quire

#endif  // QUIRE_SERVER_EMBEDDING_CALL_H_
