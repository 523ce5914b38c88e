// The known holes of HTTP libraries and of model servers, tried on ours: each
// row of the specification's tables as an attack of its own.
#ifndef QUIRE_TESTS_FRONT_END_ATTACKS_H_
#define QUIRE_TESTS_FRONT_END_ATTACKS_H_

#include <vector>

#include "tests/front_end/figure.h"

namespace quire {

// After each attack the server answers the next request and its peak of
// resident memory is at most 64 MiB above what was resident before. `is_full`:
// also those that take seconds.
std::vector<Figure> RunAttacks(bool is_full);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_ATTACKS_H_
