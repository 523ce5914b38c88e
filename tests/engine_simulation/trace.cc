#include "tests/engine_simulation/trace.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace quire {

std::string TraceOf(const OutputEvent& event) {
  static constexpr const char* kReasons[] = {"stop", "length", "abort",
                                             "error"};
  std::string text =
      absl::StrCat("  told ", event.request_id, ".", event.choice_idx, ":");
  for (const TokenOutput& token : event.tokens) {
    absl::StrAppend(&text, " token ", token.token_id);
  }
  if (event.finish_reason.has_value()) {
    absl::StrAppend(&text, " ends by ",
                    kReasons[static_cast<int>(*event.finish_reason)],
                    event.is_last ? ", the last" : "");
  }
  if (!event.error.ok()) absl::StrAppend(&text, ": ", event.error.message());
  return text;
}

std::string TraceOf(const SchedulerOutput& output,
                    const std::function<std::string(int slot)>& name_of) {
  std::string text = absl::StrCat("plan ", output.step_id);
  for (const SlotStart& start : output.slot_starts) {
    absl::StrAppend(&text, "; ", name_of(start.slot), " starts in slot ",
                    start.slot, " with ", start.num_computed_tokens, " of ",
                    start.history.size(), " tokens");
  }
  for (const BlockAppend& append : output.block_appends) {
    absl::StrAppend(&text, "; ", name_of(append.slot), " gets blocks ",
                    absl::StrJoin(append.block_ids, " "));
  }
  for (const auto& [from, to] : output.block_copies) {
    absl::StrAppend(&text, "; block ", from, " is copied to ", to);
  }
  for (const ScheduledRow& row : output.rows) {
    absl::StrAppend(
        &text, "; ", name_of(row.slot), " computes [", row.first_position, ", ",
        row.first_position + row.num_tokens, ")",
        row.needs_token ? " and draws" : "",
        row.num_drafts == 0 ? ""
                            : absl::StrCat(", ", row.num_drafts, " drafts"));
  }
  return text;
}

}  // namespace quire
