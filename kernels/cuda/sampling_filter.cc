// Steps 5 (dynamic temperature) to 11 of kernels/sampling.h for the rows that
// ask for them: one CTA for each row, which becomes an interval of z.
//
// The order statistics come from a radix select over KeyOf in three passes of
// 11, 11 and 10 bits. Masses are integers, e^(z - max) * 2^44, so that a
// histogram is the same in whatever order its atomics run.
#include <limits>

#include "kernels/cuda/sampling_kernels.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr int kBinsPerThread = kBins / kThreads;

// 2^19 entries of 2^44 stay below 2^64. Every entry weighs something, so that a
// share of 0 is still the first entry.
SIMT_DEVICE uint64_t MassOf(float z, float max) {
  const uint64_t mass = static_cast<uint64_t>(simt::Exp(z - max) * 0x1p44f);
  return mass > 0 ? mass : 1;
}

// A row of z and what of it is kept so far.
struct Row {
  float* z;
  uint32_t* chunks;
  int32_t num_chunks;
  float max;  // Of the kept entries.
  float floor;
  float ceiling;

  // Calls visit(value) for the thread's share of the kept entries that are not
  // -infinity, in a fixed order. `at_least`: chunks below this key are skipped.
  template <typename Visit>
  SIMT_DEVICE void ForEach(uint32_t at_least, Visit visit) const {
    const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
    const uint32_t floor_key = KeyOf(floor);
    if (at_least < floor_key) at_least = floor_key;
    for (int chunk = warp; chunk < num_chunks; chunk += kWarps) {
      if (chunks[chunk] < at_least) continue;
      const simt::Bytes16 bytes =
          simt::Load16(z + int64_t{chunk} * kSamplingChunk + lane * 4);
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float value = std::bit_cast<float>(bytes.words[i]);
        if (value >= floor && value <= ceiling && value > -INFINITY) {
          visit(value);
        }
      }
    }
  }
};

struct Shared {
  uint32_t* low;  // [kBins], of the masses.
  uint32_t* high;
  uint64_t* scratch;  // [kWarps]
  uint64_t* found;    // [2]: bin, mass above it.
};

SIMT_DEVICE void AddToBin(const Shared& shared, uint32_t bin, uint64_t mass) {
  const uint32_t low = static_cast<uint32_t>(mass);
  const uint32_t old = simt::AtomicAdd(&shared.low[bin], low);
  const uint32_t high = static_cast<uint32_t>(mass >> 32) + (old + low < old);
  if (high > 0) simt::AtomicAdd(&shared.high[bin], high);
}

SIMT_DEVICE uint64_t MassOfBin(const Shared& shared, int bin) {
  return uint64_t{shared.high[bin]} << 32 | shared.low[bin];
}

// How much of the total is wanted: at least `count`, or a share of the mass.
struct Target {
  uint64_t count;
  float share;  // If count is 0.

  SIMT_DEVICE uint64_t Of(uint64_t total) const {
    uint64_t target = count;
    if (count == 0) {
      target = static_cast<uint64_t>(
          std::ceil(static_cast<double>(share) * static_cast<double>(total)));
      if (target == 0) target = 1;
    }
    return target < total ? target : total;
  }
};

// From the top, the bin in which the mass reaches the target; *target becomes
// what is wanted of that bin.
SIMT_DEVICE uint32_t FindBin(const Shared& shared, bool is_first,
                             const Target& wanted, uint64_t* target) {
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  const int top =
      kBins - 1 - static_cast<int>(simt::ThreadX()) * kBinsPerThread;
  uint64_t mine = 0;
  SIMT_UNROLL
  for (int i = 0; i < kBinsPerThread; ++i) mine += MassOfBin(shared, top - i);
  uint64_t up_to = mine;  // Of the warp's lanes up to this one.
  SIMT_UNROLL
  for (int i = 1; i < 32; i *= 2) {
    const uint64_t other = simt::Shuffle(up_to, lane >= i ? lane - i : lane);
    if (lane >= i) up_to += other;
  }
  if (lane == 31) shared.scratch[warp] = up_to;
  simt::SyncThreads();
  uint64_t total = 0, above = up_to - mine;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) above += shared.scratch[w];
    total += shared.scratch[w];
  }
  if (is_first) *target = wanted.Of(total);
  if (above < *target && *target <= above + mine) {
    for (int i = 0; i < kBinsPerThread; ++i) {
      const uint64_t mass = MassOfBin(shared, top - i);
      if (*target <= above + mass) {
        shared.found[0] = static_cast<uint64_t>(top - i);
        shared.found[1] = above;
        break;
      }
      above += mass;
    }
  }
  simt::SyncThreads();
  *target -= shared.found[1];
  return static_cast<uint32_t>(shared.found[0]);
}

// The largest key at which the kept entries of at least that key have the
// target mass. Requires: some entry is kept.
//   key(value): its order, the largest first; mass(value).
//   is_by_value: key is KeyOf.
template <bool kIsByValue, typename Key, typename Mass>
SIMT_DEVICE uint32_t SelectKey(const Row& row, const Shared& shared,
                               const Target& wanted, Key key_of, Mass mass_of) {
  uint64_t target = 0;
  uint32_t prefix = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
    const int bits = pass == 2 ? 10 : 11;
    const uint32_t mask = (1u << bits) - 1;
    for (int i = simt::ThreadX(); i < kBins; i += kThreads) {
      shared.low[i] = 0;
      shared.high[i] = 0;
    }
    simt::SyncThreads();
    const uint32_t at_least =
        kIsByValue && pass > 0 ? prefix << (shift + bits) : 0;
    row.ForEach(at_least, [&](float value) {
      const uint32_t key = key_of(value);
      if (pass > 0 && key >> (shift + bits) != prefix) return;
      AddToBin(shared, key >> shift & mask, mass_of(value));
    });
    simt::SyncThreads();
    prefix = prefix << bits | FindBin(shared, pass == 0, wanted, &target);
  }
  return prefix;
}

// Sums of e^(z - max), and of that times z - max, over the kept entries.
SIMT_DEVICE void SumMasses(const Row& row, const Shared& shared, double* sum,
                           double* weighted, uint32_t* count) {
  double my_sum = 0, my_weighted = 0;
  uint32_t my_count = 0;
  row.ForEach(0, [&](float value) {
    const float distance = value - row.max;
    const float mass = simt::Exp(distance);
    my_sum += mass;
    if (mass > 0.0f) {
      my_weighted += static_cast<double>(mass) * static_cast<double>(distance);
    }
    ++my_count;
  });
  *sum = CtaReduce<kThreads>(my_sum, TakeSum(), shared.scratch);
  *weighted = CtaReduce<kThreads>(my_weighted, TakeSum(), shared.scratch);
  *count = CtaReduce<kThreads>(my_count, TakeSum(), shared.scratch);
}

// The temperature of step 5, of a row that is not yet divided by it.
SIMT_DEVICE float TemperatureOf(const SlotSampling& p, const Row& row,
                                const Shared& shared) {
  if (!std::isfinite(row.max)) return p.temperature;
  double sum, weighted;
  uint32_t count;
  SumMasses(row, shared, &sum, &weighted, &count);
  if (simt::ThreadX() == 0) {
    shared.found[0] = std::bit_cast<uint32_t>(
        DynamicTemperature(p.temperature, p.dynatemp_range, p.dynatemp_exponent,
                           std::log(sum) - weighted / sum, count));
  }
  simt::SyncThreads();
  const float temperature =
      std::bit_cast<float>(static_cast<uint32_t>(shared.found[0]));
  simt::SyncThreads();
  return temperature;
}

SIMT_DEVICE void Divide(const Row& row, float temperature) {
  const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
  for (int chunk = warp; chunk < row.num_chunks; chunk += kWarps) {
    float* z = row.z + int64_t{chunk} * kSamplingChunk + lane * 4;
    simt::Bytes16 bytes = simt::Load16(z);
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      bytes.words[i] = std::bit_cast<uint32_t>(
          std::bit_cast<float>(bytes.words[i]) / temperature);
    }
    simt::Store16(z, bytes);
    // Division keeps the order.
    if (lane == 0) {
      row.chunks[chunk] = KeyOf(ValueOf(row.chunks[chunk]) / temperature);
    }
  }
  simt::SyncThreads();
}

// Step 6.
SIMT_DEVICE float TopNSigmaFloor(const Row& row, const Shared& shared,
                                 float n) {
  double sum = 0, squares = 0;  // Of distances from the maximum.
  uint32_t count = 0;
  row.ForEach(0, [&](float value) {
    const double distance =
        static_cast<double>(value) - static_cast<double>(row.max);
    sum += distance;
    squares += distance * distance;
    ++count;
  });
  sum = CtaReduce<kThreads>(sum, TakeSum(), shared.scratch);
  squares = CtaReduce<kThreads>(squares, TakeSum(), shared.scratch);
  count = CtaReduce<kThreads>(count, TakeSum(), shared.scratch);
  const double mean = sum / count;
  const double variance = squares / count - mean * mean;
  return static_cast<float>(row.max -
                            n * std::sqrt(variance > 0 ? variance : 0.0));
}

// Step 9.
SIMT_DEVICE void KeepTypical(float typical_p, const Shared& shared, Row* row) {
  double sum, weighted;
  uint32_t unused_count;
  SumMasses(*row, shared, &sum, &weighted, &unused_count);
  const float center = static_cast<float>(row->max + weighted / sum);
  const uint32_t key = SelectKey<false>(
      *row, shared, {0, typical_p},
      [center](float value) { return ~KeyOf(std::fabs(value - center)); },
      [row](float value) { return MassOf(value, row->max); });
  const float distance = ValueOf(~key);
  float low = INFINITY, high = -INFINITY;
  row->ForEach(0, [&](float value) {
    if (!(std::fabs(value - center) <= distance)) return;
    low = value < low ? value : low;
    high = value > high ? value : high;
  });
  row->floor = CtaReduce<kThreads>(low, TakeMin(), shared.scratch);
  row->ceiling = CtaReduce<kThreads>(high, TakeMax(), shared.scratch);
  row->max = row->ceiling;
}

// Step 11.
SIMT_DEVICE void ExcludeTopChoices(float threshold, const Shared& shared,
                                   Row* row) {
  double sum, unused_weighted;
  uint32_t unused_count;
  SumMasses(*row, shared, &sum, &unused_weighted, &unused_count);
  const float bound = static_cast<float>(
      row->max + std::log(static_cast<double>(threshold) * sum));
  float least = INFINITY;
  row->ForEach(bound > -INFINITY ? KeyOf(bound) : 0, [&](float value) {
    if (value >= bound && value < least) least = value;
  });
  least = CtaReduce<kThreads>(least, TakeMin(), shared.scratch);
  if (least < row->ceiling) row->ceiling = least;
}

SIMT_DEVICE void Filter(const SlotSampling& p, int32_t vocab_size,
                        int64_t position, const Shared& shared, Row* row) {
  if (p.top_n_sigma > 0.0f) {
    row->floor = TopNSigmaFloor(*row, shared, p.top_n_sigma);
  }
  if (p.min_p > 0.0f) {
    row->floor = TakeMax()(row->floor, MinPThreshold(row->max, p.min_p));
  }
  if (p.top_k > 0 && p.top_k < vocab_size) {
    row->floor = ValueOf(SelectKey<true>(
        *row, shared, {static_cast<uint64_t>(p.top_k), 0.0f},
        [](float value) { return KeyOf(value); },
        [](float) { return uint64_t{1}; }));
  }
  if (p.typical_p < 1.0f) KeepTypical(p.typical_p, shared, row);
  if (p.top_p < 1.0f) {
    row->floor = ValueOf(SelectKey<true>(
        *row, shared, {0, p.top_p}, [](float value) { return KeyOf(value); },
        [row](float value) { return MassOf(value, row->max); }));
  }
  if (p.xtc_probability > 0.0f &&
      XtcApplies(p.draw_key, position, p.xtc_probability)) {
    ExcludeTopChoices(p.xtc_threshold, shared, row);
  }
}

SIMT_KERNEL(kThreads)
FilterKernel(const SampleArguments a) {
  SIMT_SHARED(uint32_t, low, kBins);
  SIMT_SHARED(uint32_t, high, kBins);
  SIMT_SHARED(uint64_t, scratch, kWarps);
  SIMT_SHARED(uint64_t, found, 2);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaX();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0) return;
  const SamplingRow step_row = a.rows[row_idx];
  if (step_row.slot < 0 || logit - step_row.first_logit < step_row.num_scored) {
    return;
  }
  const SlotSampling& p = a.slots[step_row.slot];
  if (!HasFilters(p)) return;
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.vocab_size, nullptr);
  const Shared shared = {low, high, scratch, found};
  Row row;
  row.z = w.z + logit * w.row_stride;
  row.num_chunks = static_cast<int32_t>(w.num_tiles * kChunksPerTile);
  row.chunks = w.chunks + logit * row.num_chunks;
  row.floor = -INFINITY;
  row.ceiling = INFINITY;
  uint32_t key = 0;
  for (int c = simt::ThreadX(); c < row.num_chunks; c += kThreads) {
    key = TakeMax()(key, row.chunks[c]);
  }
  row.max = ValueOf(CtaReduce<kThreads>(key, TakeMax(), scratch));
  bool is_greedy = false;
  if (p.dynatemp_range > 0.0f) {
    const float temperature = TemperatureOf(p, row, shared);
    is_greedy = temperature < kMinTemperature;
    if (!is_greedy) {
      Divide(row, temperature);
      row.max /= temperature;
    }
  }
  // Where nothing is left, or logit / temperature overflowed, the first of the
  // largest is drawn.
  if (!std::isfinite(row.max)) is_greedy = true;
  if (!is_greedy) {
    Filter(p, a.vocab_size, int64_t{a.positions[a.logit_tokens[logit]]} + 1,
           shared, &row);
  }
  if (simt::ThreadX() == 0) {
    w.filters[logit] = {row.floor, row.ceiling, is_greedy, 0};
  }
}

}  // namespace

bool LaunchSamplingFilter(const SampleArguments& arguments,
                          simt::Stream stream) {
  return simt::Launch(
      &FilterKernel,
      {.num_ctas_x = static_cast<uint32_t>(arguments.num_logits),
       .num_threads = kThreads,
       .waits_for_previous = true},
      stream, arguments);
}

}  // namespace quire::cuda
