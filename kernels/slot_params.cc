#include "kernels/slot_params.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

absl::Status CheckRange(const char* field, float value, float low, float high) {
  // Written so that NaN fails.
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, " is ", value, ", not within [", low, ", ", high, "]"));
}

absl::Status CheckLowest(const char* field, int32_t value, int32_t lowest) {
  if (value >= lowest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", below ", lowest));
}

absl::Status ValidateBadWords(const SlotParams& params, int32_t vocab_size) {
  int64_t num_ids = 0;
  for (int32_t length : params.bad_word_lengths) {
    if (length < 1) {
      return absl::InvalidArgumentError(
          "bad_word_lengths has an entry below 1");
    }
    num_ids += length;
  }
  if (num_ids != static_cast<int64_t>(params.bad_word_ids.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad_word_lengths are ", num_ids, " together, for ",
                     params.bad_word_ids.size(), " ids"));
  }
  return CheckTokenIds("bad_word_ids", params.bad_word_ids, vocab_size);
}

absl::Status ValidateDry(const SlotParams& params, float large) {
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dry_multiplier", params.dry_multiplier, -large, large));
  QUIRE_RETURN_IF_ERROR(CheckRange("dry_base", params.dry_base, 0.0f, large));
  QUIRE_RETURN_IF_ERROR(
      CheckLowest("dry_allowed_length", params.dry_allowed_length, 0));
  return CheckLowest("dry_penalty_last_n", params.dry_penalty_last_n, -1);
}

}  // namespace

absl::Status CheckTokenIds(const char* field, absl::Span<const int32_t> ids,
                           int32_t vocab_size) {
  for (int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": token id ", id, " is not in [0, ", vocab_size,
                       ") of the vocabulary"));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSlotParams(const SlotParams& params, int32_t vocab_size) {
  constexpr float kLarge = 1e6f;  // Keeps every processed logit finite.
  QUIRE_RETURN_IF_ERROR(
      CheckRange("temperature", params.temperature, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("top_p", params.top_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("presence_penalty", params.presence_penalty, -kLarge, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("frequency_penalty",
                                   params.frequency_penalty, -kLarge, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("repetition_penalty",
                                   params.repetition_penalty, 1e-6f, kLarge));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("top_n_sigma", params.top_n_sigma, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(CheckRange("typical_p", params.typical_p, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("xtc_probability", params.xtc_probability, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("xtc_threshold", params.xtc_threshold, 0.0f, 1.0f));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dynatemp_range", params.dynatemp_range, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(
      CheckRange("dynatemp_exponent", params.dynatemp_exponent, 0.0f, kLarge));
  QUIRE_RETURN_IF_ERROR(ValidateDry(params, kLarge));
  QUIRE_RETURN_IF_ERROR(ValidateBadWords(params, vocab_size));
  QUIRE_RETURN_IF_ERROR(CheckLowest("top_k", params.top_k, 0));
  if (params.num_logprobs > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_logprobs is ", params.num_logprobs,
                     ", above the vocabulary of ", vocab_size));
  }
  if (params.num_prompt_logprobs > vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_prompt_logprobs is ", params.num_prompt_logprobs,
                     ", above the vocabulary of ", vocab_size));
  }
  if (params.bias.size() != params.bias_ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("bias has ", params.bias.size(), " values for ",
                     params.bias_ids.size(), " ids"));
  }
  for (float bias : params.bias) {
    if (bias != -INFINITY) {
      QUIRE_RETURN_IF_ERROR(CheckRange("bias", bias, -kLarge, kLarge));
    }
  }
  QUIRE_RETURN_IF_ERROR(CheckTokenIds("bias_ids", params.bias_ids, vocab_size));
  QUIRE_RETURN_IF_ERROR(
      CheckTokenIds("allowed_ids", params.allowed_ids, vocab_size));
  return CheckTokenIds("banned_before_min", params.banned_before_min,
                       vocab_size);
}

}  // namespace quire
