// The sum of what the ranks of a group hold, in one order everywhere.
#ifndef QUIRE_KERNELS_RANK_SUM_H_
#define QUIRE_KERNELS_RANK_SUM_H_

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace quire {

// out[i] = parts[0][i] + parts[1][i] + ... in f32, rounded once to `dtype`
// (f32, f16 or bf16): the same bits whoever computes it. Neighbours are added
// first, then pairs, then pairs of pairs: ((0 + 1) + (2 + 3)) + 4. So a sum
// that is itself made like this may be cut anywhere in halves
// (LinearSpec::num_column_segments).
//   parts: [num_ranks] pointers to num_elements elements each; not empty.
//   out: [num_elements]; may be one of the parts.
void SumInRankOrder(absl::Span<const void* const> parts, DType dtype,
                    int64_t num_elements, void* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_RANK_SUM_H_
