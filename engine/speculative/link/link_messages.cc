#include "engine/speculative/link/link_messages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Names, and the digests of the longest vocabulary's prefixes.
constexpr size_t kMaxPeerBytes = 16 << 10;
constexpr size_t kMaxPrefixes = 1024;
// A reason, and texts of a part of a vocabulary, some tens of bytes each.
constexpr size_t kMaxRefusalBytes = 64 << 10;
constexpr size_t kMaxRefusalTextBytes = 48 << 10;
constexpr size_t kMaxReasonBytes = 2048;
constexpr size_t kMaxVersionBytes = 256;
constexpr size_t kMaxNameBytes = 1024;
// A prompt of a million tokens, with its lists.
constexpr size_t kMaxSubmitBytes = 8 << 20;
constexpr size_t kMaxDraftsBytes = 32 + kMaxLinkDrafts * 8;
// A chunk of a scored prompt with its top entries.
constexpr size_t kMaxEventBytes = 16 << 20;
// Ids are at most those of a vocabulary: sets of them take memory for each.
constexpr int32_t kMaxTokenId = 1 << 20;
static_assert(kMaxPrefixes * kVocabularyRange >= size_t{kMaxTokenId});
constexpr int64_t kNoDeadline = std::numeric_limits<int64_t>::max();

template <int kNumBytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = uint8_t;
};
template <>
struct UnsignedOf<4> {
  using type = uint32_t;
};
template <>
struct UnsignedOf<8> {
  using type = uint64_t;
};

class Writer {
 public:
  static constexpr bool kIsReader = false;
  explicit Writer(std::string* out) : out_(out) {}

  template <typename T>
  void Number(const T& value) {
    using Unsigned = typename UnsignedOf<sizeof(T)>::type;
    const Unsigned bits = std::bit_cast<Unsigned>(value);
    for (size_t i = 0; i < sizeof(T); ++i) {
      out_->push_back(static_cast<char>(bits >> (8 * i)));
    }
  }
  void Bool(const bool& value) { Number<uint8_t>(value ? 1 : 0); }
  void Text(const std::string& value) {
    Number<uint32_t>(static_cast<uint32_t>(value.size()));
    *out_ += value;
  }
  template <typename T, typename Visitor>
  void List(const std::vector<T>& values, size_t /*min_bytes_each*/,
            const Visitor& visit) {
    Number<uint32_t>(static_cast<uint32_t>(values.size()));
    // Visitors serve both directions, so they take what a reader may change.
    for (const T& value : values) visit(const_cast<T&>(value));
  }

 private:
  std::string* const out_;
};

// After the first thing that is wrong, everything reads as zero or empty.
class Reader {
 public:
  static constexpr bool kIsReader = true;
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  // Nothing was wrong, and nothing is left over.
  bool AtEnd() const { return ok_ && bytes_.empty(); }
  void Fail() {
    ok_ = false;
    bytes_ = {};
  }

  template <typename T>
  void Number(T& value) {
    using Unsigned = typename UnsignedOf<sizeof(T)>::type;
    if (bytes_.size() < sizeof(T)) Fail();
    Unsigned bits = 0;
    if (ok_) {
      for (size_t i = 0; i < sizeof(T); ++i) {
        bits |= static_cast<Unsigned>(
            Unsigned{static_cast<unsigned char>(bytes_[i])} << (8 * i));
      }
      bytes_.remove_prefix(sizeof(T));
    }
    value = std::bit_cast<T>(bits);
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(value)) Fail();
    }
  }
  void Bool(bool& value) {
    uint8_t byte = 0;
    Number(byte);
    if (byte > 1) Fail();
    value = byte == 1;
  }
  void Text(std::string& value) {
    const size_t size = Count(1);
    value.assign(bytes_.data(), size);
    bytes_.remove_prefix(size);
  }
  template <typename T, typename Visitor>
  void List(std::vector<T>& values, size_t min_bytes_each,
            const Visitor& visit) {
    const size_t size = Count(min_bytes_each);
    values.clear();
    values.reserve(size);
    for (size_t i = 0; i < size && ok_; ++i) visit(values.emplace_back());
  }

 private:
  size_t Count(size_t min_bytes_each) {
    uint32_t count = 0;
    Number(count);
    if (count > bytes_.size() / min_bytes_each) Fail();
    return ok_ ? count : 0;
  }

  absl::string_view bytes_;
  bool ok_ = true;
};

template <typename Wire>
void VisitId(Wire& wire, int32_t& id) {
  wire.Number(id);
  if constexpr (Wire::kIsReader) {
    if (id < 0 || id >= kMaxTokenId) wire.Fail();
  }
}

template <typename Wire>
void VisitIds(Wire& wire, std::vector<int32_t>& ids) {
  wire.List(ids, 4, [&wire](int32_t& id) { VisitId(wire, id); });
}

using TokenSequences = std::vector<std::vector<int32_t>>;

template <typename Wire>
void VisitSequences(Wire& wire, TokenSequences& sequences) {
  wire.List(sequences, 8, [&wire](std::vector<int32_t>& ids) {
    VisitIds(wire, ids);
    // What bad words and breakers may be; the set's constructor relies on it.
    if constexpr (Wire::kIsReader) {
      if (ids.empty()) wire.Fail();
    }
  });
}

template <typename Wire>
void VisitBadWords(Wire& wire, std::shared_ptr<const TokenSequences>& words) {
  bool has_value = words != nullptr;
  wire.Bool(has_value);
  if (!has_value) return;
  TokenSequences sequences;
  if constexpr (!Wire::kIsReader) sequences = *words;
  VisitSequences(wire, sequences);
  if constexpr (Wire::kIsReader) {
    words = std::make_shared<TokenSequences>(std::move(sequences));
  }
}

template <typename Wire>
void VisitBreakers(Wire& wire, std::shared_ptr<const TokenSequenceSet>& set) {
  bool has_value = set != nullptr;
  wire.Bool(has_value);
  if (!has_value) return;
  TokenSequences sequences;
  if constexpr (!Wire::kIsReader) {
    sequences.assign(set->sequences().begin(), set->sequences().end());
  }
  VisitSequences(wire, sequences);
  if constexpr (Wire::kIsReader) {
    if (wire.ok()) set = std::make_shared<TokenSequenceSet>(sequences);
  }
}

template <typename Wire>
void VisitSampling(Wire& wire, SamplingParams& params) {
  // Does not compile once there is another field.
  auto& [temperature, top_p, min_p, top_k, presence_penalty, frequency_penalty,
         repetition_penalty, seed, max_tokens, min_tokens, ignore_eos,
         stop_token_ids, num_logprobs, num_prompt_logprobs, logit_bias,
         allowed_token_ids, bad_words, dry_multiplier, dry_base,
         dry_allowed_length, dry_penalty_last_n, dry_breakers, dynatemp_range,
         dynatemp_exponent, top_n_sigma, typical_p, xtc_probability,
         xtc_threshold] = params;
  for (float* number :
       {&temperature, &top_p, &min_p, &presence_penalty, &frequency_penalty,
        &repetition_penalty, &dry_multiplier, &dry_base, &dynatemp_range,
        &dynatemp_exponent, &top_n_sigma, &typical_p, &xtc_probability,
        &xtc_threshold}) {
    wire.Number(*number);
    if constexpr (Wire::kIsReader) {
      if (!std::isfinite(*number)) wire.Fail();
    }
  }
  for (int32_t* number :
       {&top_k, &max_tokens, &min_tokens, &num_logprobs, &num_prompt_logprobs,
        &dry_allowed_length, &dry_penalty_last_n}) {
    wire.Number(*number);
  }
  wire.Bool(ignore_eos);
  bool has_seed = seed.has_value();
  wire.Bool(has_seed);
  if (has_seed) {
    if constexpr (Wire::kIsReader) seed.emplace(0);
    wire.Number(*seed);
  }
  VisitIds(wire, stop_token_ids);
  VisitIds(wire, allowed_token_ids);
  wire.List(logit_bias, 8, [&wire](std::pair<int32_t, float>& bias) {
    VisitId(wire, bias.first);
    wire.Number(bias.second);
  });
  VisitBadWords(wire, bad_words);
  VisitBreakers(wire, dry_breakers);
}

template <typename Wire>
void VisitRequest(Wire& wire, absl::Time now, Request& request) {
  wire.Number(request.id);
  uint8_t kind = static_cast<uint8_t>(request.kind);
  wire.Number(kind);
  if constexpr (Wire::kIsReader) {
    if (kind > static_cast<uint8_t>(RequestKind::kEmbed)) wire.Fail();
    request.kind = wire.ok() ? RequestKind{kind} : RequestKind::kGenerate;
  }
  VisitIds(wire, request.prompt_token_ids);
  VisitSampling(wire, request.sampling);
  wire.Number(request.n);
  wire.Text(request.cache_namespace);
  wire.Number(request.priority);
  wire.Bool(request.continues_call);
  // Clocks differ: what is left of the time travels.
  int64_t micros = request.deadline == absl::InfiniteFuture()
                       ? kNoDeadline
                       : absl::ToInt64Microseconds(request.deadline - now);
  wire.Number(micros);
  if constexpr (Wire::kIsReader) {
    request.deadline = micros == kNoDeadline ? absl::InfiniteFuture()
                                             : now + absl::Microseconds(micros);
  }
}

template <typename Wire>
void VisitTokenOutput(Wire& wire, TokenOutput& token) {
  VisitId(wire, token.token_id);
  wire.Number(token.logprob);
  wire.Number(token.rank);
  wire.List(token.top_logprobs, 8, [&wire](TopLogprob& top) {
    VisitId(wire, top.token_id);
    wire.Number(top.logprob);
  });
}
constexpr size_t kMinTokenOutputBytes = 16;

constexpr uint32_t kMaxRetrySeconds = 1'000'000;

uint32_t RetrySeconds(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterPayload);
  uint32_t seconds = 0;
  if (!payload.has_value() ||
      !absl::SimpleAtoi(std::string(*payload), &seconds)) {
    return 0;
  }
  return std::min(seconds, kMaxRetrySeconds);
}

template <typename Wire>
void VisitStatus(Wire& wire, absl::Status& status) {
  int32_t code = static_cast<int32_t>(status.code());
  std::string message(status.message());
  // Seconds until it may be tried again; 0: not said.
  uint32_t retry_after = 0;
  if constexpr (!Wire::kIsReader) retry_after = RetrySeconds(status);
  wire.Number(code);
  wire.Text(message);
  wire.Number(retry_after);
  if constexpr (Wire::kIsReader) {
    if (code < 0 ||
        code > static_cast<int32_t>(absl::StatusCode::kUnauthenticated) ||
        retry_after > kMaxRetrySeconds ||
        (code == 0 && (retry_after != 0 || !message.empty()))) {
      wire.Fail();
      return;
    }
    status = absl::Status(static_cast<absl::StatusCode>(code), message);
    if (retry_after > 0) {
      status.SetPayload(kRetryAfterPayload,
                        absl::Cord(absl::StrCat(retry_after)));
    }
  }
}

template <typename Wire>
void VisitEvent(Wire& wire, OutputEvent& event) {
  wire.Number(event.request_id);
  wire.Number(event.choice_idx);
  const auto visit_token = [&wire](TokenOutput& token) {
    VisitTokenOutput(wire, token);
  };
  wire.List(event.tokens, kMinTokenOutputBytes, visit_token);
  wire.List(event.prompt_tokens, kMinTokenOutputBytes, visit_token);
  // 0: none; else one more than the reason.
  uint8_t reason = event.finish_reason.has_value()
                       ? static_cast<uint8_t>(*event.finish_reason) + 1
                       : 0;
  wire.Number(reason);
  bool has_stop_token = event.stop_token_id.has_value();
  wire.Bool(has_stop_token);
  int32_t stop_token_id = event.stop_token_id.value_or(0);
  VisitId(wire, stop_token_id);
  wire.Bool(event.is_last);
  VisitStatus(wire, event.error);
  wire.Number(event.num_draft_tokens);
  wire.Number(event.num_accepted_tokens);
  wire.Number(event.num_cached_tokens);
  if constexpr (Wire::kIsReader) {
    if (reason > static_cast<uint8_t>(FinishReason::kError) + 1 ||
        event.choice_idx < 0 || (!has_stop_token && stop_token_id != 0)) {
      wire.Fail();
    }
    if (wire.ok() && reason > 0) event.finish_reason = FinishReason(reason - 1);
    if (has_stop_token) event.stop_token_id = stop_token_id;
    // An end by an error has one, and only that.
    if ((event.finish_reason == FinishReason::kError) == event.error.ok()) {
      wire.Fail();
    }
  }
}

template <typename Wire>
void VisitPeer(Wire& wire, LinkPeer& peer) {
  wire.Text(peer.software_version);
  wire.Text(peer.model_name);
  wire.Number(peer.vocabulary.num_tokens);
  wire.Number(peer.vocabulary.high);
  wire.Number(peer.vocabulary.low);
  wire.List(peer.vocabulary.prefixes, 8,
            [&wire](uint64_t& prefix) { wire.Number(prefix); });
  wire.Number(peer.num_parameters);
  wire.Number(peer.max_model_len);
  wire.Number(peer.vocab_size);
  wire.Number(peer.max_drafts);
}

template <typename Wire>
void VisitRefusal(Wire& wire, LinkRefusal& refusal) {
  VisitStatus(wire, refusal.reason);
  wire.Number(refusal.vocabulary.first_id);
  wire.List(refusal.vocabulary.texts, 4,
            [&wire](std::string& text) { wire.Text(text); });
}

template <typename Wire>
void VisitDrafts(Wire& wire, LinkDrafts& drafts) {
  wire.Number(drafts.request_id);
  wire.Number(drafts.choice_idx);
  wire.Number(drafts.chain_no);
  wire.Number(drafts.num_generated);
  VisitIds(wire, drafts.token_ids);
  wire.List(drafts.probabilities, 4,
            [&wire](float& probability) { wire.Number(probability); });
}

absl::Status Malformed(absl::string_view name) {
  return absl::InvalidArgumentError(
      absl::StrCat("verify link: malformed message ", name));
}

// A text that fits where texts are short.
std::string Shortened(absl::string_view text, size_t max_bytes) {
  return std::string(text.substr(0, max_bytes));
}

// Appends a frame of what `visit` writes; false if it is too large.
template <typename Visitor>
bool AppendFrame(LinkFrameType type, const Visitor& visit, std::string* out) {
  const size_t begin = out->size();
  Writer writer(out);
  writer.Number<uint32_t>(0);
  writer.Number(static_cast<uint8_t>(type));
  visit(writer);
  const size_t num_bytes = out->size() - begin - kLinkHeaderBytes;
  if (num_bytes > MaxLinkPayload(type)) {
    out->resize(begin);
    return false;
  }
  for (int i = 0; i < 4; ++i) {
    (*out)[begin + i] = static_cast<char>(num_bytes >> (8 * i));
  }
  return true;
}

LinkPeer ShortenedPeer(const LinkPeer& peer) {
  LinkPeer copy = peer;
  copy.software_version = Shortened(peer.software_version, kMaxVersionBytes);
  copy.model_name = Shortened(peer.model_name, kMaxNameBytes);
  if (copy.vocabulary.prefixes.size() > kMaxPrefixes) {
    copy.vocabulary.prefixes.resize(kMaxPrefixes);
  }
  return copy;
}

absl::StatusOr<LinkPeer> ParsePeer(absl::string_view payload,
                                   absl::string_view name) {
  Reader reader(payload);
  LinkPeer peer;
  VisitPeer(reader, peer);
  if (!reader.AtEnd() || peer.vocabulary.num_tokens < 0 ||
      peer.vocabulary.prefixes.size() > kMaxPrefixes ||
      peer.software_version.size() > kMaxVersionBytes ||
      peer.model_name.size() > kMaxNameBytes || peer.num_parameters < 0 ||
      peer.max_model_len < 0 || peer.vocab_size < 0 ||
      peer.vocab_size > kMaxTokenId || peer.max_drafts < 0 ||
      peer.max_drafts > kMaxLinkDrafts) {
    return Malformed(name);
  }
  return peer;
}

}  // namespace

size_t MaxLinkPayload(LinkFrameType type) {
  switch (type) {
    case LinkFrameType::kHello:
    case LinkFrameType::kWelcome:
      return kMaxPeerBytes;
    case LinkFrameType::kRefusal:
      return kMaxRefusalBytes;
    case LinkFrameType::kSubmit:
      return kMaxSubmitBytes;
    case LinkFrameType::kAbort:
      return 13;
    case LinkFrameType::kDrafts:
      return kMaxDraftsBytes;
    case LinkFrameType::kEvent:
      return kMaxEventBytes;
    case LinkFrameType::kPing:
    case LinkFrameType::kPong:
      return 8;
  }
  return 0;
}

std::string ToString(const VocabularyDigest& digest) {
  return absl::StrFormat("%d tokens, %016x%016x", digest.num_tokens,
                         digest.high, digest.low);
}

void AppendHello(const LinkPeer& peer, std::string* out) {
  LinkPeer copy = ShortenedPeer(peer);
  AppendFrame(
      LinkFrameType::kHello, [&copy](Writer& w) { VisitPeer(w, copy); }, out);
}

void AppendWelcome(const LinkPeer& peer, std::string* out) {
  LinkPeer copy = ShortenedPeer(peer);
  AppendFrame(
      LinkFrameType::kWelcome, [&copy](Writer& w) { VisitPeer(w, copy); }, out);
}

void AppendRefusal(const LinkRefusal& refusal, std::string* out) {
  LinkRefusal copy;
  copy.reason =
      absl::Status(refusal.reason.code(),
                   Shortened(refusal.reason.message(), kMaxReasonBytes));
  copy.vocabulary.first_id = refusal.vocabulary.first_id;
  size_t num_bytes = 0;
  for (const std::string& text : refusal.vocabulary.texts) {
    std::string shortened = Shortened(text, kMaxLinkTokenBytes);
    num_bytes += 4 + shortened.size();
    if (num_bytes > kMaxRefusalTextBytes) break;
    copy.vocabulary.texts.push_back(std::move(shortened));
  }
  AppendFrame(
      LinkFrameType::kRefusal, [&copy](Writer& w) { VisitRefusal(w, copy); },
      out);
}

bool AppendSubmit(const Request& request, absl::Time now, std::string* out) {
  return AppendFrame(
      LinkFrameType::kSubmit,
      [&request, now](Writer& w) {
        VisitRequest(w, now, const_cast<Request&>(request));
      },
      out);
}

void AppendAbort(const LinkAbort& abort, std::string* out) {
  AppendFrame(
      LinkFrameType::kAbort,
      [&abort](Writer& w) {
        w.Number(abort.request_id);
        w.Number(abort.choice_idx);
        w.Bool(abort.reason_is_stop);
      },
      out);
}

void AppendDrafts(const LinkDrafts& drafts, std::string* out) {
  AppendFrame(
      LinkFrameType::kDrafts,
      [&drafts](Writer& w) { VisitDrafts(w, const_cast<LinkDrafts&>(drafts)); },
      out);
}

bool AppendEvent(const OutputEvent& event, std::string* out) {
  return AppendFrame(
      LinkFrameType::kEvent,
      [&event](Writer& w) { VisitEvent(w, const_cast<OutputEvent&>(event)); },
      out);
}

void AppendPing(LinkFrameType type, const LinkPing& ping, std::string* out) {
  AppendFrame(
      type, [&ping](Writer& w) { w.Number(ping.number); }, out);
}

absl::StatusOr<LinkPeer> ParseHello(absl::string_view payload) {
  return ParsePeer(payload, "Hello");
}

absl::StatusOr<LinkPeer> ParseWelcome(absl::string_view payload) {
  return ParsePeer(payload, "Welcome");
}

absl::StatusOr<LinkRefusal> ParseRefusal(absl::string_view payload) {
  Reader reader(payload);
  LinkRefusal refusal;
  VisitRefusal(reader, refusal);
  const VocabularyPart& part = refusal.vocabulary;
  bool is_valid = reader.AtEnd() && !refusal.reason.ok() &&
                  part.first_id >= 0 && part.first_id < kMaxTokenId &&
                  part.texts.size() <= size_t{kVocabularyRange} &&
                  refusal.reason.message().size() <= kMaxReasonBytes &&
                  // A refusal is for good: the edge decides when to try again.
                  !refusal.reason.GetPayload(kRetryAfterPayload).has_value();
  size_t num_bytes = 0;
  for (const std::string& text : part.texts) {
    is_valid = is_valid && text.size() <= kMaxLinkTokenBytes;
    num_bytes += 4 + text.size();
  }
  if (!is_valid || num_bytes > kMaxRefusalTextBytes)
    return Malformed("Refusal");
  return refusal;
}

absl::StatusOr<Request> ParseSubmit(absl::string_view payload, absl::Time now) {
  Reader reader(payload);
  Request request;
  VisitRequest(reader, now, request);
  if (!reader.AtEnd()) return Malformed("Submit");
  return request;
}

absl::StatusOr<LinkAbort> ParseAbort(absl::string_view payload) {
  Reader reader(payload);
  LinkAbort abort;
  reader.Number(abort.request_id);
  reader.Number(abort.choice_idx);
  reader.Bool(abort.reason_is_stop);
  if (!reader.AtEnd()) return Malformed("Abort");
  return abort;
}

absl::StatusOr<LinkDrafts> ParseDrafts(absl::string_view payload) {
  Reader reader(payload);
  LinkDrafts drafts;
  VisitDrafts(reader, drafts);
  const size_t count = drafts.token_ids.size();
  if (!reader.AtEnd() || count == 0 || count > kMaxLinkDrafts ||
      drafts.choice_idx < 0 || drafts.num_generated < 0 ||
      (!drafts.probabilities.empty() && drafts.probabilities.size() != count)) {
    return Malformed("Drafts");
  }
  for (const float probability : drafts.probabilities) {
    if (!(probability >= 0 && probability <= 1)) return Malformed("Drafts");
  }
  return drafts;
}

absl::StatusOr<OutputEvent> ParseEvent(absl::string_view payload) {
  Reader reader(payload);
  OutputEvent event;
  VisitEvent(reader, event);
  if (!reader.AtEnd()) return Malformed("Event");
  return event;
}

absl::StatusOr<LinkPing> ParsePing(absl::string_view payload) {
  Reader reader(payload);
  LinkPing ping;
  reader.Number(ping.number);
  if (!reader.AtEnd()) return Malformed("Ping");
  return ping;
}

void LinkFrameReader::Append(absl::string_view bytes) {
  // Once what was consumed is the larger part, so that each byte moves a
  // bounded number of times.
  if (num_consumed_ > buffer_.size() / 2) {
    buffer_.erase(0, num_consumed_);
    num_consumed_ = 0;
    // A large frame is rare: its memory goes with it.
    if (buffer_.empty()) std::string().swap(buffer_);
  }
  buffer_.append(bytes.data(), bytes.size());
}

absl::StatusOr<std::optional<LinkFrameReader::Frame>> LinkFrameReader::Next() {
  const absl::string_view rest =
      absl::string_view(buffer_).substr(num_consumed_);
  if (rest.size() < kLinkHeaderBytes) return std::nullopt;
  Reader reader(rest.substr(0, kLinkHeaderBytes));
  uint32_t num_bytes = 0;
  uint8_t type = 0;
  reader.Number(num_bytes);
  reader.Number(type);
  const size_t max_bytes = MaxLinkPayload(LinkFrameType{type});
  if (max_bytes == 0 || num_bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("verify link: a frame of type ", int{type}, " and ",
                     num_bytes, " bytes is none of the protocol"));
  }
  if (rest.size() < kLinkHeaderBytes + num_bytes) return std::nullopt;
  num_consumed_ += kLinkHeaderBytes + num_bytes;
  return Frame{LinkFrameType{type}, rest.substr(kLinkHeaderBytes, num_bytes)};
}

}  // namespace quire
