// Sampling parameters drawn at random, all of them and in every combination,
// for tests that compare what is told with and without something.
#ifndef QUIRE_TESTS_RANDOM_SAMPLING_H_
#define QUIRE_TESTS_RANDOM_SAMPLING_H_

#include <cstdint>

#include "engine/base/random.h"
#include "engine/request.h"

namespace quire {

// Leaves seed and max_tokens as they are. Token ids are below vocab_size, which
// is at least 8.
SamplingParams DrawSamplingParams(int32_t vocab_size, SimulationRandom* random);

}  // namespace quire

#endif  // QUIRE_TESTS_RANDOM_SAMPLING_H_
