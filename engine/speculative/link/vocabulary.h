// Where the vocabularies of an edge and of its cloud differ. Their digests tell
// that they do (link_messages.h); to name the first token that differs costs no
// exchange of vocabularies: digests of prefixes tell the range of ids in which
// it is, and the cloud's texts of that range travel with the refusal.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_VOCABULARY_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_VOCABULARY_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "engine/speculative/link/link_messages.h"

namespace quire {

// The text of a token id, of any >= 0; empty: it has none. Thread-safe.
using TokenText = std::function<std::string(int32_t id)>;

// num_ids: ids that may have a text.
VocabularyDigest DigestVocabulary(int32_t num_ids, const TokenText& text);

// The first id of the range of kVocabularyRange ids in which the vocabularies
// begin to differ; -1 if the digests do not tell.
int32_t FirstDifferentRange(const VocabularyDigest& a,
                            const VocabularyDigest& b);

// FAILED_PRECONDITION naming both models if `edge` cannot draft for `cloud`:
// its vocabulary is another one, or it is the larger model.
absl::Status CheckPeers(const LinkPeer& edge, const LinkPeer& cloud);

// That range, of one side.
VocabularyPart TakeVocabularyPart(int32_t first_id, const TokenText& text);

// "id 7 is \"a\" at the edge and \"b\" in the cloud": the first difference of
// the edge's vocabulary from the cloud's part; empty if there is none in it.
std::string NameDifference(const VocabularyPart& of_cloud,
                           const TokenText& edge_text);

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_VOCABULARY_H_
