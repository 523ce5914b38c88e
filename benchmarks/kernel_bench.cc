// Kernels of the CPU backend against the ceilings of the machine, at the shapes
// of Qwen2.5-0.5B and Llama-3.2-1B. Every repetition of a kernel has probes of
// read bandwidth and peak arithmetic right before and after it: on a shared
// machine only such ratios mean anything. Weights rotate through more copies
// than the caches hold, as the layers of a model do.
//
//   kernel_bench [--threads=N] [--reps=N] [--filter=TEXT]
//                [--dtype=bf16|f16|f32] [--kv-dtype=bf16|f16|f32|fp8|int8]
//                [--rows=1,16,512] [--format=q8_0|q4_0|q4_k|...]
// --format: weights in that format (random blocks) instead of a dtype; the peak
// is then that of products of bytes.
//   QUIRE_CPU_ISA selects the instruction set.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "benchmarks/ceilings.h"
#include "engine/base/random.h"
#include "engine/base/thread_pool.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/sampling.h"
#include "kernels/random_weights.h"

namespace quire {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  int num_threads = 0;
  int num_reps = 9;
  std::string filter;
  DType dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  QuantFormat format = QuantFormat::kDense;
  std::vector<int64_t> num_rows = {1, 16, 512};
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// "median [min, max]".
std::string Summary(const std::vector<double>& values, double unit,
                    const char* format) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  char text[64];
  std::string result;
  std::snprintf(text, sizeof(text), format, Median(values) / unit);
  result = text;
  std::snprintf(text, sizeof(text), format, *low / unit);
  absl::StrAppend(&result, " [", text, ", ");
  std::snprintf(text, sizeof(text), format, *high / unit);
  absl::StrAppend(&result, text, "]");
  return result;
}

class Bench {
 public:
  explicit Bench(const Options& options, Isa isa)
      : options_(options),
        isa_(isa),
        pool_(options.num_threads),
        probe_(&pool_, isa, int64_t{1} << 30) {}

  void Ceilings() {
    std::vector<double> read, f32, bf16, int8;
    for (int rep = 0; rep < options_.num_reps; ++rep) {
      read.push_back(probe_.ReadBandwidth());
      f32.push_back(probe_.F32Peak());
      bf16.push_back(probe_.Bf16Peak());
      int8.push_back(probe_.Int8Peak());
    }
    std::printf(
        "%-34s read %s GB/s, f32 %s, bf16 %s, int8 %s GFLOP/s\n",
        absl::StrCat("ceilings, ", pool_.num_threads(), " threads").c_str(),
        Summary(read, 1e9, "%.1f").c_str(), Summary(f32, 1e9, "%.0f").c_str(),
        Summary(bf16, 1e9, "%.0f").c_str(), Summary(int8, 1e9, "%.0f").c_str());
    std::fflush(stdout);
  }

  // `run` does `bytes` of reading and `flops` of arithmetic.
  enum class Arithmetic { kF32, kBf16, kInt8 };
  void Measure(const std::string& name, double bytes, double flops,
               Arithmetic arithmetic, absl::FunctionRef<void()> run) {
    if (!absl::StrContains(name, options_.filter)) return;
    run();
    std::vector<double> seconds, of_read, of_peak, reads, peaks;
    const auto probe = [&] {
      reads.push_back(probe_.ReadBandwidth());
      peaks.push_back(arithmetic == Arithmetic::kInt8   ? probe_.Int8Peak()
                      : arithmetic == Arithmetic::kBf16 ? probe_.Bf16Peak()
                                                        : probe_.F32Peak());
    };
    probe();
    for (int rep = 0; rep < options_.num_reps; ++rep) {
      // At least 3 ms, so that a wake-up does not count.
      int num_runs = 0;
      const Clock::time_point start = Clock::now();
      double elapsed = 0;
      do {
        run();
        ++num_runs;
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      } while (elapsed < 3e-3);
      probe();
      seconds.push_back(elapsed / num_runs);
      of_read.push_back(bytes / seconds.back() /
                        ((reads[rep] + reads[rep + 1]) / 2) * 100);
      of_peak.push_back(flops / seconds.back() /
                        ((peaks[rep] + peaks[rep + 1]) / 2) * 100);
    }
    // Best against best: what the code does when nobody interferes.
    const double best = *std::min_element(seconds.begin(), seconds.end());
    std::printf(
        "%-34s %9.1f us %6.1f GB/s %s %% best %3.0f %% %6.0f GFLOP/s %s %% "
        "best %3.0f %%\n",
        name.c_str(), Median(seconds) * 1e6, bytes / Median(seconds) / 1e9,
        Summary(of_read, 1, "%.0f").c_str(),
        bytes / best / *std::max_element(reads.begin(), reads.end()) * 100,
        flops / Median(seconds) / 1e9, Summary(of_peak, 1, "%.0f").c_str(),
        flops / best / *std::max_element(peaks.begin(), peaks.end()) * 100);
    std::fflush(stdout);
  }

  void Matmuls(const char* model, const char* layer, LinearKind kind,
               int64_t rows, int64_t cols) {
    const bool is_gated = kind == LinearKind::kGateUp;
    std::vector<std::string> names;
    bool is_wanted = false;
    for (int64_t num_rows : options_.num_rows) {
      names.push_back(
          absl::StrCat(model, " ", layer, " ", num_rows, "x", rows, "x", cols));
      is_wanted |= absl::StrContains(names.back(), options_.filter);
    }
    if (!is_wanted) return;
    const bool is_dense = options_.format == QuantFormat::kDense;
    const QuantBlock block =
        is_dense ? QuantBlock{1, static_cast<int>(DTypeSize(options_.dtype))}
                 : QuantBlockOf(options_.format);
    if (cols % block.cols != 0) {
      std::printf("%s %s: %d columns are not blocks of %d\n", model, layer,
                  static_cast<int>(cols), block.cols);
      return;
    }
    const int64_t bytes = rows * (cols / block.cols) * block.bytes;
    // 256 MiB: eight times the L3 of the machines at hand.
    const int64_t num_copies =
        std::max<int64_t>(1, (int64_t{256} << 20) / bytes);
    LinearSpec spec;
    spec.kind = kind;
    const int64_t part_rows = is_gated ? rows / 2 : rows;
    std::vector<uint16_t> data;
    RandomWeights quantized;
    SimulationRandom random(1);
    if (is_dense) {
      data.resize(bytes / 2);
      for (uint16_t& v : data) {
        // +-0.5 .. 2 as bf16; harmless as f16 and as halves of f32 too.
        v = static_cast<uint16_t>(0x3f00 + random.Below(256) +
                                  0x8000 * random.Below(2));
      }
    } else {
      quantized = MakeRandomWeights(options_.format, rows, cols, 1);
    }
    for (int64_t first = 0; first < rows; first += part_rows) {
      WeightPart part = quantized.part;
      if (is_dense) {
        part.data = TensorView::Matrix(data.data(), options_.dtype, rows, cols);
      }
      part.data.data =
          static_cast<char*>(part.data.data) + first * bytes / rows;
      part.data.rows = part_rows;
      if (!part.scales.empty() && part.scales.rows > 1) {
        part.scales.rows = part.zeros.rows = part_rows;
      }
      spec.parts.push_back(part);
    }
    std::vector<std::unique_ptr<PackedMatrix>> copies;
    const Clock::time_point start = Clock::now();
    for (int64_t i = 0; i < num_copies; ++i) {
      copies.push_back(*PackMatrix(spec, isa_, pool_));
    }
    const double pack_seconds =
        std::chrono::duration<double>(Clock::now() - start).count();
    std::printf("%-34s packed at %.1f GB/s\n",
                absl::StrCat(model, " ", layer).c_str(),
                bytes * num_copies / pack_seconds / 1e9);
    const int64_t max_rows =
        *std::max_element(options_.num_rows.begin(), options_.num_rows.end());
    const int64_t out_cols = is_gated ? rows / 2 : rows;
    // Large logits: a real step asks for few rows of them.
    std::vector<float> x(max_rows * cols);
    for (float& v : x) v = static_cast<float>(2 * random.Uniform() - 1);
    MatmulScratch scratch(max_rows, cols);
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t num_rows = options_.num_rows[i];
      if (num_rows * out_cols > (int64_t{1} << 26)) continue;
      std::vector<float> out(num_rows * out_cols);
      MatmulParams params;
      params.x = x.data();
      params.x_stride = cols;
      params.num_rows = num_rows;
      params.out = out.data();
      params.out_stride = out_cols;
      if (is_gated) params.activation = Epilogue::Activation::kSwiGlu;
      const int64_t num_used = num_rows <= 64 ? num_copies : 1;
      Measure(names[i], static_cast<double>(bytes) * num_used,
              2.0 * num_rows * rows * cols * num_used,
              !is_dense                        ? Arithmetic::kInt8
              : options_.dtype == DType::kBF16 ? Arithmetic::kBf16
                                               : Arithmetic::kF32,
              [&] {
                for (int64_t c = 0; c < num_used; ++c) {
                  Matmul(pool_, isa_, *copies[c], params, scratch);
                }
              });
    }
  }

  // `num_seqs` sequences with `num_tokens` queries each at the end of `context`
  // positions. Bytes: K and V once per sequence; operations: those of
  // the causal triangle.
  void Attention(const char* model, int num_heads, int num_kv_heads,
                 int head_dim, int num_seqs, int32_t num_tokens,
                 int64_t context) {
    const std::string name = absl::StrCat(model, " attention ", num_seqs, "x",
                                          num_tokens, " of ", context);
    if (!absl::StrContains(name, options_.filter)) return;
    constexpr int kBlockSize = 16;
    const int64_t blocks_per_seq = (context + kBlockSize - 1) / kBlockSize;
    const KvBlockLayout layout = {options_.kv_dtype, num_kv_heads, head_dim,
                                  kBlockSize};
    const int64_t seq_bytes = blocks_per_seq * layout.BlockBytes();
    // Layers: enough to leave the caches, as for weights.
    const int64_t num_layers =
        std::max<int64_t>(1, (int64_t{128} << 20) / (seq_bytes * num_seqs));
    const int64_t num_blocks = num_layers * num_seqs * blocks_per_seq;
    AlignedBuffer kv(num_blocks * layout.BlockBytes());
    SimulationRandom random(2);
    uint16_t* const cells = reinterpret_cast<uint16_t*>(kv.data());
    for (int64_t i = 0; i < kv.num_bytes() / 2; ++i) {
      cells[i] = static_cast<uint16_t>(0x3e00 + (MixBits(i, 3) & 0x80ff));
    }
    std::vector<int32_t> tables(num_layers * num_seqs * blocks_per_seq);
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = i;
    const int64_t width = num_heads * head_dim;
    std::vector<float> q(num_seqs * num_tokens * width);
    for (float& v : q) v = static_cast<float>(2 * random.Uniform() - 1);
    std::vector<float> out(q.size());
    AttentionScratch scratch(pool_.num_threads(), num_heads, head_dim, 8192);
    std::vector<AttentionRow> rows(num_seqs);
    PagedAttentionParams params;
    params.q = q.data();
    params.q_stride = width;
    params.out = out.data();
    params.out_stride = width;
    params.kv = kv.data();
    params.kv_dtype = options_.kv_dtype;
    params.block_bytes = layout.BlockBytes();
    params.num_heads = num_heads;
    params.num_kv_heads = num_kv_heads;
    params.head_dim = head_dim;
    params.block_size = kBlockSize;
    params.scale = 0.125f;
    const double bytes = static_cast<double>(num_layers) * num_seqs * context *
                         2 * num_kv_heads *
                         KvHeadBytes(options_.kv_dtype, head_dim);
    const double pairs =
        static_cast<double>(num_tokens) * (context - num_tokens) +
        num_tokens * (num_tokens + 1.0) / 2;
    const double flops = 4.0 * num_layers * num_seqs * pairs * width;
    Measure(name, bytes, flops, Arithmetic::kF32, [&] {
      for (int64_t layer = 0; layer < num_layers; ++layer) {
        for (int seq = 0; seq < num_seqs; ++seq) {
          rows[seq] = {
              tables.data() + (layer * num_seqs + seq) * blocks_per_seq,
              context - num_tokens, num_tokens,
              static_cast<int64_t>(seq) * num_tokens};
        }
        params.rows = rows;
        PagedAttention(pool_, isa_, params, scratch);
      }
    });
  }

  // One row of random logits on one thread. The history of the processors has
  // `history` tokens.
  void Sampling(int32_t vocab_size, int64_t history_size) {
    SimulationRandom random(3);
    std::vector<float> logits(vocab_size);
    for (float& logit : logits) {
      // Normal with deviation 3: at temperature 1 about a fifth of the entries
      // hold 90 %.
      logit = static_cast<float>(
          3 * std::sqrt(-2 * std::log(1.0 - random.Uniform())) *
          std::cos(2 * M_PI * random.Uniform()));
    }
    std::vector<int32_t> history(history_size);
    for (int32_t& id : history) id = random.Below(vocab_size);
    std::vector<TokenCounts::Entry> entries(history_size);
    std::vector<int32_t> cells(4 * history_size);
    TokenCounts counts(entries.data(), history_size, cells.data(),
                       cells.size());
    for (int32_t id : history) counts.AddGeneratedToken(id);
    SamplingScratch scratch(vocab_size, history_size);
    std::vector<int32_t> top_ids(20);
    std::vector<float> top_logprobs(20);
    const auto measure = [&](const char* what, auto set) {
      const std::string name = absl::StrCat("sampling ", vocab_size, " ", what);
      if (!absl::StrContains(name, options_.filter)) return;
      SlotParams params;
      params.draw_key = 1;
      SampleInput input;
      input.logits = logits.data();
      input.vocab_size = vocab_size;
      input.params = &params;
      input.history = history;
      set(params);
      if (params.repetition_penalty != 1.0f) input.counts = &counts;
      SampleOutput output;
      output.top_ids = top_ids.data();
      output.top_logprobs = top_logprobs.data();
      std::vector<double> seconds;
      for (int rep = 0; rep < options_.num_reps; ++rep) {
        constexpr int kDraws = 20;
        const Clock::time_point start = Clock::now();
        for (int i = 0; i < kDraws; ++i) {
          ++input.position;
          SampleRow(isa_, input, scratch, &output);
        }
        seconds.push_back(
            std::chrono::duration<double>(Clock::now() - start).count() /
            kDraws);
      }
      std::printf("%-34s %s us\n", name.c_str(),
                  Summary(seconds, 1e-6, "%.1f").c_str());
    };
    measure("greedy", [](SlotParams& p) { p.temperature = 0.0f; });
    measure("greedy, 5 logprobs", [](SlotParams& p) {
      p.temperature = 0.0f;
      p.num_logprobs = 5;
    });
    measure("no filter", [](SlotParams&) {});
    measure("top_k 50, top_p 0.9", [](SlotParams& p) {
      p.top_k = 50;
      p.top_p = 0.9f;
    });
    measure("top_p 0.95, temperature 1.5", [](SlotParams& p) {
      p.top_p = 0.95f;
      p.temperature = 1.5f;
    });
    measure("min_p 0.05", [](SlotParams& p) { p.min_p = 0.05f; });
    measure("penalties", [](SlotParams& p) { p.repetition_penalty = 1.1f; });
    measure("top_n_sigma 1", [](SlotParams& p) { p.top_n_sigma = 1.0f; });
    measure("typical_p 0.9", [](SlotParams& p) { p.typical_p = 0.9f; });
    measure("top_k 50, typical_p 0.9", [](SlotParams& p) {
      p.top_k = 50;
      p.typical_p = 0.9f;
    });
    measure("xtc", [](SlotParams& p) {
      p.xtc_probability = 1.0f;
      p.xtc_threshold = 0.001f;
    });
    measure("dynatemp", [](SlotParams& p) { p.dynatemp_range = 0.5f; });
    measure("100 bad words", [](SlotParams& p) {
      p.bad_word_lengths.assign(100, 3);
      p.bad_word_ids.assign(300, 7);
    });
    measure("dry", [](SlotParams& p) { p.dry_multiplier = 0.8f; });
    std::fill(history.begin(), history.end(), 7);
    measure("dry in a loop", [](SlotParams& p) { p.dry_multiplier = 0.8f; });
  }

  // Cost of an almost empty parallel loop.
  void Dispatch() {
    const std::string name = "dispatch of one parallel loop";
    if (!absl::StrContains(name, options_.filter)) return;
    std::vector<double> seconds;
    for (int rep = 0; rep < options_.num_reps; ++rep) {
      constexpr int kLoops = 2000;
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kLoops; ++i) {
        pool_.ParallelFor(pool_.num_threads(), 1, [](int64_t, int64_t, int) {});
      }
      seconds.push_back(
          std::chrono::duration<double>(Clock::now() - start).count() / kLoops);
    }
    std::printf("%-34s %s us\n", name.c_str(),
                Summary(seconds, 1e-6, "%.2f").c_str());
  }

 private:
  Options options_;
  Isa isa_;
  ThreadPool pool_;
  CeilingProbe probe_;
};

bool ParseOptions(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--threads=")) {
      if (!absl::SimpleAtoi(arg, &options->num_threads)) return false;
    } else if (absl::ConsumePrefix(&arg, "--reps=")) {
      if (!absl::SimpleAtoi(arg, &options->num_reps)) return false;
    } else if (absl::ConsumePrefix(&arg, "--filter=")) {
      options->filter = std::string(arg);
    } else if (absl::ConsumePrefix(&arg, "--kv-dtype=")) {
      options->kv_dtype = arg == "f32"    ? DType::kF32
                          : arg == "f16"  ? DType::kF16
                          : arg == "fp8"  ? DType::kF8E4M3
                          : arg == "int8" ? DType::kI8
                                          : DType::kBF16;
    } else if (absl::ConsumePrefix(&arg, "--dtype=")) {
      options->dtype = arg == "f32"   ? DType::kF32
                       : arg == "f16" ? DType::kF16
                                      : DType::kBF16;
    } else if (absl::ConsumePrefix(&arg, "--format=")) {
      for (int format = 0; format <= static_cast<int>(QuantFormat::kInt4);
           ++format) {
        if (arg == QuantFormatName(static_cast<QuantFormat>(format))) {
          options->format = static_cast<QuantFormat>(format);
        }
      }
      if (arg != QuantFormatName(options->format)) return false;
    } else if (absl::ConsumePrefix(&arg, "--rows=")) {
      options->num_rows.clear();
      for (absl::string_view text : absl::StrSplit(arg, ',')) {
        int64_t value = 0;
        if (!absl::SimpleAtoi(text, &value) || value < 1) return false;
        options->num_rows.push_back(value);
      }
    } else {
      return false;
    }
  }
  return options->num_reps >= 1;
}

int Main(int argc, char** argv) {
  Options options;
  if (!ParseOptions(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: kernel_bench [--threads=N] [--reps=N] [--filter=TEXT] "
                 "[--dtype=bf16|f16|f32] [--kv-dtype=bf16|f16|f32|fp8|int8] "
                 "[--format=q8_0|q4_0|q4_k|...] "
                 "[--rows=1,16,512]\n");
    return 64;
  }
  const absl::StatusOr<Isa> isa = SelectIsa();
  if (!isa.ok()) {
    std::fprintf(stderr, "%s\n", isa.status().ToString().c_str());
    return 64;
  }
  Bench bench(options, *isa);
  std::printf("isa %s, weights %s; median [min, max] of %d\n", IsaName(*isa),
              options.format == QuantFormat::kDense
                  ? DTypeName(options.dtype)
                  : QuantFormatName(options.format),
              options.num_reps);
  bench.Ceilings();
  bench.Dispatch();
  bench.Sampling(151936, 4096);
  bench.Matmuls("qwen0.5b", "qkv", LinearKind::kQkv, 1152, 896);
  bench.Matmuls("qwen0.5b", "o", LinearKind::kPlain, 896, 896);
  bench.Matmuls("qwen0.5b", "gate_up", LinearKind::kGateUp, 9728, 896);
  bench.Matmuls("qwen0.5b", "down", LinearKind::kPlain, 896, 4864);
  bench.Matmuls("qwen0.5b", "vocab", LinearKind::kVocab, 151936, 896);
  bench.Matmuls("llama1b", "qkv", LinearKind::kQkv, 3072, 2048);
  bench.Matmuls("llama1b", "o", LinearKind::kPlain, 2048, 2048);
  bench.Matmuls("llama1b", "gate_up", LinearKind::kGateUp, 16384, 2048);
  bench.Matmuls("llama1b", "down", LinearKind::kPlain, 2048, 8192);
  bench.Matmuls("llama1b", "vocab", LinearKind::kVocab, 128256, 2048);
  for (const auto& [num_seqs, num_tokens, context] :
       std::vector<std::tuple<int, int32_t, int64_t>>{{1, 1, 512},
                                                      {1, 1, 4096},
                                                      {16, 1, 512},
                                                      {16, 1, 4096},
                                                      {1, 512, 512},
                                                      {1, 512, 4096}}) {
    bench.Attention("qwen0.5b", 14, 2, 64, num_seqs, num_tokens, context);
    bench.Attention("llama1b", 32, 8, 64, num_seqs, num_tokens, context);
  }
  bench.Ceilings();
  return 0;
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) { return quire::Main(argc, argv); }
