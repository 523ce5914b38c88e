#include "server/verify_link.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "engine/base/memory_reserve.h"
#include "engine/base/status.h"
#include "server/api_error.h"
#include "server/call.h"
#include "server/load_shedder.h"
#include "server/request_gate.h"

namespace quire {
namespace {

constexpr size_t kMaxNamespaceBytes = 512;
// As the API's own limits (openai_api.cc).
constexpr int32_t kMaxLogprobs = 20;
constexpr size_t kMaxListLength = 65536;
constexpr size_t kMaxSequences = 1 << 16;
constexpr int64_t kMaxScores = 1 << 22;

void SendError(int http_status, absl::string_view message,
               const std::shared_ptr<HttpResponder>& responder,
               const HttpHeaders& headers = {}) {
  responder->Send(http_status, "application/json",
                  ErrorBody(http_status, message), headers);
}

// A name from an edge, for the log.
std::string Printable(absl::string_view name) {
  std::string result(name.substr(0, 100));
  for (char& c : result) {
    if (!absl::ascii_isprint(c)) c = '?';
  }
  return result;
}

// An error for an edge's user.
absl::Status Shortened(const absl::Status& error) {
  absl::Status result(error.code(),
                      std::string(error.message().substr(0, 2048)));
  if (const std::string wait = RetryAfter(error); !wait.empty()) {
    result.SetPayload(kRetryAfterPayload, absl::Cord(wait));
  }
  return result;
}

}  // namespace

absl::Status CheckLinkRequest(const Request& request, int vocab_size) {
  const auto fail = [](absl::string_view name) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is out of range"));
  };
  const SamplingParams& s = request.sampling;
  const struct {
    const char* name;
    double value, min, max;
  } ranges[] = {
      {"temperature", s.temperature, 0, 2},
      {"top_p", s.top_p, 1e-38, 1},
      {"min_p", s.min_p, 0, 1},
      {"top_k", static_cast<double>(s.top_k), 0, 2147483647.0},
      {"presence_penalty", s.presence_penalty, -2, 2},
      {"frequency_penalty", s.frequency_penalty, -2, 2},
      {"repetition_penalty", s.repetition_penalty, 1e-6f, 10},
      {"logprobs", static_cast<double>(s.num_logprobs), -1, kMaxLogprobs},
      {"prompt_logprobs", static_cast<double>(s.num_prompt_logprobs), -1,
       kMaxLogprobs},
      {"dry_multiplier", s.dry_multiplier, 0, 1000},
      {"dry_base", s.dry_base, 1, 1000},
      {"dry_allowed_length", static_cast<double>(s.dry_allowed_length), 0,
       2147483647.0},
      {"dry_penalty_last_n", static_cast<double>(s.dry_penalty_last_n), -1,
       2147483647.0},
      {"dynatemp_range", s.dynatemp_range, 0, 10},
      {"dynatemp_exponent", s.dynatemp_exponent, 0, 100},
      {"top_n_sigma", s.top_n_sigma, 0, 1000},
      {"typical_p", s.typical_p, 0, 1},
      {"xtc_probability", s.xtc_probability, 0, 1},
      {"xtc_threshold", s.xtc_threshold, 0, 1},
  };
  for (const auto& range : ranges) {
    if (!(range.value >= range.min && range.value <= range.max)) {
      return fail(range.name);
    }
  }
  for (const auto& [id, bias] : s.logit_bias) {
    if (!(bias >= -100 && bias <= 100)) return fail("logit_bias");
  }
  if (s.logit_bias.size() > kMaxListLength ||
      s.allowed_token_ids.size() > kMaxListLength ||
      s.stop_token_ids.size() > kMaxListLength) {
    return absl::InvalidArgumentError("a list of token ids is too long");
  }
  if (s.bad_words != nullptr && s.bad_words->size() > kMaxSequences) {
    return fail("bad_words");
  }
  if (s.dry_breakers != nullptr &&
      (s.dry_breakers->sequences().size() > kMaxSequences ||
       s.dry_breakers->max_id() >= vocab_size)) {
    return fail("dry_sequence_breakers");
  }
  if (s.num_prompt_logprobs >= 0 &&
      int64_t{s.num_prompt_logprobs + 1} *
              static_cast<int64_t>(request.prompt_token_ids.size()) >
          kMaxScores) {
    return fail("prompt_logprobs");
  }
  if (request.kind != RequestKind::kGenerate) {
    return absl::InvalidArgumentError("a link carries no embeddings");
  }
  if (request.cache_namespace.size() > kMaxNamespaceBytes) {
    return fail("cache_salt");
  }
  return absl::OkStatus();
}

struct VerifyLink::Counters {
  std::atomic<int> num_links{0};
  std::atomic<int64_t> num_opened{0}, num_refused{0}, num_cut_off{0},
      num_requests{0}, num_draft_tokens{0};
};

// One edge. OnBytes runs on the socket thread, the calls' methods on the output
// thread; what they share is under mu_.
class VerifyLink::Session : public std::enable_shared_from_this<Session> {
 public:
  Session(const VerifyLinkOptions& options, const VerifyLinkModel& model,
          const HttpServer* http, const HttpRequest& request,
          std::shared_ptr<HttpResponder> responder,
          std::shared_ptr<Counters> counters)
      : options_(options),
        model_(model),
        http_(http),
        authorization_(request.Header("authorization")),
        owner_(request.owner),
        responder_(std::move(responder)),
        counters_(std::move(counters)),
        frame_credit_(options.max_frames_per_second),
        credited_at_(Clock::Monotonic()->Now()) {
    ++counters_->num_links;
  }
  ~Session() { --counters_->num_links; }

  // False: the edge does not keep to the protocol.
  bool OnBytes(absl::string_view bytes) {
    reader_.Append(bytes);
    for (;;) {
      const auto frame = reader_.Next();
      if (frame.ok() && !frame->has_value()) return true;
      absl::Status status = frame.status();
      if (status.ok()) status = CountFrame();
      if (status.ok()) {
        status = is_greeted_ ? HandleFrame((*frame)->type, (*frame)->payload)
                             : Greet((*frame)->type, (*frame)->payload);
      }
      if (status.ok()) continue;
      ++counters_->num_cut_off;
      Notice(absl::StrCat("is cut off: ", status.message()));
      return false;
    }
  }

  void OnDisconnect() {
    std::vector<RequestId> ids;
    {
      std::lock_guard<std::mutex> lock(mu_);
      is_gone_ = true;
      for (const auto& [edge_id, id] : ids_) ids.push_back(id);
    }
    for (const RequestId id : ids) model_.engine->Abort(id);
    if (is_greeted_) Notice("has gone");
  }

  void Write(std::string frames) { responder_->Write(std::move(frames)); }

  // The request has ended.
  void Remove(RequestId edge_id) {
    std::lock_guard<std::mutex> lock(mu_);
    const auto found = ids_.find(edge_id);
    if (found == ids_.end()) return;
    if (model_.drafter != nullptr) model_.drafter->Close(found->second);
    ids_.erase(found);
  }

 private:
  absl::Status CountFrame() {
    const absl::Time now = Clock::Monotonic()->Now();
    frame_credit_ =
        std::min(options_.max_frames_per_second,
                 frame_credit_ + absl::ToDoubleSeconds(now - credited_at_) *
                                     options_.max_frames_per_second);
    credited_at_ = now;
    frame_credit_ -= 1;
    return frame_credit_ >= 0
               ? absl::OkStatus()
               : absl::ResourceExhaustedError("it sends too many frames");
  }

  void Notice(absl::string_view what) const {
    if (!options_.on_notice) return;
    options_.on_notice(absl::StrCat("edge ", name_, " ", what));
  }

  absl::Status Greet(LinkFrameType type, absl::string_view payload) {
    if (type != LinkFrameType::kHello) {
      return absl::InvalidArgumentError("it said no Hello");
    }
    QUIRE_ASSIGN_OR_RETURN(const LinkPeer edge, ParseHello(payload));
    name_ = Printable(edge.model_name);
    if (owner_ != nullptr && !owner_->name.empty()) {
      absl::StrAppend(&name_, " (key ", Printable(owner_->name), ")");
    }
    LinkPeer printable = edge;
    printable.model_name = Printable(edge.model_name);
    printable.software_version = Printable(edge.software_version);
    if (const absl::Status fits = CheckPeers(printable, model_.peer);
        !fits.ok()) {
      Refuse(edge, fits);
      return absl::OkStatus();
    }
    std::string answer;
    is_greeted_ = true;
    ++counters_->num_opened;
    AppendWelcome(model_.peer, &answer);
    Write(std::move(answer));
    Notice(absl::StrCat("is linked (quire ", Printable(edge.software_version),
                        ")"));
    return absl::OkStatus();
  }

  void Refuse(const LinkPeer& edge, const absl::Status& reason) {
    LinkRefusal refusal = {reason, {}};
    const int32_t first_id =
        FirstDifferentRange(edge.vocabulary, model_.peer.vocabulary);
    if (first_id >= 0 && model_.token_text != nullptr) {
      refusal.vocabulary = TakeVocabularyPart(first_id, model_.token_text);
    }
    ++counters_->num_refused;
    std::string answer;
    AppendRefusal(refusal, &answer);
    Write(std::move(answer));
    responder_->Finish();
    Notice(absl::StrCat("is refused: ", reason.message()));
    is_refused_ = is_greeted_ = true;
  }

  absl::Status HandleFrame(LinkFrameType type, absl::string_view payload) {
    if (is_refused_) return absl::OkStatus();  // It has not heard yet.
    switch (type) {
      case LinkFrameType::kSubmit: {
        QUIRE_ASSIGN_OR_RETURN(Request request,
                               ParseSubmit(payload, Clock::Monotonic()->Now()));
        ++counters_->num_requests;
        Submit(std::move(request));
        return absl::OkStatus();
      }
      case LinkFrameType::kAbort: {
        QUIRE_ASSIGN_OR_RETURN(const LinkAbort abort, ParseAbort(payload));
        if (const auto id = FindId(abort.request_id)) {
          model_.engine->Abort(*id, abort.choice_idx, abort.reason_is_stop);
        }
        return absl::OkStatus();
      }
      case LinkFrameType::kDrafts: {
        QUIRE_ASSIGN_OR_RETURN(const LinkDrafts drafts, ParseDrafts(payload));
        counters_->num_draft_tokens += drafts.token_ids.size();
        const auto id = FindId(drafts.request_id);
        if (id.has_value() && model_.drafter != nullptr) {
          model_.drafter->Put(*id, drafts);
        }
        return absl::OkStatus();
      }
      case LinkFrameType::kPing: {
        QUIRE_ASSIGN_OR_RETURN(const LinkPing ping, ParsePing(payload));
        std::string answer;
        AppendPing(LinkFrameType::kPong, ping, &answer);
        Write(std::move(answer));
        return absl::OkStatus();
      }
      default:
        return absl::InvalidArgumentError(
            absl::StrCat("it sent a frame of type ", static_cast<int>(type)));
    }
  }

  std::optional<RequestId> FindId(RequestId edge_id) {
    std::lock_guard<std::mutex> lock(mu_);
    const auto found = ids_.find(edge_id);
    if (found == ids_.end()) return std::nullopt;
    return found->second;
  }

  void Submit(Request request);
  // OK if the edge may have one more.
  absl::StatusOr<std::shared_ptr<KeyTicket>> Admit(const Request& request,
                                                   const ApiKeyOwner* owner);
  // Of a request that was not accepted.
  void SendFailure(RequestId edge_id, const absl::Status& error);

  const VerifyLinkOptions options_;
  const VerifyLinkModel model_;
  const HttpServer* const http_;  // Whose socket thread calls.
  // A link lives longer than keys do: each request is its key's of then.
  const std::string authorization_;
  const std::shared_ptr<const ApiKeyOwner> owner_;  // When it was opened.
  const std::shared_ptr<HttpResponder> responder_;
  const std::shared_ptr<Counters> counters_;
  // Of the socket thread.
  LinkFrameReader reader_;
  bool is_greeted_ = false;
  bool is_refused_ = false;
  std::string name_ = "(unknown)";
  double frame_credit_;
  absl::Time credited_at_;

  std::mutex mu_;
  bool is_gone_ = false;                           // Guarded by mu_.
  absl::flat_hash_map<RequestId, RequestId> ids_;  // The edge's to ours.
};

// One request of an edge.
class VerifyLink::LinkCall : public Call {
 public:
  LinkCall(RequestId edge_id, int n, std::shared_ptr<KeyTicket> ticket,
           std::shared_ptr<Session> session)
      : edge_id_(edge_id),
        ticket_(std::move(ticket)),
        session_(std::move(session)),
        reasons_(n),
        num_open_(n) {}

  void Start() override {}

  bool Append(int choice_idx, const OutputEvent& event) override {
    if (ticket_ != nullptr) ticket_->CountTokens(event.tokens.size());
    if (is_complete_ || reasons_[choice_idx].has_value()) return false;
    OutputEvent sent = event;
    sent.request_id = edge_id_;
    if (!AppendEvent(sent, &out_)) {
      Fail(absl::InternalError("an event is too large for the link"));
      return true;
    }
    if (event.finish_reason.has_value()) EndChoice(choice_idx, event);
    return false;
  }

  void Flush() override {
    if (!out_.empty()) session_->Write(std::exchange(out_, {}));
  }

  void Fail(const absl::Status& error) override {
    if (is_complete_) return;
    for (size_t i = 0; i < reasons_.size(); ++i) {
      if (reasons_[i].has_value()) continue;
      OutputEvent event;
      event.request_id = edge_id_;
      event.choice_idx = static_cast<int32_t>(i);
      event.finish_reason = FinishReason::kError;
      event.error = Shortened(error);
      event.is_last = num_open_ == 1;
      AppendEvent(event, &out_);
      --num_open_;
    }
    Complete();
    Flush();
  }

  void AddCachedTokens(int) override {}
  bool is_complete() const override { return is_complete_; }
  std::optional<FinishReason> finish_reason(int choice_idx) const override {
    return reasons_[choice_idx];
  }

 private:
  void EndChoice(int choice_idx, const OutputEvent& event) {
    reasons_[choice_idx] = event.finish_reason;
    if (--num_open_ == 0) Complete();
  }

  // Before the edge can know of the end, so that another request may follow.
  void Complete() {
    is_complete_ = true;
    if (ticket_ != nullptr) ticket_->Release();
    session_->Remove(edge_id_);
  }

  const RequestId edge_id_;
  const std::shared_ptr<KeyTicket> ticket_;
  const std::shared_ptr<Session> session_;
  std::vector<std::optional<FinishReason>> reasons_;  // [n]
  int num_open_;
  std::string out_;
  bool is_complete_ = false;
};

absl::StatusOr<std::shared_ptr<KeyTicket>> VerifyLink::Session::Admit(
    const Request& request, const ApiKeyOwner* owner) {
  QUIRE_RETURN_IF_ERROR(CheckLinkRequest(request, model_.peer.vocab_size));
  if (request.priority != 0 && !model_.has_priorities) {
    return absl::InvalidArgumentError(
        "'priority' needs a cloud that was started with --scheduling-policy "
        "priority");
  }
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (ids_.contains(request.id)) {
      return absl::AlreadyExistsError("the request's id is in use");
    }
    if (static_cast<int>(ids_.size()) >= options_.max_requests_per_link) {
      return absl::UnavailableError(
          absl::StrCat("the link has ", ids_.size(), " requests, the limit is ",
                       options_.max_requests_per_link));
    }
  }
  if (!RefillMemoryReserve()) {
    return absl::UnavailableError("the server is short of memory");
  }
  if (model_.gate != nullptr) {
    RequestTraits traits;
    traits.has_extras =
        request.n > 1 || request.sampling.num_prompt_logprobs >= 0;
    traits.priority = request.priority;
    model_.gate->Update(model_.engine->Stats());
    QUIRE_RETURN_IF_ERROR(model_.gate->Check(traits, *model_.engine));
  }
  if (owner == nullptr || model_.limiter == nullptr) return nullptr;
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<KeyTicket> ticket,
                         model_.limiter->Admit(*owner));
  return ticket;
}

void VerifyLink::Session::SendFailure(RequestId edge_id,
                                      const absl::Status& error) {
  OutputEvent event;
  event.request_id = edge_id;
  event.finish_reason = FinishReason::kError;
  event.error = Shortened(error);
  event.is_last = true;
  std::string out;
  AppendEvent(event, &out);
  Write(std::move(out));
}

void VerifyLink::Session::Submit(Request request) {
  const RequestId edge_id = request.id;
  const auto owner = http_->Authenticate(authorization_);
  if (owner == nullptr) {
    return SendFailure(
        edge_id, absl::UnauthenticatedError("the API key is no longer valid"));
  }
  auto ticket = Admit(request, owner.get());
  if (!ticket.ok()) return SendFailure(edge_id, ticket.status());
  // Before anything is allocated for its choices.
  if (request.n < 1 || request.n > 128) {
    return SendFailure(edge_id,
                       absl::InvalidArgumentError("'n' is out of range"));
  }
  const RequestId id = model_.engine->NewRequestId();
  request.id = id;
  request.arrival_time = Clock::Monotonic()->Now();
  if (model_.gate != nullptr) {
    request.deadline =
        model_.gate->Deadline(request.arrival_time, request.deadline);
  }
  // As for requests of the API: keys do not share a cache.
  request.cache_namespace =
      absl::StrCat(owner->name, "\n", request.cache_namespace);
  SetShare(owner.get(), &request);
  request.continues_call = false;
  const int n = request.n;
  const int64_t num_prompt_tokens = request.prompt_token_ids.size();
  std::vector<CallPart> parts = {{id, 0, n, request.sampling.max_tokens,
                                  num_prompt_tokens, request.arrival_time}};
  auto call =
      std::make_shared<LinkCall>(edge_id, n, *ticket, shared_from_this());
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (is_gone_) return;
    ids_[edge_id] = id;
  }
  if (model_.drafter != nullptr) model_.drafter->Open(id, n);
  model_.output->Register(call, parts);
  const absl::Status status = model_.engine->Submit(std::move(request));
  if (!status.ok()) {
    model_.output->Reject(call, 0, parts, SubmitRefusal(status));
    return;
  }
  if (*ticket != nullptr) (*ticket)->CountTokens(num_prompt_tokens);
  model_.output->Accept(call);
  // It may have gone between the look above and the engine's taking it.
  bool is_gone = false;
  {
    std::lock_guard<std::mutex> lock(mu_);
    is_gone = is_gone_;
  }
  if (is_gone) model_.engine->Abort(id);
}

VerifyLink::VerifyLink(HttpServer* http, const VerifyLinkOptions& options)
    : http_(http), options_(options), counters_(std::make_shared<Counters>()) {
  http->AddRoute("GET", kLinkPath, RouteAccess::kApi,
                 [this](const HttpRequest& request,
                        std::shared_ptr<HttpResponder> responder) {
                   Handle(request, responder);
                 });
}

VerifyLink::~VerifyLink() = default;

void VerifyLink::Serve(const VerifyLinkModel& model) {
  model_ = model;
  is_serving_ = true;
}

VerifyLinkStats VerifyLink::Stats() const {
  VerifyLinkStats stats;
  stats.num_links = counters_->num_links;
  stats.num_opened = counters_->num_opened;
  stats.num_refused = counters_->num_refused;
  stats.num_cut_off = counters_->num_cut_off;
  stats.num_requests = counters_->num_requests;
  stats.num_draft_tokens = counters_->num_draft_tokens;
  return stats;
}

void VerifyLink::Handle(const HttpRequest& request,
                        const std::shared_ptr<HttpResponder>& responder) {
  if (request.method != "GET" ||
      !absl::EqualsIgnoreCase(request.upgrade, kLinkProtocol)) {
    return SendError(
        426,
        absl::StrCat("this path is for edges, with Upgrade: ", kLinkProtocol),
        responder, {{"Upgrade", kLinkProtocol}, {"Connection", "Upgrade"}});
  }
  if (!is_serving_) {
    return SendError(503, "the model is being loaded", responder,
                     {{"Retry-After", "1"}});
  }
  if (num_links() >= options_.max_links) {
    return SendError(503, "too many links", responder, {{"Retry-After", "1"}});
  }
  const auto session = std::make_shared<Session>(options_, model_, http_,
                                                 request, responder, counters_);
  HttpUpgrade upgrade;
  upgrade.protocol = kLinkProtocol;
  upgrade.max_buffered_bytes = options_.max_buffered_bytes;
  upgrade.idle_timeout = options_.silence_timeout;
  // The session holds the responder and the connection these; they go when it
  // is closed.
  upgrade.on_bytes = [session](absl::string_view bytes) {
    return session->OnBytes(bytes);
  };
  responder->OnDisconnect([session] { session->OnDisconnect(); });
  responder->Upgrade(std::move(upgrade));
}

}  // namespace quire
