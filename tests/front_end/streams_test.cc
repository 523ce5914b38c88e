// Short forms: counts, leaks and order. tools/soak.sh measures the times.
#include "tests/front_end/streams.h"

#include "gtest/gtest.h"
#include "tests/front_end/expect_figures.h"

namespace quire {
namespace {

TEST(StreamsTest, ManyAtOnce) {
  ExpectFigures(RunStreams({.num_streams = 96, .num_tokens = 12}));
}

TEST(StreamsTest, ConnectStorm) { ExpectFigures(RunConnectStorm(512)); }

TEST(StreamsTest, IdleConnections) {
  ExpectFigures(RunIdleConnections(128, 0.1));
}

TEST(StreamsTest, FullPort) { ExpectFigures(RunFullPort(1024, 16)); }

TEST(StreamsTest, SlowReaders) {
  ExpectFigures(RunSlowReaders({.num_streams = 16, .seconds = 0.5}));
}

TEST(StreamsTest, Slowloris) {
  ExpectFigures(RunSlowloris({.num_streams = 16, .seconds = 0.5}));
}

}  // namespace
}  // namespace quire
