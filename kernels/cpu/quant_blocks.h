// Blocks of quantized weights as they come from files, taken apart into the
// fields and planes of kernels/cpu/quant_layout.h.
#ifndef QUIRE_KERNELS_CPU_QUANT_BLOCKS_H_
#define QUIRE_KERNELS_CPU_QUANT_BLOCKS_H_

#include <cstdint>
#include <optional>

#include "kernels/backend.h"
#include "kernels/cpu/quant_layout.h"

namespace quire {

// The layout that holds `part` exactly; none if there is none: dense and fp8
// weights, and kInt4 whose groups are not whole multiples of 32 columns.
std::optional<PanelCode> PanelCodeFor(const WeightPart& part);

// One channel of a super-block, or of one group of kInt4 (whose codes are
// `num_blocks` blocks).
struct QuantChannel {
  uint16_t halves[3];
  uint8_t bytes[32];
  uint32_t codes[8][8];  // [block][dword of the planes]
};

// Super-block `super` of a row of a GGUF format. `row`: the bytes of the row.
void ReadSuperBlock(QuantFormat format, const uint8_t* row, int64_t super,
                    QuantChannel* channel);
// kInt4: the fields of a group, and the planes of one block.
void ReadGroupFields(const WeightPart& part, int64_t row, int64_t group,
                     QuantChannel* channel);
void ReadInt4Block(const uint8_t* row, int64_t block, uint32_t* dwords);

// The values of block `block_in_super`, as the published formula has them.
//   dwords: of the block; out: [32]
void DequantizeChannel(PanelCode code, const uint16_t* halves,
                       const uint8_t* bytes, int block_in_super,
                       const uint32_t* dwords, float* out);

}  // namespace quire

#endif  // QUIRE_KERNELS_CPU_QUANT_BLOCKS_H_
