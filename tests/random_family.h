// Models of every family in sizes that several ranks can split, with random
// weights: the goldens' configurations, widened.
#ifndef QUIRE_TESTS_RANDOM_FAMILY_H_
#define QUIRE_TESTS_RANDOM_FAMILY_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace quire {

struct RandomFamilyShape {
  int num_heads = 8;
  int num_kv_heads = 2;  // Where the family has a field for it.
  int hidden_size = 128;
  int intermediate_size = 192;
  int vocab_size = 328;  // No multiple of 64: the last slice is not filled.
  int num_layers = 0;    // 0: as the golden.
};

// Writes config.json and model.safetensors (f32) to `directory`, which must
// exist: the family of `golden`, a directory with a config.json, in `shape`. A
// pure function of its arguments.
absl::Status WriteRandomFamily(const std::string& golden,
                               const RandomFamilyShape& shape, uint64_t seed,
                               const std::string& directory);

}  // namespace quire

#endif  // QUIRE_TESTS_RANDOM_FAMILY_H_
