// The gate: whatever the network and the drafts, drafting at the edge costs a
// user next to nothing, and where it can help it does.
#include "benchmarks/edge_cloud_model.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

double Speedup(EdgeCloudParameters parameters) {
  const EdgeCloudResult with = RunEdgeCloud(parameters);
  parameters.place = DraftPlace::kNowhere;
  return with.tokens_per_second / RunEdgeCloud(parameters).tokens_per_second;
}

class EdgeCloudModelTest : public testing::TestWithParam<int> {};

TEST_P(EdgeCloudModelTest, TheGateKeepsTheSpeedOfTheCloudAlone) {
  EdgeCloudParameters parameters;
  parameters.num_edges = GetParam();
  parameters.num_requests_per_edge = GetParam() == 1 ? 4 : 2;
  for (const double loss : {0.0, 0.01}) {
    for (const int round_trip_ms : {0, 5, 20, 50, 100}) {
      for (const double acceptance : {0.0, 0.3, 0.6, 0.9}) {
        parameters.loss = loss;
        parameters.round_trip = absl::Milliseconds(round_trip_ms);
        parameters.acceptance = acceptance;
        // Luck of the loss: a message that is late at the end of the last
        // answer. Medians of three histories.
        std::vector<double> ratios;
        for (uint64_t seed = 1; seed <= 3; ++seed) {
          parameters.seed = seed;
          ratios.push_back(Speedup(parameters));
        }
        std::sort(ratios.begin(), ratios.end());
        EXPECT_GE(ratios[1], 0.98) << round_trip_ms << " ms, loss " << loss
                                   << ", acceptance " << acceptance;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(NumEdges, EdgeCloudModelTest, testing::Values(1, 16));

TEST(EdgeCloudModelTest, NearEdgesWithGoodDraftsAreFaster) {
  EdgeCloudParameters parameters;
  parameters.acceptance = 0.9;
  parameters.round_trip = absl::Milliseconds(5);
  EXPECT_GT(Speedup(parameters), 1.5);
}

TEST(EdgeCloudModelTest, AllDraftsAcceptedIsTheBound) {
  EdgeCloudParameters parameters;
  parameters.acceptance = 1;
  const EdgeCloudResult result = RunEdgeCloud(parameters);
  EXPECT_EQ(result.acceptance, 1);
  // The edge drafts a token in 5 ms: five steps' tokens in a step of 25.
  EXPECT_LT(result.steps_per_token, 0.25);
}

// What the gate is for: a busy cloud, where rows cost time.
TEST(EdgeCloudModelTest, WithoutTheGateBadDraftsCost) {
  EdgeCloudParameters parameters;
  parameters.num_edges = 16;
  parameters.num_requests_per_edge = 2;
  parameters.acceptance = 0.1;
  parameters.step_per_token = absl::Milliseconds(1);
  EXPECT_GE(Speedup(parameters), 0.98);
  parameters.has_gate = false;
  EXPECT_LT(Speedup(parameters), 0.9);
}

}  // namespace
}  // namespace quire
