// A cloud, its edges and the network between them in virtual time: what
// drafting at the edge brings for any round trip, loss and acceptance. The
// engine with its scheduler and draft control, the drafter of links, and the
// edges' chains and policy are the real ones; a step, a draft and a message
// take the time that this model gives them. A pure function of its parameters.
#ifndef QUIRE_BENCHMARKS_EDGE_CLOUD_MODEL_H_
#define QUIRE_BENCHMARKS_EDGE_CLOUD_MODEL_H_

#include <cstdint>

#include "absl/time/time.h"

namespace quire {

enum class DraftPlace : uint8_t {
  kNowhere,  // The cloud alone; its tokens go over the same network.
  kEdge,
  kCloud,  // A drafter beside the target, as --speculative-model.
};

struct EdgeCloudParameters {
  DraftPlace place = DraftPlace::kEdge;
  absl::Duration round_trip = absl::ZeroDuration();
  // Of segments, each way. A lost one comes after a tail loss probe (RFC 8985
  // section 7: two round trips, at least 10 ms), and what was sent after it
  // waits for it, as TCP has it.
  double loss = 0;
  double acceptance = 0.8;  // Chance that a draft is the target's token.
  // A step of n tokens takes base + n * per_token.
  absl::Duration step_base = absl::Milliseconds(25);
  absl::Duration step_per_token = absl::Microseconds(100);
  absl::Duration edge_draft = absl::Milliseconds(5);      // For each token.
  absl::Duration cloud_draft = absl::Microseconds(1500);  // For all sequences.
  int max_drafts = 5;
  // Decide how much is drafted and verified; false: always all.
  bool has_gate = true;
  int num_edges = 1;  // One request at a time on each.
  int num_requests_per_edge = 4;
  int num_tokens_per_request = 256;
  int num_prompt_tokens = 64;
  uint64_t seed = 1;
};

struct EdgeCloudResult {
  // Of all edges together, from the first request to the last token at its
  // edge.
  double tokens_per_second = 0;
  // Rows (query tokens) of the cloud's decode steps for each token drawn: its
  // capacity where arithmetic decides.
  double rows_per_token = 0;
  // Steps of the cloud, and their time, for each token of one sequence.
  double steps_per_token = 0;
  double acceptance = 0;             // Accepted of verified drafts.
  double drafts_sent_per_token = 0;  // Over the network.
};

EdgeCloudResult RunEdgeCloud(const EdgeCloudParameters& parameters);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_EDGE_CLOUD_MODEL_H_
