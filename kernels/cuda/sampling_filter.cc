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
// share of 0 is still the first entry. NaN, of rows that are reported as not
// finite, weighs as little.
SIMT_DEVICE uint64_t MassOf(float z, float max) {
  const float mass = simt::Exp(z - max) * 0x1p44f;
  return mass >= 1.0f ? static_cast<uint64_t>(mass) : 1;
}

// A row of z and what of it is kept so far.
struct Row {
  float* z;
  uint32_t* chunks;  // [num_chunks], shared.
  int32_t num_chunks;
  float max;  // Of the kept entries.
  float floor;
  float ceiling;

  // Calls visit(value) for the thread's share of the kept entries that are not
  // -infinity, in a fixed order. Chunks below the key `at_least` are skipped.
  template <typename Visit>
  SIMT_DEVICE void ForEach(uint32_t at_least, Visit visit) const {
    const int warp = simt::ThreadX() / 32, lane = simt::ThreadX() % 32;
    at_least = TakeMax()(at_least, KeyOf(floor));
    for (int first = warp; first < num_chunks; first += kThreads) {
      const int mine = first + lane * kWarps;
      uint32_t mask =
          simt::Ballot(mine < num_chunks && chunks[mine] >= at_least);
      while (mask != 0) {
        // So many loads are under way at once.
        constexpr int kLoads = 2;
        simt::Bytes16 bytes[kLoads];
        int num_loads = 0;
        SIMT_UNROLL
        for (int n = 0; n < kLoads; ++n) {
          if (mask == 0) continue;
          const int64_t chunk = first + simt::LowestSetBit(mask) * kWarps;
          mask &= mask - 1;
          bytes[n] = simt::Load16(z + chunk * kSamplingChunk + lane * 4);
          num_loads = n + 1;
        }
        SIMT_UNROLL
        for (int n = 0; n < kLoads; ++n) {
          if (n < num_loads) Visit4(bytes[n], visit);
        }
      }
    }
  }

  template <typename Visit>
  SIMT_DEVICE void Visit4(const simt::Bytes16& bytes, Visit visit) const {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float value = std::bit_cast<float>(bytes.words[i]);
      if (value >= floor && value <= ceiling && value > -INFINITY) {
        visit(value);
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

// How much is wanted of a total.
struct Target {
  uint64_t amount;
  float share;  // Of the total, if the amount is 0.

  SIMT_DEVICE uint64_t Of(uint64_t total) const {
    uint64_t target = amount;
    if (amount == 0) {
      target = static_cast<uint64_t>(
          std::ceil(static_cast<double>(share) * static_cast<double>(total)));
      if (target == 0) target = 1;
    }
    return TakeMin()(target, total);
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

// The largest key at which the entries of at least that key have the target
// mass; its low bits are 0 if kPasses is below 3. Requires: there is an entry.
//   for_each(at_least, visit): visits the entries; it may leave out those whose
//   key is below at_least.
//   key_of(entry): the largest comes first; mass_of(entry).
template <int kPasses, typename ForEach, typename Key, typename Mass>
SIMT_DEVICE uint32_t SelectKey(const Shared& shared, const Target& wanted,
                               ForEach for_each, Key key_of, Mass mass_of) {
  uint64_t target = 0;
  uint32_t prefix = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
    const int bits = pass == 2 ? 10 : 11;
    const uint32_t mask = (1u << bits) - 1;
    for (int i = simt::ThreadX(); i < kBins; i += kThreads) {
      shared.low[i] = 0;
      shared.high[i] = 0;
    }
    simt::SyncThreads();
    for_each(pass > 0 ? prefix << (shift + bits) : 0, [&](auto entry) {
      const uint32_t key = key_of(entry);
      if (pass > 0 && key >> (shift + bits) != prefix) return;
      AddToBin(shared, key >> shift & mask, mass_of(entry));
    });
    if (!HasPlantedBug(PlantedBug::kSamplingBinsReadTooEarly)) {
      simt::SyncThreads();
    }
    prefix = prefix << bits | FindBin(shared, pass == 0, wanted, &target);
  }
  return kPasses == 3 ? prefix : kPasses == 2 ? prefix << 10 : prefix << 21;
}

// Sums of e^(z - max), and of that times z - max, over the kept entries.
SIMT_DEVICE void SumMasses(const Row& row, uint64_t* scratch, double* sum,
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
  *sum = CtaReduce<kThreads>(my_sum, TakeSum(), scratch);
  *weighted = CtaReduce<kThreads>(my_weighted, TakeSum(), scratch);
  *count = CtaReduce<kThreads>(my_count, TakeSum(), scratch);
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

// What one of the steps 8 to 10 looks for in a row; they share the code that
// finds it.
struct Selection {
  Row row;  // Without entries that are known to be beyond the target.
  Target target;
  bool is_of_counts = false;    // Else of masses.
  bool is_by_distance = false;  // From center, the least first; else by z.
  float center = 0.0f;
};

SIMT_DEVICE uint32_t SelectKey(const Selection& s, const Shared& shared) {
  return SelectKey<3>(
      shared, s.target,
      [&s](uint32_t at_least, auto visit) {
        s.row.ForEach(s.is_by_distance ? 0 : at_least, visit);
      },
      [&s](float z) {
        return s.is_by_distance ? ~KeyOf(std::fabs(z - s.center)) : KeyOf(z);
      },
      [&s](float z) {
        return s.is_of_counts ? uint64_t{1} : MassOf(z, s.row.max);
      });
}

// Step 8.
SIMT_DEVICE Selection TopKSelection(const Row& row, int32_t k,
                                    const Shared& shared) {
  Selection selection = {row, {static_cast<uint64_t>(k), 0.0f}};
  selection.is_of_counts = true;
  uint32_t num_chunks = 0;
  for (int c = simt::ThreadX(); c < row.num_chunks; c += kThreads) {
    num_chunks += row.chunks[c] > kKeyOfMinusInfinity;
  }
  num_chunks = CtaReduce<kThreads>(num_chunks, TakeSum(), shared.scratch);
  if (num_chunks < static_cast<uint32_t>(k)) return selection;
  // k chunks have an entry that large: what is below needs no look.
  const uint32_t bound = SelectKey<2>(
      shared, selection.target,
      [&row](uint32_t, auto visit) {
        for (int c = simt::ThreadX(); c < row.num_chunks; c += kThreads) {
          if (row.chunks[c] > kKeyOfMinusInfinity) visit(row.chunks[c]);
        }
      },
      [](uint32_t key) { return key; }, [](uint32_t) { return uint64_t{1}; });
  selection.row.floor = TakeMax()(row.floor, ValueOf(bound));
  return selection;
}

// Step 9.
SIMT_DEVICE Selection TypicalSelection(const Row& row, float typical_p,
                                       const Shared& shared) {
  double sum, weighted;
  uint32_t unused_count;
  SumMasses(row, shared.scratch, &sum, &weighted, &unused_count);
  Selection selection = {row, {0, typical_p}};
  selection.is_by_distance = true;
  selection.center = static_cast<float>(row.max + weighted / sum);
  return selection;
}
SIMT_DEVICE void KeepWithin(float distance, float center, const Shared& shared,
                            Row* row) {
  float low = INFINITY, high = -INFINITY;
  row->ForEach(0, [&](float z) {
    if (!(std::fabs(z - center) <= distance)) return;
    low = TakeMin()(low, z);
    high = TakeMax()(high, z);
  });
  row->floor = CtaReduce<kThreads>(low, TakeMin(), shared.scratch);
  row->ceiling = CtaReduce<kThreads>(high, TakeMax(), shared.scratch);
  row->max = row->ceiling;
}

// Step 10. `tiles`: with the sum of the whole row, or null.
SIMT_DEVICE Selection TopPSelection(const Row& row, float top_p,
                                    const TileResult* tiles,
                                    const Shared& shared) {
  Selection selection = {row, {0, top_p}};
  if (tiles == nullptr) return selection;
  double total = 0;
  for (int t = 0; t < row.num_chunks / kChunksPerTile; ++t) {
    if (!(tiles[t].z_max > -INFINITY)) continue;
    total += tiles[t].z_sum *
             static_cast<double>(simt::Exp(tiles[t].z_max - row.max));
  }
  // Most rows have their mass near the top: then most chunks need no look.
  for (float distance = 5.0f; distance < 20.0f; distance *= 2) {
    selection.row.floor = row.max - distance;
    double sum = 0;
    selection.row.ForEach(0, [&](float z) { sum += simt::Exp(z - row.max); });
    sum = CtaReduce<kThreads>(sum, TakeSum(), shared.scratch);
    // The margin covers the rounding of both sums.
    if (sum * (1 - 1e-5) < top_p * total) continue;
    const double amount = std::ceil(top_p * total * 0x1p44);
    selection.target.amount = amount >= 1 ? static_cast<uint64_t>(amount) : 1;
    return selection;
  }
  selection.row.floor = row.floor;
  return selection;
}

// Step 11.
SIMT_DEVICE void ExcludeTopChoices(float threshold, const Shared& shared,
                                   Row* row) {
  double sum, unused_weighted;
  uint32_t unused_count;
  SumMasses(*row, shared.scratch, &sum, &unused_weighted, &unused_count);
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
                        int64_t position, const TileResult* tiles,
                        const Shared& shared, Row* row) {
  if (p.top_n_sigma > 0.0f) {
    row->floor = TopNSigmaFloor(*row, shared, p.top_n_sigma);
  }
  if (p.min_p > 0.0f) {
    row->floor = TakeMax()(row->floor, MinPThreshold(row->max, p.min_p));
  }
  for (int step = 8; step <= 10; ++step) {
    Selection selection;
    if (step == 8) {
      if (p.top_k <= 0 || p.top_k >= vocab_size) continue;
      selection = TopKSelection(*row, p.top_k, shared);
    } else if (step == 9) {
      if (!(p.typical_p < 1.0f)) continue;
      selection = TypicalSelection(*row, p.typical_p, shared);
    } else {
      if (!(p.top_p < 1.0f)) continue;
      selection = TopPSelection(*row, p.top_p, tiles, shared);
    }
    const uint32_t key = SelectKey(selection, shared);
    if (step == 9) {
      KeepWithin(ValueOf(~key), selection.center, shared, row);
    } else {
      row->floor = ValueOf(key);
    }
  }
  if (p.xtc_probability > 0.0f &&
      XtcApplies(p.draw_key, position, p.xtc_probability)) {
    ExcludeTopChoices(p.xtc_threshold, shared, row);
  }
}

// True if the row of logits is drawn from and has filters: then fills *row.
//   chunks: [kMaxSamplingChunks], shared; key: of the largest entry.
SIMT_DEVICE bool OpenRow(const SampleArguments& a, const SamplingWorkspace& w,
                         uint32_t* chunks, uint64_t* scratch,
                         const SlotSampling** slot, Row* row) {
  const int64_t logit = simt::CtaX();
  const int32_t row_idx = a.logit_rows[logit];
  if (row_idx < 0) return false;
  const SamplingRow& step_row = a.rows[row_idx];
  if (step_row.slot < 0 || logit - step_row.first_logit < step_row.num_scored) {
    return false;
  }
  *slot = &a.slots[step_row.slot];
  if (!HasFilters(**slot)) return false;
  row->z = w.z + logit * w.row_stride;
  row->num_chunks = static_cast<int32_t>(w.num_tiles * kChunksPerTile);
  row->chunks = chunks;
  row->floor = -INFINITY;
  row->ceiling = INFINITY;
  uint32_t key = 0;
  for (int c = simt::ThreadX(); c < row->num_chunks; c += kThreads) {
    chunks[c] = w.chunks[logit * row->num_chunks + c];
    key = TakeMax()(key, chunks[c]);
  }
  row->max = ValueOf(CtaReduce<kThreads>(key, TakeMax(), scratch));
  return true;
}

// Step 5 of the rows whose temperature depends on their entropy.
SIMT_KERNEL(kThreads)
TemperatureKernel(const SampleArguments a) {
  SIMT_SHARED(uint32_t, chunks, kMaxSamplingChunks);
  SIMT_SHARED(uint64_t, scratch, kWarps);
  SIMT_SHARED(float, shared_temperature, 1);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaX();
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.vocab_size, nullptr);
  const SlotSampling* slot;
  Row row;
  if (!OpenRow(a, w, chunks, scratch, &slot, &row)) return;
  const SlotSampling& p = *slot;
  if (!(p.dynatemp_range > 0.0f)) return;
  float temperature = p.temperature;
  if (std::isfinite(row.max)) {
    double sum, weighted;
    uint32_t count;
    SumMasses(row, scratch, &sum, &weighted, &count);
    if (simt::ThreadX() == 0) {
      *shared_temperature = DynamicTemperature(
          p.temperature, p.dynatemp_range, p.dynatemp_exponent,
          std::log(sum) - weighted / sum, count);
    }
    simt::SyncThreads();
    temperature = *shared_temperature;
  }
  const bool is_greedy = temperature < kMinTemperature;
  if (simt::ThreadX() == 0) w.filters[logit].is_greedy = is_greedy;
  if (is_greedy) return;
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
      w.chunks[logit * row.num_chunks + chunk] =
          KeyOf(ValueOf(chunks[chunk]) / temperature);
    }
  }
}

SIMT_KERNEL(kThreads, 2)
FilterKernel(const SampleArguments a) {
  SIMT_SHARED(uint32_t, low, kBins);
  SIMT_SHARED(uint32_t, high, kBins);
  SIMT_SHARED(uint32_t, chunks, kMaxSamplingChunks);
  SIMT_SHARED(uint64_t, scratch, kWarps);
  SIMT_SHARED(uint64_t, found, 2);
  simt::WaitForPrevious();
  simt::LaunchNext();
  const int64_t logit = simt::CtaX();
  const SamplingWorkspace w =
      SamplingWorkspaceAt(a.workspace, a.num_logits, a.vocab_size, nullptr);
  const Shared shared = {low, high, scratch, found};
  const SlotSampling* slot;
  Row row;
  if (!OpenRow(a, w, chunks, scratch, &slot, &row)) return;
  const SlotSampling& p = *slot;
  // Where nothing is left, or logit / temperature overflowed, the first of the
  // largest is drawn.
  const bool is_greedy =
      !std::isfinite(row.max) ||
      (p.dynatemp_range > 0.0f && w.filters[logit].is_greedy != 0);
  if (!is_greedy) {
    Filter(p, a.vocab_size, int64_t{a.positions[a.logit_tokens[logit]]} + 1,
           HasRowSum(p) ? w.tiles + logit * w.num_tiles : nullptr, shared,
           &row);
  }
  // Of is_greedy, no thread that reads it sees a change.
  if (simt::ThreadX() == 0) {
    w.filters[logit].floor = row.floor;
    w.filters[logit].ceiling = row.ceiling;
    w.filters[logit].is_greedy = is_greedy;
  }
}

}  // namespace

bool LaunchSamplingFilter(const SampleArguments& arguments,
                          simt::Stream stream) {
  const simt::LaunchShape shape = {
      .num_ctas_x = static_cast<uint32_t>(arguments.num_logits),
      .num_threads = kThreads,
      .waits_for_previous = true};
  return simt::Launch(&TemperatureKernel, shape, stream, arguments) &&
         simt::Launch(&FilterKernel, shape, stream, arguments);
}

}  // namespace quire::cuda
