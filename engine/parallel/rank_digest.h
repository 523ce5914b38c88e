// What ranks compare of a step: the tokens that they drew.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_DIGEST_H_
#define QUIRE_ENGINE_PARALLEL_RANK_DIGEST_H_

#include "engine/base/random.h"
#include "engine/parallel/rank_messages.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

// Of the step after `step_idx` others. Log-probabilities do not count: a rank
// need not have them.
inline StepDigest DigestOf(int64_t step_idx, const StepResult& result) {
  StepDigest digest;
  digest.step_idx = step_idx;
  for (const SampledRow& row : result.rows) {
    digest.hash = MixBits(digest.hash, static_cast<uint32_t>(row.slot));
    for (const TokenOutput& token : row.tokens) {
      digest.hash = MixBits(digest.hash, static_cast<uint32_t>(token.token_id));
    }
  }
  return digest;
}

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_DIGEST_H_
