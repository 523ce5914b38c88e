// Prints what drafting at the edge brings in the model of edge_cloud_model.h,
// as a table for RESULTS.md.
#include <cstdio>
#include <iterator>

#include "benchmarks/edge_cloud_model.h"

namespace {

struct Setting {
  const char* name;
  int num_edges;
  int num_requests_per_edge;
  absl::Duration step_base, step_per_token;
};

void PrintTable(const Setting& setting) {
  using quire::DraftPlace;
  quire::EdgeCloudParameters base;
  base.num_edges = setting.num_edges;
  base.num_requests_per_edge = setting.num_requests_per_edge;
  base.step_base = setting.step_base;
  base.step_per_token = setting.step_per_token;
  const double acceptances[] = {0.3, 0.6, 0.8, 0.9};
  std::printf(
      "\n%s: tokens/s over the cloud alone (rows of the cloud's steps per "
      "token)\n\n| round trip, loss | cloud alone, tokens/s |",
      setting.name);
  for (const double a : acceptances) std::printf(" edge, %g |", a);
  std::printf(" no gate, %g | at the cloud, %g |\n|---|---|", acceptances[0],
              acceptances[2]);
  for (size_t i = 0; i < std::size(acceptances) + 2; ++i) std::printf("---|");
  std::printf("\n");
  for (const double loss : {0.0, 0.01}) {
    for (const int round_trip_ms : {0, 5, 20, 50, 100}) {
      quire::EdgeCloudParameters parameters = base;
      parameters.round_trip = absl::Milliseconds(round_trip_ms);
      parameters.loss = loss;
      parameters.place = DraftPlace::kNowhere;
      const double alone = RunEdgeCloud(parameters).tokens_per_second;
      std::printf("| %d ms, %g %% | %.1f |", round_trip_ms, loss * 100, alone);
      const auto cell = [&](DraftPlace place, double acceptance, bool gate) {
        parameters.place = place;
        parameters.acceptance = acceptance;
        parameters.has_gate = gate;
        const quire::EdgeCloudResult result = RunEdgeCloud(parameters);
        std::printf(" %.2f (%.2f) |", result.tokens_per_second / alone,
                    result.rows_per_token);
      };
      for (const double a : acceptances) cell(DraftPlace::kEdge, a, true);
      cell(DraftPlace::kEdge, acceptances[0], false);
      cell(DraftPlace::kCloud, acceptances[2], true);
      std::printf("\n");
    }
  }
}

}  // namespace

int main() {
  PrintTable({"1 edge, steps of 25 ms", 1, 8, absl::Milliseconds(25),
              absl::Microseconds(100)});
  PrintTable({"32 edges, steps of 25 ms", 32, 2, absl::Milliseconds(25),
              absl::Microseconds(100)});
  PrintTable({"1 edge, steps of 7 ms", 1, 8, absl::Milliseconds(7),
              absl::Microseconds(40)});
  return 0;
}
