// From the sampling parameters of the engine to those of the kernels.
#ifndef QUIRE_KERNELS_CUDA_SAMPLING_PARAMS_H_
#define QUIRE_KERNELS_CUDA_SAMPLING_PARAMS_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/sampling.h"

namespace quire::cuda {

// Returns the device form of `params`, and in `lists` what belongs at the
// slot's row of SampleArguments::lists. Requires: params are valid for
// vocab_size, as the CPU backend's ValidateSlotParams has it. Of the top
// entries kMaxTopLogprobs are reported at most: the caller refuses more, and
// lists longer than lists_stride. Allocates nothing if `lists` has the capacity
// for what comes into it and bias_ids.size() more.
SlotSampling PackSlotSampling(const SlotParams& params,
                              int32_t num_prompt_tokens, int32_t vocab_size,
                              std::vector<int32_t>* lists);

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_SAMPLING_PARAMS_H_
