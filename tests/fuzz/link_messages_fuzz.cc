// Frames of a verify link as the other side sends them, read by both sides and
// given to the drafter: what is accepted has the same payload when it is
// encoded again, and no draft leaves the vocabulary.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/speculative/link/link_drafter.h"
#include "engine/speculative/link/link_messages.h"

namespace quire {
namespace {

constexpr int kVocabSize = 1000;

void CheckSame(absl::string_view payload, const std::string& frame) {
  // Lists of breakers are sorted and made unique where they are read.
  QUIRE_CHECK(frame.size() <= kLinkHeaderBytes + payload.size());
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
    case LinkFrameType::kHello:
    case LinkFrameType::kWelcome: {
      const auto peer = ParseHello(frame.payload);
      if (peer.ok()) AppendHello(*peer, &again);
      break;
    }
    case LinkFrameType::kRefusal:
      QUIRE_CHECK(!ParseRefusal(frame.payload).ok());
      break;
    case LinkFrameType::kSubmit: {
      const auto request = ParseSubmit(frame.payload, now);
      if (request.ok()) QUIRE_CHECK(AppendSubmit(*request, now, &again));
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
  CheckSame(frame.payload, again);
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
