// Runs of the kernels that have no problem of their own (attention_problem.h,
// linear_problem.h), with sizes that end within a CTA, a warp or a loop, on
// memory that a predecessor in the stream has yet to write: all that they
// write, and what lies around it. Which of it is right, the kernels' own tests
// know; here two runs are compared.
#ifndef QUIRE_KERNELS_CUDA_KERNEL_RUNS_H_
#define QUIRE_KERNELS_CUDA_KERNEL_RUNS_H_

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/random.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/probe_kernels.h"
#include "kernels/cuda/quantized_linear.h"
#include "kernels/cuda/sampling_kernels.h"
#include "kernels/cuda/sampling_params.h"
#include "kernels/cuda/simt/emulator.h"
#include "kernels/cuda/simt/simt.h"
#include "kernels/cuda/step_kernels.h"
#include "kernels/cuda/vocab_slices.h"

namespace quire::cuda {

SIMT_KERNEL(32)
ArrivalKernel(unsigned char* to, const unsigned char* from, int64_t num_bytes) {
  simt::WaitForPrevious();
  simt::LaunchNext();
  for (int64_t i = simt::ThreadX(); i < num_bytes; i += 32) to[i] = from[i];
}

// A stream whose launches begin, up to their wait, before the one in front of
// them has run.
class KernelRun {
 public:
  simt::Stream stream() { return reinterpret_cast<simt::Stream>(&queue_); }

  // Memory that a launch fills with `values`; before that it has the bytes of
  // `stale`, of which there are none or as many. Room for as much again follows
  // it, for who goes too far.
  template <typename T>
  T* Arrive(const std::vector<T>& values, const std::vector<T>& stale = {}) {
    const size_t num_bytes = values.size() * sizeof(T);
    unsigned char* const source = Allocate(num_bytes, 0xff);
    std::memcpy(source, values.data(), num_bytes);
    unsigned char* const place = Allocate(2 * num_bytes, 0xff);
    if (!stale.empty()) std::memcpy(place, stale.data(), num_bytes);
    is_launched_ &=
        simt::Launch(&ArrivalKernel, {.waits_for_previous = true}, stream(),
                     place, source, static_cast<int64_t>(num_bytes));
    return reinterpret_cast<T*>(place);
  }
  // Memory whose bytes are part of the result: filled with `fill`, or written
  // as above.
  template <typename T>
  T* Out(int64_t count, unsigned char fill = 0x5a) {
    const size_t num_bytes = count * sizeof(T);
    unsigned char* const place = Allocate(2 * num_bytes, fill);
    outs_.push_back({place, 2 * num_bytes});
    return reinterpret_cast<T*>(place);
  }
  template <typename T>
  T* InOut(const std::vector<T>& values) {
    T* const place = Arrive(values);
    outs_.push_back(
        {reinterpret_cast<unsigned char*>(place), values.size() * sizeof(T)});
    return place;
  }
  void Launched(bool is_launched) { is_launched_ &= is_launched; }

  // Runs what is in the stream and adds the result; false if a launch failed
  // (simt::emulator::LastError) or was refused.
  bool Finish(std::string* result) {
    auto& entries = queue_.entries;
    if (!is_launched_) return false;
    std::shared_ptr<simt::emulator::EarlyLaunch> early;
    while (!entries.empty()) {
      if (early == nullptr) {
        early = simt::emulator::StartEarly(entries.front().shape,
                                           entries.front().body);
      }
      const auto now = std::exchange(early, nullptr);
      if (entries.size() > 1) {
        early = simt::emulator::StartEarly(entries[1].shape, entries[1].body);
      }
      simt::emulator::Finish(*now);
      if (!simt::emulator::LastError().empty()) return false;
      entries.pop_front();
    }
    for (const auto& [place, num_bytes] : outs_) {
      result->append(reinterpret_cast<const char*>(place), num_bytes);
    }
    return true;
  }

 private:
  struct alignas(16) Chunk {
    unsigned char bytes[16];
  };
  unsigned char* Allocate(size_t num_bytes, unsigned char fill) {
    memory_.emplace_back((num_bytes + 15) / 16);
    std::memset(memory_.back().data(), fill, memory_.back().size() * 16);
    return memory_.back().data()->bytes;
  }

  simt::emulator::Queue queue_;
  std::deque<std::vector<Chunk>> memory_;
  std::vector<std::pair<const unsigned char*, size_t>> outs_;
  bool is_launched_ = true;
};

inline std::vector<uint16_t> Bf16Values(SimulationRandom& random,
                                        int64_t count) {
  std::vector<uint16_t> values(count);
  for (uint16_t& x : values) {
    x = FloatToBf16(static_cast<float>(random.Uniform() * 4 - 2));
  }
  return values;
}
inline std::vector<float> FloatValues(SimulationRandom& random, int64_t count) {
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.Uniform() * 2 - 1);
  return values;
}

inline bool RunNorm(std::string* result) {
  const int cols = 2312, num_rows = 3;
  for (const auto kind :
       {NormArguments::Kind::kRms, NormArguments::Kind::kLayer}) {
    SimulationRandom random(3);
    KernelRun run;
    NormArguments norm;
    norm.kind = kind;
    norm.weight = run.Arrive(FloatValues(random, cols));
    norm.x = run.Arrive(Bf16Values(random, num_rows * cols));
    norm.residual = run.Arrive(Bf16Values(random, num_rows * cols));
    norm.rows = run.Arrive<int32_t>({2, 0}, {1, 1});
    norm.out = run.Out<uint16_t>(2 * cols);
    norm.num_tokens = 2;
    norm.cols = cols;
    run.Launched(LaunchNorm(norm, run.stream()));
    if (!run.Finish(result)) return false;
  }
  return true;
}

inline bool RunGather(std::string* result) {
  const int cols = 2056;
  SimulationRandom random(3);
  KernelRun run;
  GatherArguments gather;
  gather.table = run.Arrive(Bf16Values(random, 5 * cols));
  gather.x = run.Out<uint16_t>(3 * cols);
  gather.num_tokens = 3;
  gather.cols = cols;
  gather.entries = run.Arrive<int32_t>({4, 0, 4}, {1, 2, 3});
  run.Launched(LaunchGather(gather, run.stream()));
  return run.Finish(result);
}

inline bool RunGated(std::string* result) {
  const int cols = 2064;
  SimulationRandom random(3);
  KernelRun run;
  GatedArguments gated;
  gated.x = run.Arrive(Bf16Values(random, 2 * 2 * cols));
  gated.out = run.Out<uint16_t>(2 * cols);
  gated.num_tokens = 2;
  gated.cols = cols;
  run.Launched(LaunchGated(gated, run.stream()));
  return run.Finish(result);
}

inline bool RunRope(std::string* result) {
  const int num_heads = 3, num_kv_heads = 2, head_dim = 80, block_size = 8;
  const int num_tokens = 5, num_positions = 40, stride = 7 * head_dim;
  for (const HeadNorm::Span span :
       {HeadNorm::Span::kHead, HeadNorm::Span::kEachHead,
        HeadNorm::Span::kAllHeads}) {
    SimulationRandom random(3);
    KernelRun run;
    RopeArguments rope;
    rope.num_heads = num_heads;
    rope.num_kv_heads = num_kv_heads;
    rope.head_dim = rope.rotary_dim = head_dim;
    rope.block_size = block_size;
    rope.q_norm = {
        .kind = NormArguments::Kind::kLayer,
        .span = span,
        .weight = run.Arrive(FloatValues(random, num_heads * head_dim))};
    rope.k_norm = rope.q_norm;
    rope.statistics = run.Out<float>(num_tokens * 4);
    rope.rope_table = run.Arrive(FloatValues(random, num_positions * head_dim));
    rope.qkv = run.InOut(Bf16Values(random, num_tokens * stride));
    rope.qkv_stride = stride;
    if (span == HeadNorm::Span::kHead) rope.kv_dtype = DType::kF8E4M3;
    rope.kv_cache =
        run.Out<uint16_t>(12 * 2 * num_kv_heads * block_size * head_dim);
    // The last position of a block, the first, and padding.
    rope.positions = run.Arrive<int32_t>({15, 16, 38, 7, 0});
    rope.table_rows = run.Arrive<int32_t>({0, 0, 0, 1, -1});
    // Another table lies in front of the first.
    rope.block_tables = run.Arrive<int32_t>({11, 11, 11, 11, 11, 3, 1, 5, 7, 0,
                                             2, 4, 6, 8, 9}) +
                        5;
    rope.block_table_stride = 5;
    rope.num_tokens = num_tokens;
    run.Launched(LaunchRopeAndCache(rope, run.stream()));
    if (!run.Finish(result)) return false;
  }
  return true;
}

inline bool RunBlockCopy(std::string* result) {
  const int num_layers = 3, num_blocks = 5, elements = 2056;
  SimulationRandom random(3);
  KernelRun run;
  BlockCopyArguments copy;
  copy.kv_cache = reinterpret_cast<unsigned char*>(
      run.InOut(Bf16Values(random, num_layers * num_blocks * elements)));
  copy.num_layers = num_layers;
  copy.layer_bytes = num_blocks * elements * 2;
  copy.block_bytes = elements * 2;
  copy.pairs = run.Arrive<int32_t>({0, 3, 2, 4});
  copy.num_pairs = 2;
  run.Launched(LaunchBlockCopy(copy, run.stream()));
  return run.Finish(result);
}

// More tokens than a CTA has threads.
inline bool RunBeginStep(std::string* result) {
  const int num_tokens = 300;
  KernelRun run;
  std::vector<int32_t> ids(num_tokens);
  for (int i = 0; i < num_tokens; ++i) ids[i] = i % 3 == 0 ? ~(i % 4) : i;
  BeginStepArguments begin;
  begin.entries = run.Arrive<BlockTableEntry>({{1, 7}, {5, 8}, {2, 9}});
  begin.num_entries = 3;
  begin.block_tables = run.InOut<int32_t>({1, 2, 3, 4, 5, 6});
  begin.token_ids = run.InOut(ids);
  begin.num_tokens = num_tokens;
  begin.last_tokens = run.Arrive<int32_t>({50, 51, 52, 53}, {60, 61, 62, 63});
  run.Launched(LaunchBeginStep(begin, run.stream()));
  return run.Finish(result);
}

// A sequence that goes on and ends, one that starts where another one was, and
// padding.
inline bool RunMeanPool(std::string* result) {
  const int cols = 264;
  SimulationRandom random(3);
  KernelRun run;
  MeanPoolArguments pool;
  pool.x = run.Arrive(FloatValues(random, 6 * cols));
  pool.rows = run.Arrive<PoolRow>(
      {{1, 0, 2, 3, 1}, {2, 2, 3, 0, 0}, {-1, 0, 0, 0, -1}, {0, 5, 1, 4, -1}});
  pool.num_rows = 4;
  pool.cols = cols;
  std::vector<double> sums(3 * cols);
  for (double& sum : sums) sum = random.Uniform();
  pool.sums = run.InOut(sums);
  pool.out = run.Out<float>(2 * cols);
  run.Launched(LaunchMeanPool(pool, run.stream()));
  return run.Finish(result);
}

inline bool RunPermuteColumns(std::string* result) {
  const int cols = 520, stride = 528;
  SimulationRandom random(3);
  std::vector<int32_t> order(cols);
  for (int i = 0; i < cols; ++i) order[i] = (i * 7 + 3) % cols;
  KernelRun run;
  PermuteColumnsArguments permute;
  permute.x = run.Arrive(Bf16Values(random, 3 * stride));
  permute.x_stride = stride;
  permute.order = run.Arrive(order);
  permute.out = run.Out<uint16_t>(3 * cols);
  permute.num_tokens = 3;
  permute.cols = cols;
  run.Launched(LaunchPermuteColumns(permute, run.stream()));
  return run.Finish(result);
}

// The second of two pieces of the rows, with more tokens than CTAs would take
// at a time.
inline bool RunFinishLinear(std::string* result) {
  const int num_tokens = 9, num_rows = 48, first_row = 32, rows = 96;
  for (const LinearActivation activation :
       {LinearActivation::kNone, LinearActivation::kSwiGlu}) {
    SimulationRandom random(3);
    KernelRun run;
    LinearArguments linear;
    linear.out_stride = rows;
    linear.num_tokens = num_tokens;
    linear.rows = rows;
    linear.epilogue.activation = activation;
    // As many as a thread without a row would read.
    linear.epilogue.bias = run.Arrive(FloatValues(random, 600));
    SumsToFinish sums;
    sums.sums = run.Arrive(FloatValues(random, num_tokens * (num_rows + 16)));
    sums.stride = num_rows;
    sums.first_row = first_row;
    sums.num_rows = num_rows;
    linear.out = run.Out<uint16_t>(num_tokens * rows);
    run.Launched(LaunchFinishLinear(linear, sums, run.stream()));
    if (!run.Finish(result)) return false;
  }
  return true;
}

// Two rows of logits in slices of two ranks, one after the other as in one
// stream, from logits to tokens.
inline bool RunVocabSlices(std::string* result) {
  const int slice_size = 5000, num_ranks = 2, num_logits = 2;
  SimulationRandom random(8);
  KernelRun run;
  std::vector<SlotSampling> slots;
  for (int slot = 0; slot < num_logits; ++slot) {
    SlotParams params;
    params.temperature = slot == 0 ? 0.8f : 0.0f;
    params.draw_key = 5 + slot;
    params.num_logprobs = 0;
    std::vector<int32_t> lists;
    slots.push_back(
        PackSlotSampling(params, 1, slice_size * num_ranks, &lists));
  }
  SampleArguments sample;
  sample.vocab_size = slice_size * num_ranks;
  sample.logits_stride = slice_size;
  sample.num_ids = slice_size;
  sample.num_logits = sample.num_rows = num_logits;
  sample.slots = run.Arrive(slots);
  sample.rows = run.Arrive<SamplingRow>(
      {{.slot = 0, .num_tokens = 1, .num_draws = 1},
       {.slot = 1, .num_tokens = 1, .first_logit = 1, .num_draws = 1}});
  sample.logit_rows = run.Arrive<int32_t>({0, 1});
  sample.logit_tokens = run.Arrive<int32_t>({0, 1});
  sample.positions = run.Arrive<int32_t>({3, 9});
  sample.token_ids = run.Arrive<int32_t>({3, 4});
  sample.num_computed_tokens = run.InOut<int32_t>({3, 9});
  sample.last_tokens = run.Out<int32_t>(num_logits);
  sample.tokens = run.Out<int32_t>(num_logits);
  sample.logprobs = run.Out<float>(num_logits);
  sample.num_drawn = run.Out<int32_t>(num_logits);
  sample.faults = run.Out<int32_t>(num_logits);
  auto* const records = run.Out<SliceRecord>(num_ranks * num_logits);
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::vector<float> logits(num_logits * slice_size);
    for (float& logit : logits) {
      logit = static_cast<float>(random.Uniform() * 8);
    }
    // The best of all, in the last tile of the last slice.
    if (rank == 1) logits.back() = 40;
    sample.logits = run.Arrive(logits);
    sample.workspace = run.Arrive(std::vector<simt::Bytes16>(
        SamplingWorkspaceBytes(num_logits, slice_size) / 16));
    sample.first_id = rank * slice_size;
    run.Launched(
        LaunchSampleSlice(sample, records + rank * num_logits, run.stream()));
  }
  run.Launched(LaunchSampleRecords(sample, records, num_ranks, run.stream()));
  JoinSlicesArguments join;
  join.slices = run.Arrive(FloatValues(random, 3 * 2 * 100));
  join.whole = run.Out<float>(2 * 290);
  join.num_rows = 2;
  join.slice_size = 100;
  join.vocab_size = 290;
  run.Launched(LaunchJoinSlices(join, run.stream()));
  return run.Finish(result);
}

// The state of a slot on the device: a sequence with counts starts where
// another one was, and drafts are verified.
inline bool RunSlotState(std::string* result) {
  const int vocab_size = 700, num_tokens = 600, num_prompt_tokens = 550;
  KernelRun run;
  std::vector<int32_t> tokens(num_tokens);
  // The prompt and what follows share ids.
  for (int i = 0; i < num_tokens; ++i) tokens[i] = i % 90 + 600;
  StartSlotArguments start;
  start.tokens = run.Arrive(tokens);
  start.num_tokens = num_tokens;
  start.num_prompt_tokens = num_prompt_tokens;
  start.vocab_size = vocab_size;
  start.token_counts = run.InOut(std::vector<uint32_t>(vocab_size, 77));
  start.history_sizes = run.Out<int32_t>(1);
  run.Launched(LaunchStartSlot(start, run.stream()));
  SampleArguments sample;
  sample.vocab_size = sample.num_ids = vocab_size;
  sample.num_logits = 3;
  sample.num_rows = 1;
  sample.rows =
      run.Arrive<SamplingRow>({{.slot = 0, .num_tokens = 3, .num_draws = 3}});
  sample.logit_rows = run.Arrive<int32_t>({0, 0, 0});
  sample.logit_tokens = run.Arrive<int32_t>({0, 1, 2});
  sample.token_ids = run.Arrive<int32_t>({9, 20, 31, 42});
  sample.slots = run.Arrive(std::vector<SlotSampling>(1));
  sample.num_computed_tokens = run.InOut<int32_t>({5});
  sample.last_tokens = run.Out<int32_t>(1);
  // The first draft is what was drawn, the second is not.
  sample.tokens = run.InOut<int32_t>({20, 30, 40});
  sample.num_drawn = run.Out<int32_t>(1);
  sample.faults = run.Out<int32_t>(1);
  sample.workspace = run.Arrive(
      std::vector<simt::Bytes16>(SamplingWorkspaceBytes(3, vocab_size) / 16));
  run.Launched(LaunchSamplingFinish(sample, run.stream()));
  return run.Finish(result);
}

inline bool RunProbe(std::string* result) {
  SimulationRandom random(3);
  KernelRun run;
  ProbeArguments probe;
  probe.num_units = 6200;
  probe.num_ctas = 3;
  probe.from = run.Arrive(Bf16Values(random, probe.num_units * 8));
  run.Launched(
      LaunchRandomBf16(run.Out<uint16_t>(1900 * 8), 1900, 3, run.stream()));
  run.Launched(LaunchReadProbe(probe, run.Out<uint32_t>(3), run.stream()));
  run.Launched(LaunchCopyProbe(probe, run.Out<uint16_t>(probe.num_units * 8),
                               run.stream()));
  return run.Finish(result);
}

struct NamedRun {
  const char* name;  // What names of planted bugs begin with.
  bool (*run)(std::string* result);
};
inline constexpr NamedRun kKernelRuns[] = {
    {"Norm", &RunNorm},
    {"Gather", &RunGather},
    {"Gated", &RunGated},
    {"HeadStatistics", &RunRope},
    {"Rope", &RunRope},
    {"BlockCopy", &RunBlockCopy},
    {"BeginStep", &RunBeginStep},
    {"MeanPool", &RunMeanPool},
    {"Permute", &RunPermuteColumns},
    {"FinishLinear", &RunFinishLinear},
    {"Slice", &RunVocabSlices},
    {"JoinSlices", &RunVocabSlices},
    {"StartSlot", &RunSlotState},
    {"FinishDraws", &RunSlotState},
    {"Probe", &RunProbe},
};

}  // namespace quire::cuda

#endif  // QUIRE_KERNELS_CUDA_KERNEL_RUNS_H_
