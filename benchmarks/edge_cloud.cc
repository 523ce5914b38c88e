// Prints what drafting at the edge brings in the model of edge_cloud_model.h,
// as a table for RESULTS.md.
#include <cstdio>

#include "benchmarks/edge_cloud_model.h"

int main() {
  using quire::DraftPlace;
  quire::EdgeCloudParameters base;
  const double acceptances[] = {0.3, 0.6, 0.8, 0.9};
  for (const int num_edges : {1, 32}) {
    base.num_edges = num_edges;
    base.num_requests_per_edge = num_edges == 1 ? 8 : 2;
    std::printf("\n%d edge%s: tokens/s over the cloud alone (rows of the "
                "cloud's steps per token)\n\n",
                num_edges, num_edges == 1 ? "" : "s");
    std::printf("| round trip, loss | cloud alone, tokens/s |");
    for (const double a : acceptances) std::printf(" edge, acceptance %g |", a);
    std::printf(" without the gate, %g | at the cloud, %g |\n|---|---|",
                acceptances[0], acceptances[2]);
    for (size_t i = 0; i < std::size(acceptances) + 2; ++i) std::printf("---|");
    std::printf("\n");
    for (const double loss : {0.0, 0.01}) {
      for (const int round_trip_ms : {0, 5, 20, 50, 100}) {
        quire::EdgeCloudParameters parameters = base;
        parameters.round_trip = absl::Milliseconds(round_trip_ms);
        parameters.loss = loss;
        parameters.place = DraftPlace::kNowhere;
        const double alone = RunEdgeCloud(parameters).tokens_per_second;
        std::printf("| %d ms, %g %% | %.1f |", round_trip_ms, loss * 100,
                    alone);
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
  return 0;
}
