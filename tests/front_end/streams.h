// Many streams at once, and clients that are in their way.
#ifndef QUIRE_TESTS_FRONT_END_STREAMS_H_
#define QUIRE_TESTS_FRONT_END_STREAMS_H_

#include <vector>

#include "tests/front_end/figure.h"

namespace quire {

struct StreamsScale {
  int num_streams = 64;
  int num_tokens = 20;
  int step_ms = 30;
  double max_gap_ms = 45;  // Target of the 99th percentile.
};
// All opened at once. What the HTTP threads take is told from the engine's.
std::vector<Figure> RunStreams(const StreamsScale& scale);

// Clients that connect at the same time and ask for the version: each is
// answered (200, or 503 beyond what the server holds), none reset.
std::vector<Figure> RunConnectStorm(int num_clients);

// Connections that had one answer and keep silent for `seconds`.
std::vector<Figure> RunIdleConnections(int num_connections, double seconds);

// Many more silent connections than the server takes, renewed as they are
// closed, beside probes and requests: each is answered 200.
std::vector<Figure> RunFullPort(int num_connections, int num_probes);

struct HinderedScale {
  int num_streams = 32;
  int num_hindering = 32;
  double seconds = 1;
};
// Streams of readers that stop reading beside streams of others.
std::vector<Figure> RunSlowReaders(const HinderedScale& scale);
// Heads and bodies that come byte by byte, beside streams.
std::vector<Figure> RunSlowloris(const HinderedScale& scale);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_STREAMS_H_
