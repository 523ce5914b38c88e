// From disconnects to the end of the process.
#ifndef QUIRE_TESTS_FRONT_END_LIFE_H_
#define QUIRE_TESTS_FRONT_END_LIFE_H_

#include <cstdint>
#include <vector>

#include "tests/front_end/figure.h"

namespace quire {

// Clients that go before their first token, while they stream, and all at once.
std::vector<Figure> RunDisconnects(int num_clients);

// Four times the requests that the server can serve, beside probes.
std::vector<Figure> RunOverload(double seconds);

// SIGTERM with live streams, `num_runs` times; a second SIGTERM; the end of the
// time for draining.
std::vector<Figure> RunShutdowns(int num_runs, int num_streams);

// A step that never ends, with streams, requests without a token and probes.
std::vector<Figure> RunHungEngine(int num_streams);

// Resident memory over many requests of every kind, a tenth of them aborted.
std::vector<Figure> RunManyRequests(int64_t num_requests);

// The program itself with the demo model, and nothing to do.
std::vector<Figure> RunIdleProgram(double seconds);

// Few descriptors, a stopped reader of stdout, a closed one, a full disk.
std::vector<Figure> RunSystemFaults();

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_LIFE_H_
