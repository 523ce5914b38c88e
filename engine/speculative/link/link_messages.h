// The protocol between an edge, which drafts and serves its users, and the
// cloud, which verifies (engine/DESIGN.md, "Edge and cloud").
//
// The edge opens one HTTP/1.1 connection (GET /v1/verify, Upgrade:
// quire-verify/2) and says Hello; the cloud answers Welcome or Refusal. Then
// all requests of the edge share the connection:
//
//   edge  -> cloud   Submit, Abort, Drafts, Ping
//   cloud -> edge    Event, Pong
//
// A frame on the wire, all numbers little-endian, floats as their IEEE 754
// bits, lists and texts behind their count:
//
//   +----------------+---------+----------------------+
//   | u32 num_bytes  | u8 type | payload [num_bytes]  |
//   +----------------+---------+----------------------+
//
// Both sides take the other for hostile: no length is believed before as many
// bytes are there, each type has a largest payload, and what is not exactly a
// message of its type is an error. Nothing but the tokens of a request depends
// on what the other side says.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_LINK_MESSAGES_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_LINK_MESSAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/request.h"

namespace quire {

// The name in the field Upgrade; a change of any layout changes the number.
inline constexpr char kLinkProtocol[] = "quire-verify/2";
inline constexpr char kLinkPath[] = "/v1/verify";

enum class LinkFrameType : uint8_t {
  kHello = 1,
  kWelcome,
  kRefusal,
  kSubmit,
  kAbort,
  kDrafts,
  kEvent,
  kPing,
  kPong,
};

inline constexpr size_t kLinkHeaderBytes = 5;
// The largest payload of a type; 0 for what is no type.
size_t MaxLinkPayload(LinkFrameType type);

// Drafts of one message, and drafts that are kept for one choice.
inline constexpr int kMaxLinkDrafts = 256;

// What must be equal on both sides for drafts to mean anything: the texts of
// all token ids. Ids without a text at the end, which pad a vocabulary, do not
// count (published pairs of models differ in them).
struct VocabularyDigest {
  int32_t num_tokens = 0;  // One more than the last id with a text.
  uint64_t high = 0, low = 0;
  // [k]: of the texts of ids [0, (k + 1) * kVocabularyRange), as far as there
  // are some. They tell where two vocabularies begin to differ.
  std::vector<uint64_t> prefixes;

  // What is compared; `prefixes` follow from it.
  friend bool operator==(const VocabularyDigest& a, const VocabularyDigest& b) {
    return a.num_tokens == b.num_tokens && a.high == b.high && a.low == b.low;
  }
};
inline constexpr int32_t kVocabularyRange = 1024;
// "151936 tokens, 0f3a…".
std::string ToString(const VocabularyDigest& digest);

// Some texts of a vocabulary, in order of their ids, each cut at
// kMaxLinkTokenBytes.
struct VocabularyPart {
  int32_t first_id = 0;
  std::vector<std::string> texts;  // At most kVocabularyRange.
};
inline constexpr size_t kMaxLinkTokenBytes = 256;

// Hello and Welcome: who speaks.
struct LinkPeer {
  std::string software_version;
  std::string model_name;
  VocabularyDigest vocabulary;
  int64_t num_parameters = 0;  // Of the model; 0: it does not say.
  // Of the cloud only: what requests are held to.
  int32_t max_model_len = 0;
  int32_t vocab_size = 0;
  // Drafts of one sequence that it verifies in one step; 0: it verifies none.
  int32_t max_drafts = 0;
};

struct LinkRefusal {
  absl::Status reason;  // Not OK.
  // The cloud's, where the vocabularies begin to differ; else empty. What does
  // not fit the frame is left off.
  VocabularyPart vocabulary;
};

struct LinkAbort {
  RequestId request_id = 0;
  int32_t choice_idx = -1;  // -1: all.
  bool reason_is_stop = false;
};

// Tokens that choice `choice_idx` may go on with after `num_generated` tokens.
struct LinkDrafts {
  RequestId request_id = 0;
  int32_t choice_idx = 0;
  // Messages of one chain continue each other. An edge begins another one, with
  // a larger number, when it hears that the choice went on otherwise.
  uint32_t chain_no = 0;
  int32_t num_generated = 0;
  std::vector<int32_t> token_ids;  // Not empty, at most kMaxLinkDrafts.
  // As Draft::probabilities.
  std::vector<float> probabilities;
};

struct LinkPing {
  uint64_t number = 0;  // The pong's is the ping's.
};

// Each appends a whole frame to `out`.
void AppendHello(const LinkPeer& peer, std::string* out);
void AppendWelcome(const LinkPeer& peer, std::string* out);
void AppendRefusal(const LinkRefusal& refusal, std::string* out);
// What travels of the request: id, kind, prompt, sampling, n, namespace,
// priority, and how long after `now` its deadline is. False, and nothing is
// appended, if that is too large for a frame.
bool AppendSubmit(const Request& request, absl::Time now, std::string* out);
void AppendAbort(const LinkAbort& abort, std::string* out);
void AppendDrafts(const LinkDrafts& drafts, std::string* out);
// Everything but the times; of an error code, message and when to come again.
// False as above.
bool AppendEvent(const OutputEvent& event, std::string* out);
void AppendPing(LinkFrameType type, const LinkPing& ping, std::string* out);

// Payloads. INVALID_ARGUMENT saying which message is malformed. Token ids are
// not negative; whether they are in the vocabulary is the reader's to check.
absl::StatusOr<LinkPeer> ParseHello(absl::string_view payload);
absl::StatusOr<LinkPeer> ParseWelcome(absl::string_view payload);
absl::StatusOr<LinkRefusal> ParseRefusal(absl::string_view payload);
absl::StatusOr<Request> ParseSubmit(absl::string_view payload, absl::Time now);
absl::StatusOr<LinkAbort> ParseAbort(absl::string_view payload);
absl::StatusOr<LinkDrafts> ParseDrafts(absl::string_view payload);
absl::StatusOr<OutputEvent> ParseEvent(absl::string_view payload);
absl::StatusOr<LinkPing> ParsePing(absl::string_view payload);

// Cuts a stream of bytes into frames. Thread-compatible.
class LinkFrameReader {
 public:
  struct Frame {
    LinkFrameType type = LinkFrameType::kPing;
    absl::string_view payload;  // Valid until the next call of the reader.
  };

  void Append(absl::string_view bytes);
  // The next whole frame, or none yet. INVALID_ARGUMENT for a type that is none
  // or a payload larger than its type's; the stream cannot be read on then.
  absl::StatusOr<std::optional<Frame>> Next();

 private:
  std::string buffer_;
  size_t num_consumed_ = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_LINK_MESSAGES_H_
