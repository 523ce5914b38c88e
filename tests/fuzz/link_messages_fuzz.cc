// Frames of a verify link as the other side sends them, read by both sides and
// given to the drafter: what is accepted has the same payload, byte for byte,
// when it is encoded again, and no draft leaves the vocabulary.
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/speculative/link/link_drafter.h"
#include "engine/speculative/link/link_messages.h"
#include "engine/speculative/link/vocabulary.h"

namespace quire {
namespace {

constexpr int kVocabSize = 1000;

// `frame` is what was read from `payload`, encoded again; empty: it was
// refused.
void CheckSame(LinkFrameType type, absl::string_view payload,
               const std::string& frame) {
  if (frame.empty()) return;
  LinkFrameReader reader;
  reader.Append(frame);
  const auto again = reader.Next();
  QUIRE_CHECK(again.ok() && again->has_value());
  QUIRE_CHECK((*again)->type == type);
  QUIRE_CHECK((*again)->payload == payload);
}

// Lists of breakers are sorted and made unique where they are read: with them
// the second reading decides.
void CheckSubmit(absl::string_view payload, Request request, absl::Time now) {
  std::string frame;
  QUIRE_CHECK(AppendSubmit(request, now, &frame));
  if (request.sampling.dry_breakers == nullptr) {
    return CheckSame(LinkFrameType::kSubmit, payload, frame);
  }
  QUIRE_CHECK(frame.size() <= kLinkHeaderBytes + payload.size());
  auto again =
      ParseSubmit(absl::string_view(frame).substr(kLinkHeaderBytes), now);
  QUIRE_CHECK(again.ok());
  std::string second;
  QUIRE_CHECK(AppendSubmit(*again, now, &second));
  QUIRE_CHECK(second == frame);
  QUIRE_CHECK(again->sampling.dry_breakers->sequences() ==
              request.sampling.dry_breakers->sequences());
  QUIRE_CHECK(again->prompt_token_ids == request.prompt_token_ids);
  again->sampling.dry_breakers = request.sampling.dry_breakers;
  // Pointers, whose contents `second` has compared.
  again->sampling.bad_words = request.sampling.bad_words;
  QUIRE_CHECK(again->sampling == request.sampling);
}

void CheckProposals(LinkDrafter& drafter) {
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7};
  DraftSequence sequence;
  sequence.token_ids = tokens;
  sequence.num_prompt_tokens = 2;
  sequence.request_id = 1;
  sequence.max_num_drafts = 8;
  Draft draft;
  QUIRE_CHECK(drafter.Propose({&sequence, 1}, {&draft, 1}).ok());
  QUIRE_CHECK(draft.token_ids.size() <= 8);
  for (const int32_t id : draft.token_ids) {
    QUIRE_CHECK(id >= 0 && id < kVocabSize);
  }
  for (const float p : draft.probabilities) QUIRE_CHECK(p >= 0 && p <= 1);
}

void ReadFrame(const LinkFrameReader::Frame& frame, LinkDrafter& drafter) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  QUIRE_CHECK(frame.payload.size() <= MaxLinkPayload(frame.type));
  std::string again;
  switch (frame.type) {
    case LinkFrameType::kHello: {
      const auto peer = ParseHello(frame.payload);
      if (peer.ok()) AppendHello(*peer, &again);
      break;
    }
    case LinkFrameType::kWelcome: {
      const auto peer = ParseWelcome(frame.payload);
      if (peer.ok()) AppendWelcome(*peer, &again);
      break;
    }
    case LinkFrameType::kRefusal: {
      const auto refusal = ParseRefusal(frame.payload);
      if (!refusal.ok()) break;
      QUIRE_CHECK(!refusal->reason.ok());
      AppendRefusal(*refusal, &again);
      NameDifference(refusal->vocabulary, [](int32_t) { return "a"; });
      break;
    }
    case LinkFrameType::kSubmit: {
      auto request = ParseSubmit(frame.payload, now);
      if (request.ok()) CheckSubmit(frame.payload, *std::move(request), now);
      break;
    }
    case LinkFrameType::kAbort: {
      const auto abort = ParseAbort(frame.payload);
      if (abort.ok()) AppendAbort(*abort, &again);
      break;
    }
    case LinkFrameType::kDrafts: {
      const auto drafts = ParseDrafts(frame.payload);
      if (!drafts.ok()) break;
      AppendDrafts(*drafts, &again);
      drafter.Put(1, *drafts);
      CheckProposals(drafter);
      break;
    }
    case LinkFrameType::kEvent: {
      const auto event = ParseEvent(frame.payload);
      if (event.ok()) QUIRE_CHECK(AppendEvent(*event, &again));
      break;
    }
    case LinkFrameType::kPing:
    case LinkFrameType::kPong: {
      const auto ping = ParsePing(frame.payload);
      if (ping.ok()) AppendPing(frame.type, *ping, &again);
      break;
    }
  }
  CheckSame(frame.type, frame.payload, again);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  quire::LinkDrafter drafter(quire::kVocabSize, nullptr);
  drafter.Open(1, 2);
  quire::LinkFrameReader reader;
  // In two pieces, as a socket may give them.
  for (const absl::string_view piece :
       {bytes.substr(0, size / 2), bytes.substr(size / 2)}) {
    reader.Append(piece);
    for (;;) {
      const auto frame = reader.Next();
      if (!frame.ok()) return 0;
      if (!frame->has_value()) break;
      quire::ReadFrame(**frame, drafter);
    }
  }
  return 0;
}
