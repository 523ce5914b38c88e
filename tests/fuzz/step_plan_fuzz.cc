// Plans of steps as another host sends them: what is accepted lies within the
// limits, and has the same bytes when encoded again.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/parallel/step_plan_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const quire::StepPlanLimits limits = {4, 64, 100, 20, 1000};
  quire::StepPlanDecoder decoder(limits);
  quire::SchedulerOutput plan;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (!decoder.Decode(bytes, &plan).ok()) return 0;
  for (const quire::ScheduledRow& row : plan.rows) {
    QUIRE_CHECK(row.slot >= 0 && row.slot < limits.max_num_seqs);
    QUIRE_CHECK(row.first_position >= 0 && row.num_tokens >= 1);
    QUIRE_CHECK(row.first_position + row.num_tokens <= limits.max_model_len);
    if (row.input_on_device) continue;
    QUIRE_CHECK(row.first_token_idx >= 0 &&
                row.first_token_idx + size_t(row.num_tokens) <=
                    plan.token_ids.size());
  }
  for (const quire::BlockAppend& append : plan.block_appends) {
    for (const int32_t block : append.block_ids) {
      QUIRE_CHECK(block >= 0 && block < limits.num_blocks);
    }
  }
  std::string again;
  quire::EncodeStepPlan(plan, &again);
  // The breakers are sorted when they are read, so only the length is the same
  // where there are any.
  QUIRE_CHECK(again.size() <= bytes.size());
  return 0;
}
