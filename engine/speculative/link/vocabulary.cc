#include "engine/speculative/link/vocabulary.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {

VocabularyDigest DigestVocabulary(int32_t num_ids, const TokenText& text) {
  VocabularyDigest digest;
  for (int32_t id = num_ids; id > 0; --id) {
    if (text(id - 1).empty()) continue;
    digest.num_tokens = id;
    break;
  }
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(
      XXH3_createState(), &XXH3_freeState);
  QUIRE_CHECK(state != nullptr);
  XXH3_128bits_reset(state.get());
  for (int32_t id = 0; id < digest.num_tokens; ++id) {
    const std::string token = text(id);
    // The length first, so that borders count.
    const uint32_t size = static_cast<uint32_t>(token.size());
    XXH3_128bits_update(state.get(), &size, sizeof(size));
    XXH3_128bits_update(state.get(), token.data(), token.size());
    if ((id + 1) % kVocabularyRange == 0 || id + 1 == digest.num_tokens) {
      digest.prefixes.push_back(XXH3_128bits_digest(state.get()).low64);
    }
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  digest.high = hash.high64;
  digest.low = hash.low64;
  return digest;
}

int32_t FirstDifferentRange(const VocabularyDigest& a,
                            const VocabularyDigest& b) {
  const size_t num_both = std::min(a.prefixes.size(), b.prefixes.size());
  size_t range = 0;
  while (range < num_both && a.prefixes[range] == b.prefixes[range]) ++range;
  if (range == std::max(a.prefixes.size(), b.prefixes.size())) return -1;
  return static_cast<int32_t>(range) * kVocabularyRange;
}

absl::Status CheckPeers(const LinkPeer& edge, const LinkPeer& cloud) {
  if (!(edge.vocabulary == cloud.vocabulary)) {
    const int32_t first_id =
        FirstDifferentRange(edge.vocabulary, cloud.vocabulary);
    return absl::FailedPreconditionError(absl::StrCat(
        "the vocabulary of the edge's model ", edge.model_name, " (",
        ToString(edge.vocabulary), ", quire ", edge.software_version,
        ") is not that of the cloud's model ", cloud.model_name, " (",
        ToString(cloud.vocabulary), ", quire ", cloud.software_version, ")",
        first_id < 0
            ? ""
            : absl::StrCat("; they differ from an id in [", first_id, ", ",
                           first_id + kVocabularyRange, ") on")));
  }
  if (edge.num_parameters > cloud.num_parameters && cloud.num_parameters > 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the edge's model ", edge.model_name, " has ", edge.num_parameters,
        " parameters, more than the ", cloud.num_parameters,
        " of the cloud's model ", cloud.model_name,
        ": what drafts has to be the smaller model"));
  }
  return absl::OkStatus();
}

VocabularyPart TakeVocabularyPart(int32_t first_id, const TokenText& text) {
  VocabularyPart part;
  part.first_id = first_id;
  for (int32_t i = 0; i < kVocabularyRange; ++i) {
    part.texts.push_back(text(first_id + i).substr(0, kMaxLinkTokenBytes));
  }
  return part;
}

std::string NameDifference(const VocabularyPart& of_cloud,
                           const TokenText& edge_text) {
  int32_t id = of_cloud.first_id;
  for (const std::string& theirs : of_cloud.texts) {
    const std::string ours = edge_text(id).substr(0, kMaxLinkTokenBytes);
    if (ours != theirs) {
      return absl::StrCat("id ", id, " is \"", absl::CHexEscape(ours),
                          "\" at the edge and \"", absl::CHexEscape(theirs),
                          "\" in the cloud");
    }
    ++id;
  }
  return "";
}

}  // namespace quire
