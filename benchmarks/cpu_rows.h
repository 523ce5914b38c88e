// Parts of the CPU backend that its interface does not show one by one.
#ifndef QUIRE_BENCHMARKS_CPU_ROWS_H_
#define QUIRE_BENCHMARKS_CPU_ROWS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"

namespace quire {

// Hears of each row: its name and the seconds of one execution in each
// repetition. Rows without `filter` in their name are left out.
using TimedRow = std::function<void(const std::string& name,
                                    const std::vector<double>& seconds)>;

// One row of random logits on one thread, with every kind of processor. The
// history of the processors has `history_size` tokens.
void MeasureSampling(Isa isa, int32_t vocab_size, int64_t history_size,
                     int repetitions, const std::string& filter,
                     const TimedRow& on_row);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_CPU_ROWS_H_
