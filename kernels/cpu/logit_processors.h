// Steps 2 to 4 of kernels/sampling.h: what changes single logits of a row
// before the temperature. Scalar: it touches a few entries.
#ifndef QUIRE_KERNELS_CPU_LOGIT_PROCESSORS_H_
#define QUIRE_KERNELS_CPU_LOGIT_PROCESSORS_H_

#include "kernels/cpu/sampling.h"

namespace quire {

// False if ProcessLogits would change nothing.
bool NeedsProcessors(const SampleInput& input);

// Allocates nothing.
//   logits: [vocab_size], f32, a copy of input.logits, changed in place.
void ProcessLogits(const SampleInput& input, SamplingScratch& scratch,
                   float* logits);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_LOGIT_PROCESSORS_H_
