// Checks of sampling parameters that every backend makes.
#ifndef QUIRE_KERNELS_SLOT_PARAMS_H_
#define QUIRE_KERNELS_SLOT_PARAMS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/backend.h"

namespace quire {

// INVALID_ARGUMENT if a parameter is out of its range: ids outside the
// vocabulary, NaN, bias of another length, a negative temperature.
absl::Status ValidateSlotParams(const SlotParams& params, int32_t vocab_size);

// INVALID_ARGUMENT naming `field` if an id is not in [0, vocab_size).
absl::Status CheckTokenIds(const char* field, absl::Span<const int32_t> ids,
                           int32_t vocab_size);

}  // namespace quire

#endif  // QUIRE_KERNELS_SLOT_PARAMS_H_
