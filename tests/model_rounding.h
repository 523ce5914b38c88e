// How far two computations of a golden model may be apart.
//
// With the same rounding points two computations differ by f32 arithmetic, and
// where that straddles the boundary of a rounding to bf16, by one step of it. A
// model's error of bf16, what the reference with these rounding points is from
// the one without, is the sum of all its roundings, thousands of them, of half
// a step each at most. The few steps that differ are among those, so they make
// no larger difference.
#ifndef QUIRE_TESTS_MODEL_ROUNDING_H_
#define QUIRE_TESTS_MODEL_ROUNDING_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/request.h"
#include "kernels/backend.h"

namespace quire {

inline constexpr int kNumRoundingTop = 20;  // The most a GPU reports.

// Without such a step the difference is that of sums of at most 256 terms in
// f32, relative to logits below 8.
inline constexpr double kF32Error = 256 * 0x1p-24 * 8;

// Directories of the golden models that generate text.
std::vector<std::string> GoldenModels();

// kernels/reference: as a GPU rounds with activations in bf16, or in f32.
//   multiplies_in_fp8: as ReferenceOptions.
std::unique_ptr<Backend> MakeRoundingReference(bool multiplies_in_fp8 = true);
std::unique_ptr<Backend> MakeExactReference();

// Of log-probabilities, over the tokens that both report. A wrong distribution
// has other tokens at its top: infinite, if less than half of kNumRoundingTop
// are common.
double LargestDifference(const TokenOutput& a, const TokenOutput& b);

}  // namespace quire

#endif  // QUIRE_TESTS_MODEL_ROUNDING_H_
