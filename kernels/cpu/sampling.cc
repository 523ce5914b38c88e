#include "kernels/cpu/sampling.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/logit_processors.h"
#include "kernels/sampling.h"

namespace quire {
namespace {

// Entries whose maximum is kept. 64: a Gumbel chunk is one Philox call of 16
// AVX-512 lanes by 4 words, and 150,000 entries have 2,344 maxima, which fit
// in L1.
constexpr int kChunk = 64;

// GumbelNoise never exceeds -log(-log(1 - 2^-24)) = 16.636.
constexpr float kMaxGumbelNoise = 16.7f;

// Which random words can still win: noise grows with the word's high 23 bits.
class NoiseFloor {
 public:
  static const NoiseFloor& Get() {
    static const NoiseFloor floor;
    return floor;
  }

  // The smallest 23 bits whose noise may lift an entry of at most `largest` to
  // `best`.
  int32_t For(float best, float largest) const {
    // Covers the error of GumbelNoise and the rounding of the sum.
    const float margin =
        1e-3f + 0x1p-21f * (std::abs(best) + std::abs(largest) + 20.0f);
    const float step = (best - largest - margin - kLowest) * kStepsPerUnit;
    return floors_[static_cast<int>(
        std::clamp(step, 0.0f, static_cast<float>(kNumSteps - 1)))];
  }

 private:
  static constexpr float kLowest = -4.0f;  // e^-e^4 is below 2^-23.
  static constexpr int kStepsPerUnit = 8;
  static constexpr int kNumSteps = 21 * kStepsPerUnit;

  NoiseFloor() {
    for (int step = 1; step < kNumSteps; ++step) {
      const double noise = kLowest + static_cast<double>(step) / kStepsPerUnit;
      // u = (bits + 0.5) / 2^23 has the noise -log(-log(u)).
      const double bits = std::exp(-std::exp(-noise)) * 0x1p23 - 0.5;
      floors_[step] = static_cast<int32_t>(std::max(0.0, std::floor(bits)));
    }
  }

  int32_t floors_[kNumSteps] = {};
};

struct SamplingKernels {
  bool (*scan_row)(const float*, int64_t, float*);
  void (*divide_row)(const float*, int64_t, float, float*, float*);
  double (*sum_exp)(const float*, int64_t, const float*, float, float);
  void (*sum_exp_and_product)(const float*, int64_t, const float*, float, float,
                              double*, double*);
  void (*moments)(const float*, int64_t, const float*, float, int64_t*, double*,
                  double*);
  void (*exp_row)(const float*, int64_t, float, float*);
  int64_t (*collect)(const float*, int64_t, const float*, float, float, float*);
  int32_t (*gumbel_argmax)(const float*, int64_t, const float*, float, uint64_t,
                           int64_t, int32_t, int32_t);
};

#define QUIRE_ROW_KERNELS "kernels/cpu/sampling.inc"
#include "kernels/cpu/row_isas.inc"

int64_t NumChunks(int64_t size) { return (size + kChunk - 1) / kChunk; }

}  // namespace

SamplingScratch::SamplingScratch(int32_t vocab_size, int64_t max_history)
    : scaled_(vocab_size),
      chunk_max_(NumChunks(vocab_size)),
      order_(vocab_size),
      ids_(vocab_size),
      weighted_(vocab_size),
      lengths_(new int32_t[max_history]),
      max_history_(max_history) {}

int64_t SamplingScratch::NumBytes(int32_t vocab_size, int64_t max_history) {
  return int64_t{vocab_size} * (3 * 4 + 8) + NumChunks(vocab_size) * 4 +
         max_history * 4;
}

// The draw of one row: holds what its steps share.
class RowSampler {
  using Weighted = SamplingScratch::Weighted;

 public:
  RowSampler(Isa isa, const SampleInput& input, SamplingScratch& scratch)
      : RowSampler(isa, input, {0, input.vocab_size}, scratch) {}
  RowSampler(Isa isa, const SampleInput& input, VocabSlice slice,
             SamplingScratch& scratch)
      : kernels_(RowKernelsFor(isa)),
        input_(input),
        params_(*input.params),
        first_id_(slice.first_id),
        size_(slice.size),
        num_chunks_(NumChunks(slice.size)),
        scratch_(scratch),
        chunk_max_(scratch.chunk_max_.data()) {}

  bool IsFinite() {
    return kernels_.scan_row(input_.logits, size_, chunk_max_);
  }

  void Run(SampleOutput* output) {
    const float* row = input_.logits;
    if (!IsFinite()) {
      output->non_finite = true;
      return;
    }
    double log_sum = 0.0;
    float max = 0.0f;
    if (params_.num_logprobs >= 0) {
      max = MaxOfRow();
      log_sum =
          std::log(kernels_.sum_exp(row, size_, chunk_max_, max, -INFINITY));
      if (params_.num_logprobs > 0) TopLogprobs(max, log_sum, output);
    }
    output->token = Draw(&output->all_masked);
    if (params_.num_logprobs >= 0) {
      output->logprob = Logprob(row[output->token], max, log_sum);
    }
  }

  void RunSlice(SliceSample* output) {
    const float* row = input_.logits;
    if (!IsFinite()) {
      output->non_finite = true;
      return;
    }
    if (params_.num_logprobs >= 0) {
      output->max = MaxOfRow();
      output->sum =
          kernels_.sum_exp(row, size_, chunk_max_, output->max, -INFINITY);
      const int64_t num_top = SelectTop();
      for (int64_t i = 0; i < params_.num_logprobs; ++i) {
        const int32_t id = i < num_top ? scratch_.ids_[i] : -1;
        output->top_ids[i] = id < 0 ? id : first_id_ + id;
        output->top_logits[i] = id < 0 ? -INFINITY : row[id];
      }
    }
    bool all_masked = false;
    const int32_t id = Draw(&all_masked);
    output->token = first_id_ + id;
    output->score = drawn_score_;
    output->logit = row[id];
  }

  void Score(int32_t id, SampleOutput* output) {
    const float* row = input_.logits;
    if (!IsFinite()) {
      output->non_finite = true;
      return;
    }
    const float max = MaxOfRow();
    const double log_sum =
        std::log(kernels_.sum_exp(row, size_, chunk_max_, max, -INFINITY));
    if (params_.num_logprobs > 0) TopLogprobs(max, log_sum, output);
    output->token = id;
    output->logprob = Logprob(row[id], max, log_sum);
    int64_t num_at_least = 0;
    int64_t num_equal = 0;
    ForEachAtLeast(row, row[id], [&](int64_t other) {
      ++num_at_least;
      num_equal += row[other] == row[id];
    });
    output->rank = static_cast<int32_t>(num_at_least - num_equal) + 1;
  }

 private:
  static float Logprob(float logit, float max, double log_sum) {
    return static_cast<float>(static_cast<double>(logit) - max - log_sum);
  }

  float MaxOfRow() const {
    return *std::max_element(chunk_max_, chunk_max_ + num_chunks_);
  }

  // The lowest id of the largest entry.
  int32_t Argmax(const float* row) const {
    const int64_t chunk =
        std::max_element(chunk_max_, chunk_max_ + num_chunks_) - chunk_max_;
    const float* begin = row + chunk * kChunk;
    const float* end = row + std::min(size_, (chunk + 1) * kChunk);
    return static_cast<int32_t>(std::max_element(begin, end) - row);
  }

  // A lower bound of the k-th largest entry of the row: k chunks have a maximum
  // that large.
  float LowerBoundOfLargest(int64_t k) {
    if (k > num_chunks_) return -INFINITY;
    float* maxima = scratch_.order_.data();
    std::copy(chunk_max_, chunk_max_ + num_chunks_, maxima);
    std::nth_element(maxima, maxima + (k - 1), maxima + num_chunks_,
                     std::greater<float>());
    return maxima[k - 1];
  }

  // Calls visit(id) for the entries >= threshold, in order.
  template <typename Visit>
  void ForEachAtLeast(const float* row, float threshold, Visit visit) const {
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      if (!(chunk_max_[chunk] >= threshold)) continue;
      const int64_t end = std::min(size_, (chunk + 1) * kChunk);
      for (int64_t id = chunk * kChunk; id < end; ++id) {
        if (row[id] >= threshold) visit(id);
      }
    }
  }

  // The num_logprobs largest entries in order, in scratch_.ids_; returns how
  // many there are.
  int64_t SelectTop() {
    const float* row = input_.logits;
    const int64_t k = std::min<int64_t>(params_.num_logprobs, size_);
    if (k == 0) return 0;
    int32_t* ids = scratch_.ids_.data();
    int64_t num_ids = 0;
    ForEachAtLeast(row, LowerBoundOfLargest(k), [&](int64_t id) {
      ids[num_ids++] = static_cast<int32_t>(id);
    });
    std::partial_sort(ids, ids + k, ids + num_ids, [row](int32_t a, int32_t b) {
      return row[a] > row[b] || (row[a] == row[b] && a < b);
    });
    return k;
  }

  void TopLogprobs(float max, double log_sum, SampleOutput* output) {
    const float* row = input_.logits;
    const int32_t* ids = scratch_.ids_.data();
    const int64_t k = SelectTop();
    for (int64_t i = 0; i < k; ++i) {
      output->top_ids[i] = ids[i];
      output->top_logprobs[i] = Logprob(row[ids[i]], max, log_sum);
    }
  }

  // Steps 2 to 12 of kernels/sampling.h.
  int32_t Draw(bool* all_masked) {
    const bool is_greedy = params_.temperature < kMinTemperature;
    const float* row = input_.logits;
    // In its place in the vocabulary: processors go by ids, and whatever they
    // do outside the slice has no effect.
    float* z = scratch_.scaled_.data() + first_id_;
    if (NeedsProcessors(input_)) {
      std::memcpy(z, row, size_ * sizeof(float));
      ProcessLogits(input_, scratch_, scratch_.scaled_.data());
      row = z;
      // For the maxima of the chunks.
      if (is_greedy || params_.dynatemp_range > 0.0f) {
        kernels_.divide_row(z, size_, 1.0f, z, chunk_max_);
      }
    }
    const float temperature = is_greedy ? 0.0f : TemperatureOf(row);
    if (temperature < kMinTemperature) {
      const int32_t largest = Argmax(row);
      *all_masked = row[largest] == -INFINITY;
      drawn_score_ = row[largest];
      return largest;
    }
    kernels_.divide_row(row, size_, temperature, z, chunk_max_);
    int32_t largest = Argmax(z);
    *all_masked = z[largest] == -INFINITY;
    drawn_score_ = z[largest];
    if (!std::isfinite(z[largest])) return largest;
    const float threshold = Filter(z, z[largest]);
    if (z[largest] == -INFINITY) largest = Argmax(z);
    const int32_t drawn = kernels_.gumbel_argmax(
        z, size_, chunk_max_, threshold, params_.draw_key, input_.position,
        first_id_, largest);
    drawn_score_ = z[drawn] + GumbelNoise(params_.draw_key, input_.position,
                                          first_id_ + drawn);
    return drawn;
  }

  // Of step 5. Requires: chunk_max_ is that of the row.
  float TemperatureOf(const float* row) const {
    const float max = MaxOfRow();
    if (!(params_.dynatemp_range > 0.0f) || !std::isfinite(max)) {
      return params_.temperature;
    }
    double sum, weighted;
    kernels_.sum_exp_and_product(row, size_, chunk_max_, max, -INFINITY, &sum,
                                 &weighted);
    int64_t count;
    double unused_sum, unused_squares;
    kernels_.moments(row, size_, chunk_max_, max, &count, &unused_sum,
                     &unused_squares);
    return DynamicTemperature(params_.temperature, params_.dynatemp_range,
                              params_.dynatemp_exponent,
                              std::log(sum) - weighted / sum, count);
  }

  // Steps 6 to 11. Returns the smallest value that is kept; what is dropped for
  // being too large becomes -infinity.
  float Filter(float* z, float max) {
    float threshold = -INFINITY;
    if (params_.top_n_sigma > 0.0f) threshold = TopNSigmaThreshold(z, max);
    if (params_.min_p > 0.0f) {
      threshold = std::max(threshold, MinPThreshold(max, params_.min_p));
    }
    if (params_.top_k > 0 && params_.top_k < size_) {
      threshold = std::max(threshold, TopKThreshold(z, threshold));
    }
    if (params_.typical_p < 1.0f) {
      threshold = std::max(threshold, KeepTypical(z, max, threshold));
      max = MaxOfRow();
    }
    if (params_.top_p < 1.0f) threshold = TopPThreshold(z, max, threshold);
    if (params_.xtc_probability > 0.0f &&
        XtcApplies(params_.draw_key, input_.position,
                   params_.xtc_probability)) {
      ExcludeTopChoices(z, max, threshold);
    }
    return threshold;
  }

  float TopNSigmaThreshold(const float* z, float max) const {
    int64_t count;
    double sum, sum_squares;  // Of distances from the maximum.
    kernels_.moments(z, size_, chunk_max_, max, &count, &sum, &sum_squares);
    const double mean = sum / count;
    const double variance = std::max(0.0, sum_squares / count - mean * mean);
    return static_cast<float>(max - params_.top_n_sigma * std::sqrt(variance));
  }

  // Drops what is above the typical set; returns its smallest entry.
  float KeepTypical(float* z, float max, float floor) {
    double sum, weighted;
    kernels_.sum_exp_and_product(z, size_, chunk_max_, max, floor, &sum,
                                 &weighted);
    const float center = static_cast<float>(max + weighted / sum);
    // What is further down than this has no weight in f32.
    const float bound = std::max(floor, max - 87.0f);
    float* values = scratch_.order_.data();
    const int64_t count =
        kernels_.collect(z, size_, chunk_max_, bound, INFINITY, values);
    Weighted* entries = scratch_.weighted_.data();
    for (int64_t i = 0; i < count; ++i) {
      entries[i].value = -std::abs(values[i] - center);
    }
    kernels_.exp_row(values, count, max, values);
    for (int64_t i = 0; i < count; ++i) entries[i].weight = values[i];
    const float distance = -SelectByMass(entries, entries + count,
                                         params_.typical_p * sum, -INFINITY);
    float low = INFINITY;
    float high = -INFINITY;
    ForEachAtLeast(z, bound, [&](int64_t id) {
      if (std::abs(z[id] - center) <= distance) {
        low = std::min(low, z[id]);
        high = std::max(high, z[id]);
      }
    });
    DropAbove(z, high);
    return low;
  }

  void ExcludeTopChoices(float* z, float max, float floor) {
    const double total = kernels_.sum_exp(z, size_, chunk_max_, max, floor);
    const double bound = max + std::log(double{params_.xtc_threshold} * total);
    // The comparison excludes -infinity.
    const float at_least = std::max({floor, static_cast<float>(bound),
                                     std::numeric_limits<float>::lowest()});
    float least = INFINITY;
    ForEachAtLeast(z, at_least,
                   [&](int64_t id) { least = std::min(least, z[id]); });
    DropAbove(z, least);
  }

  // Entries > high become -infinity.
  void DropAbove(float* z, float high) {
    for (int64_t chunk = 0; chunk < num_chunks_; ++chunk) {
      if (!(chunk_max_[chunk] > high)) continue;
      const int64_t end = std::min(size_, (chunk + 1) * kChunk);
      float max = -INFINITY;
      for (int64_t id = chunk * kChunk; id < end; ++id) {
        if (z[id] > high) z[id] = -INFINITY;
        max = std::max(max, z[id]);
      }
      chunk_max_[chunk] = max;
    }
  }

  // The k-th largest entry, or -infinity if fewer are >= floor.
  float TopKThreshold(const float* z, float floor) {
    const int64_t k = params_.top_k;
    const float bound = std::max(floor, LowerBoundOfLargest(k));
    float* values = scratch_.order_.data();
    const int64_t count =
        kernels_.collect(z, size_, chunk_max_, bound, INFINITY, values);
    if (count < k) return -INFINITY;
    std::nth_element(values, values + (k - 1), values + count,
                     std::greater<float>());
    return values[k - 1];
  }

  // The largest threshold >= floor at which the kept mass reaches top_p of that
  // of all entries >= floor. First the mass above a few distances from the
  // maximum brackets it, then a selection within the bracket finds it.
  float TopPThreshold(const float* z, float max, float floor) {
    const double target = static_cast<double>(params_.top_p) *
                          kernels_.sum_exp(z, size_, chunk_max_, max, floor);
    float high = INFINITY;  // The mass of entries >= high is below target.
    double mass_above = 0.0;
    float low = floor;
    for (float distance = 0.5f; distance < 64.0f; distance *= 2.0f) {
      const float middle = max - distance;
      if (middle <= floor) break;
      const double mass = kernels_.sum_exp(z, size_, chunk_max_, max, middle);
      if (mass >= target) {
        low = middle;
        break;
      }
      high = middle;
      mass_above = mass;
    }
    // Each pass halves the bracket; it costs a fraction of selecting from all
    // of a flat distribution.
    for (int pass = 0; pass < 6 && std::isfinite(low); ++pass) {
      const float middle = low + (std::min(high, max) - low) * 0.5f;
      if (!(middle > low && middle < high)) break;
      const double mass = kernels_.sum_exp(z, size_, chunk_max_, max, middle);
      if (mass >= target) {
        low = middle;
      } else {
        high = middle;
        mass_above = mass;
      }
    }
    float* values = scratch_.order_.data();
    const int64_t count =
        kernels_.collect(z, size_, chunk_max_, low, high, values);
    Weighted* entries = scratch_.weighted_.data();
    for (int64_t i = 0; i < count; ++i) entries[i].value = values[i];
    kernels_.exp_row(values, count, max, values);
    for (int64_t i = 0; i < count; ++i) entries[i].weight = values[i];
    return SelectByMass(entries, entries + count, target - mass_above, low);
  }

  // The largest value of which the entries at least as large have at least
  // `target` mass; `otherwise` if there is none. Reorders the entries.
  static float SelectByMass(Weighted* begin, Weighted* end, double target,
                            float otherwise) {
    double mass = 0.0;  // Of the entries known to be kept.
    while (end - begin > 16) {
      const float a = begin->value;
      const float b = begin[(end - begin) / 2].value;
      const float c = end[-1].value;
      const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
      Weighted* equal = std::partition(
          begin, end, [pivot](const Weighted& w) { return w.value > pivot; });
      Weighted* less = std::partition(
          equal, end, [pivot](const Weighted& w) { return w.value == pivot; });
      double greater_mass = mass;
      for (Weighted* w = begin; w < equal; ++w) greater_mass += w->weight;
      if (greater_mass >= target && equal > begin) {
        end = equal;
        continue;
      }
      for (Weighted* w = equal; w < less; ++w) greater_mass += w->weight;
      if (greater_mass >= target) return pivot;
      mass = greater_mass;
      begin = less;
    }
    std::sort(begin, end, [](const Weighted& x, const Weighted& y) {
      return x.value > y.value;
    });
    for (; begin < end; ++begin) {
      mass += begin->weight;
      if (mass >= target) return begin->value;
    }
    return otherwise;
  }

  const SamplingKernels& kernels_;
  const SampleInput& input_;
  const SlotParams& params_;
  const int32_t first_id_;  // Of the entries; ids here count from it.
  const int64_t size_;
  const int64_t num_chunks_;
  SamplingScratch& scratch_;
  float* chunk_max_;
  float drawn_score_ = 0.0f;  // See SliceSample::score.
};

void SampleRow(Isa isa, const SampleInput& input, SamplingScratch& scratch,
               SampleOutput* output) {
  RowSampler(isa, input, scratch).Run(output);
}

bool NeedsWholeRow(const SlotParams& params) {
  if (params.temperature < kMinTemperature) return false;
  return params.dynatemp_range > 0.0f || params.top_n_sigma > 0.0f ||
         params.min_p > 0.0f || params.top_k > 0 || params.typical_p < 1.0f ||
         params.top_p < 1.0f || params.xtc_probability > 0.0f;
}

void SampleSlice(Isa isa, const SampleInput& input, VocabSlice slice,
                 SamplingScratch& scratch, SliceSample* output) {
  RowSampler(isa, input, slice, scratch).RunSlice(output);
}

void ScoreRow(Isa isa, const float* logits, int32_t vocab_size, int32_t id,
              int32_t num_top, SamplingScratch& scratch, SampleOutput* output) {
  SampleInput input;
  SlotParams params;
  params.num_logprobs = num_top;
  input.logits = logits;
  input.vocab_size = vocab_size;
  input.params = &params;
  RowSampler(isa, input, scratch).Score(id, output);
}

}  // namespace quire
