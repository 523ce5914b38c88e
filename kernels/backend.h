// The interface between the models and the devices.
//
// Four rules:
// 1. Weights are opaque from load: the backend packs each linear layer into its
//    own layout; nobody else knows it.
// 2. Fusion is data, not extra operations: prologue (norm, residual in) and
//    epilogue (activation, residual out) travel with Linear. A backend fuses
//    what pays and runs the parts otherwise, with the same rounding points.
// 3. The step owns its metadata: block tables, lengths and sampling state live
//    in per-sequence slots on the device and change by deltas (SlotUpdate).
// 4. Run replaces begin/end capture: the caller hands over a closure that only
//    enqueues operations.
//
// An operation enters only when a model needs it and every backend and
// kernels/reference have it. Prefill or decode, split-KV, tile sizes and the
// instruction set are never visible here.
//
// Rounding points, the same in every backend (tests/backend_conformance_test):
// - Accumulation is in f32 (double in the reference). Activations are stored in
//   the dtype of their view.
// - Linear with bf16 weights rounds its input x' (after the prologue) to bf16;
//   with f16 or f32 weights x' stays as it is. Products are accumulated in f32.
// - With quantized weights x' stays as it is, or (CPU) is rounded to 8 bits for
//   every 32 columns in the weights' order: with max = max|x'|, to the nearest
//   of max / 127 * code, code = x' * (127 / max), ties to even, in f32. With
//   fp8 the CPU rounds x' to bf16 and no weight: a scale multiplies the sum of
//   its columns. It takes int4 in groups that are not whole blocks of 32
//   columns, fp8 in squares of an odd size, and gate and up that differ in
//   format or size of groups for bf16 weights, which it rounds them to.
// - The KV cache stores K (after norm and RoPE) and V rounded to kv_dtype;
//   queries and probabilities stay in f32. kF8E4M3 saturates. kI8 (CPU) holds,
//   for each token and KV head, scale = max|x| / 127 in f32 and x / scale (in
//   f32) rounded to the nearest integer, ties to even, in [-127, 127]; a scale
//   of zero stands for zeros, and where an element is not finite all are NaN.
// - A backend whose activations have 16 bits (CUDA) also rounds to their dtype
//   what it keeps between its kernels or gives to tensor cores: x' for weights
//   of any dtype, queries after norm and RoPE, the probabilities of attention
//   relative to the largest so far, a token's embedding before its position is
//   added, and norm_input before its norm. What Pool reduces stays in f32.
// - Quantized weights on a GPU (kFp8, kInt4, kQ8_0, kQ4_0): in steps of up to
// 64 tokens no
//   weight is rounded, element times scale is exact in the sum. Above, kFp8
//   meets x' rounded to e4m3, from compute capability 8.9 on: x' / s in f32,
//   saturating, s = input_scale (the largest of the parts', if all have one),
//   else max|x'| / 448 in f32, 1 for zeros: of the row, where weights have a
//   scale per tensor or row, and with blocks of 128 x 128 of each 128 columns,
//   from the first; of such sums tensor cores may keep fewer bits than f32
//   between promotions to it (9.0: about 14). All others are rounded, times
//   their scale, to the activations' dtype.
// - Norms, activations, RoPE, logits and sampling compute in f32.
// - Epilogue::all_reduce: what each rank adds is rounded to the dtype of the
//   view (norm_input's), and so is the sum; the rest of the epilogue takes
//   that. With f32 activations a split therefore changes the order of additions
//   only, and not even that where LinearSpec::num_column_segments applies. What
//   Linear rounds of x' per 32 columns or row it rounds of the rank's columns,
//   which are whole blocks of 32. AttentionSpec::norm_ranks: the sums of
//   squares are added in f32.
//
// Tensor parallelism: each rank has a backend of its own with its part of the
// weights and heads, runs every step of the others in the same order and gets
// the same results. Collectives are parts of operations (Epilogue::all_reduce,
// AttentionSpec::norm_ranks, Sample) and of the views' memory: on a device with
// memory of its own that of a Communicator with is_on_device, or, for others,
// by way of the host, and then without graphs. Their errors end the step.
//
// Thread-compatible: one thread (the engine's) calls everything after creation.
#ifndef QUIRE_KERNELS_BACKEND_H_
#define QUIRE_KERNELS_BACKEND_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/token_sequence_set.h"
#include "kernels/communicator.h"
#include "kernels/device_probe.h"
#include "kernels/quant_format.h"
#include "kernels/tensor_view.h"

namespace quire {

// ---------------------------------------------------------------- loading

// One matrix [rows, cols] (out_features, in_features) in host memory or a
// memory-mapped file; this rank's shard only.
struct WeightPart {
  // kDense: [rows, cols] of f32, f16 or bf16. Otherwise the bytes of the rows:
  // u8 [rows, cols / QuantBlockOf(format).cols * .bytes]. Any row stride.
  TensorView data;
  QuantFormat format = QuantFormat::kDense;

  // kFp8: f32, one for all [1, 1]; one for each row [rows, 1]; or, with
  //   group_size g, one for each square of g x g elements
  //   [ceil(rows / g), ceil(cols / g)].
  // kInt4: f32, f16 or bf16 [rows, ceil(cols / group_size)].
  TensorView scales;
  // kInt4: u8 of 0 to 16, shaped as scales. Empty: 8.
  //   value = scale * (element - zero)
  TensorView zeros;
  int group_size = 0;
  // kInt4: i32 [1, cols]: stored column c multiplies x[column_order[c]]. Empty:
  // in order. (GPTQ's act-order.)
  TensorView column_order;
  // kFp8: what x is divided by before it is rounded to e4m3. 0: a backend that
  // rounds x takes max|x| / 448 of each row.
  float input_scale = 0.0f;

  int64_t rows() const { return data.rows; }
  int64_t cols() const {
    if (format == QuantFormat::kDense) return data.cols;
    const QuantBlock block = QuantBlockOf(format);
    return data.cols / block.bytes * block.cols;
  }
};

enum class LinearKind : uint8_t {
  kPlain,
  kQkv,     // parts: q, k, v
  kGateUp,  // parts: gate, up, of equal shape
  kVocab,   // serves Embed and Logits: a tied table is stored once
};

// Ranks up to which a sum over them can have the bits of one rank's.
inline constexpr int kMaxColumnSegments = 8;

struct LinearSpec {
  LinearKind kind = LinearKind::kPlain;
  std::vector<WeightPart> parts;  // Concatenated along rows; equal cols.
  TensorView bias;                // [1, sum of rows], f32; empty for none.
  // Of the model (what ActivationDType was asked about), where parts may differ
  // from it: a backend whose weights and activations share a dtype converts.
  // None: as the parts.
  std::optional<DType> model_dtype;
  // For f32 weights on a backend whose products have one order of additions
  // (the CPU; others ignore it): x W^T is summed over so many equal parts of
  // the columns, whose sums are added pairwise, ((0 + 1) + (2 + 3)), the bias
  // to the first of them. Communicator::AllReduceSum goes on so: ranks that
  // have one, two, four... of the parts each give the bits of one that has all.
  // A power of two up to kMaxColumnSegments that divides cols; else
  // INVALID_ARGUMENT.
  int num_column_segments = 1;
  // Keeps the memory behind `parts` alive for as long as the backend reads it.
  std::shared_ptr<const void> keep_alive;
};

class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  int64_t rows = 0;  // All parts together.
  int64_t cols = 0;
  LinearKind kind = LinearKind::kPlain;
  int64_t num_bytes = 0;  // Device memory held.
};

struct NormSpec {
  enum class Kind : uint8_t { kNone, kRms, kLayer };
  Kind kind = Kind::kNone;
  TensorView weight;  // [1, cols], f32, from Upload.
  TensorView bias;    // [1, cols], f32, kLayer only; may be empty.
  float eps = 1e-5f;
  // kRms multiplies by (weight_offset + weight): 1 for the Gemma family.
  float weight_offset = 0.0f;
};

// One kind of attention layer. The backend owns the KV storage of its layers:
// [num_layers][num_blocks][K, V][num_kv_heads][block_size][head_dim].
struct AttentionSpec {
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;  // Divides num_heads.
  int head_dim = 0;
  int sliding_window = 0;  // A query sees this many positions, its own
                           // included; 0 means all before it.
  float scale = 0.0f;      // Applied to q . k.
  float softcap = 0.0f;    // cap * tanh(score / cap) if > 0.
  // Before RoPE, of any kind. The shape of the weight (and of a bias) says what
  // is normed, where heads is num_heads for q and num_kv_heads for k:
  //   [1, head_dim]:         each head, all with one weight;
  //   [heads, head_dim]:     each head with its own row (StableLM 2);
  //   [1, heads * head_dim]: all heads together (OLMo 2).
  NormSpec q_norm, k_norm;
  // For norms of all heads together, kRms only, where other ranks have heads
  // too: the squares are summed over these ranks, of which all have as many
  // heads (a KV head that several ranks hold counts as often). Weights are
  // those of this rank's heads. Null: this rank has all.
  Communicator* norm_ranks = nullptr;
  // [max positions, rotary_dim] f32, from Upload: row p holds rotary_dim / 2
  // cosines, then as many sines, with any attention factor already multiplied
  // in. rotary_dim = cols <= head_dim; the rest of a head passes through.
  // Empty: no RoPE.
  TensorView rope_table;
  // LongRoPE: a sequence that starts (SlotUpdate::params) with more than
  // long_rope_after tokens of history is rotated by this table, shaped as
  // rope_table, for as long as it has the slot. Empty: by rope_table always.
  TensorView long_rope_table;
  int64_t long_rope_after = 0;
  // false: pairs are (i, i + rotary_dim / 2) (Hugging Face); true: (2i, 2i +
  // 1).
  bool rope_interleaved = false;
  DType kv_dtype = DType::kBF16;
};

// Bytes of K (or V) of one token and KV head in the cache: kI8 comes with a f32
// scale.
constexpr int64_t KvHeadBytes(DType kv_dtype, int64_t head_dim) {
  return head_dim * DTypeSize(kv_dtype) + (kv_dtype == DType::kI8 ? 4 : 0);
}

struct EngineShape {
  int max_num_seqs = 0;    // Slots.
  int max_num_tokens = 0;  // Of one step.
  int max_logit_rows = 0;  // Of one step.
  int max_model_len = 0;
  int vocab_size = 0;
  // Input ids are below this; 0: below vocab_size. A head that drafts takes all
  // ids of its target and draws from a part of them.
  int num_input_ids = 0;
  int block_size = 16;
  int steps_in_flight = 1;
  // Of the rows of a decode, as a rule: what PrepareAhead prepares for.
  int num_drafts = 0;
  int64_t kv_bytes = 0;  // Budget for KV storage; num_blocks follows.
  // Of a device with memory of its own: what weights, workspace and KV cache
  // may take together. 0: there is no such bound. With it, kv_bytes 0 stands
  // for all that the others leave.
  int64_t device_bytes = 0;
  int pooled_cols = 0;  // Columns of what Pool reduces; 0: it is not used.
  // The ranks of which operations are given the communicators, and which hold
  // the other slices of the vocabulary where Sample gets a slice. Null: none.
  Communicator* tensor_ranks = nullptr;
  // Those that Transfer is given. Null: none.
  Communicator* pipeline_ranks = nullptr;
};

constexpr int NumInputIds(const EngineShape& shape) {
  return shape.num_input_ids > 0 ? shape.num_input_ids : shape.vocab_size;
}

struct MemoryPlan {
  int64_t weights_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t graphs_bytes = 0;  // Left to the driver for captured steps.
  int64_t code_bytes = 0;    // And for kernels that it loads on first use.
  int64_t kv_bytes = 0;
  // Of what may be taken: left free, because more blocks would be of no use.
  int64_t unused_bytes = 0;
  int num_blocks = 0;
  // Ids that a sequence's bias (two for each), bad words, breakers and
  // banned_before_min may have together; 0: any number.
  int64_t max_list_entries = 0;
};

// ---------------------------------------------------------------- a step

// Sampling parameters of a slot, as kernels/sampling.h defines them and in its
// order. The defaults are without effect and cost nothing.
struct SlotParams {
  float temperature = 1.0f;  // 0: greedy; the lowest id wins a tie.
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: all.
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t num_logprobs = -1;  // Top entries to report; -1: no logprobs at all.
  int32_t num_prompt_logprobs = -1;  // The same for scored prompt tokens.
  int32_t min_tokens = 0;  // Generated tokens before banned_before_min may.
  uint64_t draw_key = 0;
  std::vector<int32_t> bias_ids;
  std::vector<float> bias;           // As many as bias_ids.
  std::vector<int32_t> allowed_ids;  // Empty: all.
  std::vector<int32_t> banned_before_min;

  std::vector<int32_t> bad_word_ids;      // Of all bad words, concatenated.
  std::vector<int32_t> bad_word_lengths;  // Each >= 1; their sum is the size.

  float dry_multiplier = 0.0f;  // 0: no DRY.
  float dry_base = 1.75f;       // Below 1: no DRY.
  int32_t dry_allowed_length = 2;
  int32_t dry_penalty_last_n = -1;                       // -1: all; 0: no DRY.
  std::shared_ptr<const TokenSequenceSet> dry_breakers;  // Null: none.

  float dynatemp_range = 0.0f;
  float dynatemp_exponent = 1.0f;
  float top_n_sigma = 0.0f;  // 0: off.
  float typical_p = 1.0f;
  float xtc_probability = 0.0f;
  float xtc_threshold = 0.1f;

  bool has_dry() const {
    return dry_multiplier != 0.0f && dry_base >= 1.0f &&
           dry_penalty_last_n != 0;
  }
};

// A change of one slot. With `params`, the slot starts a new sequence (its old
// state is dropped): `history` is the prompt and what has been generated.
struct SlotUpdate {
  int32_t slot = 0;
  const SlotParams* params = nullptr;  // Null: only append_blocks.
  absl::Span<const int32_t> history;
  int32_t num_prompt_tokens =
      0;  // Of history: penalties tell prompt from output.
  int32_t num_computed_tokens = 0;
  absl::Span<const int32_t> append_blocks;  // To the block table.
};

// Where a row's input tokens come from. kDeviceLast: its single token is the
// one an earlier Sample drew for the slot, perhaps not yet on the host.
enum class TokenSource : uint8_t { kHost, kDeviceLast };

// "These query tokens of this slot", at positions num_computed_tokens onwards.
struct StepRow {
  int32_t slot = 0;
  int32_t num_tokens = 0;  // >= 1.
  // The logits of the last num_logits tokens: num_scored, then what is drawn
  // from: none (an inner prefill chunk), 1, or 1 + num_drafts.
  int32_t num_logits = 0;
  // The first num_scored of these logits tell the log-probability of given
  // tokens (StepPlan::scored_ids), raw; nothing is drawn from them. Not beside
  // drafts.
  int32_t num_scored = 0;
  // The last num_drafts input tokens are drafts to verify: Sample draws at each
  // of their positions and accepts while the draw equals the draft.
  int32_t num_drafts = 0;
  TokenSource source = TokenSource::kHost;
  // Where its tokens begin; -1: where the slot's computed ones end. Not beyond
  // that: what the slot has computed from there on is taken back (drafts that
  // the stage that draws has rejected).
  int32_t first_position = -1;
};

struct StepPlan {
  absl::Span<const SlotUpdate> updates;  // Applied in order, before the rows.
  // (from, to): whole blocks copied in every layer before anything is written.
  absl::Span<const std::pair<int32_t, int32_t>> block_copies;
  absl::Span<const StepRow> rows;
  absl::Span<const int32_t> token_ids;   // Of the kHost rows, concatenated.
  absl::Span<const int32_t> scored_ids;  // [sum of num_scored], in row order.
};

// All that what Run enqueues may depend on: the counts are the step's. Others
// promise nothing, and are enqueued anew each time.
struct GraphKey {
  int32_t model = 0;
  int32_t num_rows = 0;
  int32_t num_tokens = 0;
  int32_t num_logit_rows = 0;
};

// What Sample found for a row with num_logits > 0, in row order. Spans are
// valid until the next BeginStep.
struct RowResult {
  int32_t slot = 0;
  // Accepted drafts, then the drawn token; none if nothing was to be drawn.
  absl::Span<const int32_t> tokens;
  // Of each token: log-probability under the raw distribution (before
  // penalties, bias and temperature). Empty if num_logprobs < 0.
  absl::Span<const float> logprobs;
  // [tokens, num_logprobs], descending, the lowest id first among equals.
  absl::Span<const int32_t> top_ids;
  absl::Span<const float> top_logprobs;
  // Of the row's scored_ids, log-probability and rank: 1 + the number of tokens
  // with a larger logit. [num_scored]
  absl::Span<const float> scored_logprobs;
  absl::Span<const int32_t> scored_ranks;
  // [num_scored, num_prompt_logprobs], in the order of top_ids.
  absl::Span<const int32_t> scored_top_ids;
  absl::Span<const float> scored_top_logprobs;
  // Of Pool: [pooled_cols]. There are no tokens then.
  absl::Span<const float> embedding;
  // Logits that were to be scored or drawn from (or the embedding) held a NaN
  // or infinity: the last of `tokens` means nothing. Those behind a rejected
  // draft do not count, and draws end where this or all_masked is.
  bool non_finite = false;
  // No token was allowed where the last of `tokens` was drawn
  // (kernels/sampling.h): that is id 0 and must not be used.
  bool all_masked = false;
};

// What precedes an operation: y = x + residual; residual_out = y if given;
// x' = norm(y).
struct Prologue {
  NormSpec norm;
  TensorView residual;      // Empty: none.
  TensorView residual_out;  // Empty: none; may alias residual or x.
};

// What follows a Linear:
//   out = scale * norm(activation(x' W^T + bias)) + residual,
// where all_reduce, if there is one, replaces x' W^T + bias by its sum over the
// ranks.
struct Epilogue {
  // The gated ones need kGateUp weights: silu(gate) * up, gelu_tanh(gate) * up,
  // gelu(gate) * up. kGelu is the tanh form, kGeluErf the exact one:
  // x / 2 (1 + erf(x / sqrt 2)).
  enum class Activation : uint8_t {
    kNone,
    kSwiGlu,
    kGeGlu,
    kGelu,
    kRelu,
    kGeGluErf,
    kGeluErf,
  };
  Activation activation = Activation::kNone;
  // For weights of which each rank has some of the columns (and one rank alone
  // the bias). There is no activation then.
  Communicator* all_reduce = nullptr;
  NormSpec norm;
  // With a norm or all_reduce: [num_tokens, columns of out], overwritten; holds
  // the input of the norm, or the sum, row behind row whatever its stride says.
  // Must not alias x, residual or out.
  TensorView norm_input;
  float scale = 1.0f;
  TensorView residual;  // Empty: none; may alias out.
};

// Whether the activation takes two halves, gate and up, to one.
inline constexpr bool IsGated(Epilogue::Activation activation) {
  return activation == Epilogue::Activation::kSwiGlu ||
         activation == Epilogue::Activation::kGeGlu ||
         activation == Epilogue::Activation::kGeGluErf;
}

// How the hidden states of a sequence become one embedding.
enum class Pooling : uint8_t {
  kNone,
  kLast,  // The last token's.
  kMean,  // The mean over all tokens of the sequence.
};

class Step;  // Opaque; valid from BeginStep to Collect.

enum class ActivationRows : uint8_t { kTokens, kLogitRows };

enum class TransferKind : uint8_t {
  kSend,     // To `peer`, which receives.
  kReceive,  // From `peer`.
};

// What a server's steps may hold, unless it is told otherwise: more tokens make
// a prompt's products larger and all sequences beside it wait longer.
struct StepSize {
  int num_seqs = 64;
  int num_tokens = 512;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (avx512_bf16, 4 threads)".
  virtual std::string Description() const = 0;

  // How the steps since Prepare were run and what that cost, a line for a
  // person; empty where there is nothing to say. Between steps, by who runs
  // them.
  virtual std::string StepsSummary() const { return ""; }

  // Whether weights, workspace and KV cache are taken from memory that the
  // device has of its own.
  virtual bool OwnsMemory() const { return false; }

  // What is free there. UNIMPLEMENTED where memory is the host's; what the
  // device says if it is broken.
  virtual absl::StatusOr<int64_t> FreeDeviceBytes() {
    return absl::UnimplementedError("memory is the host's");
  }

  // Measures what such a device can do at best, with about `num_bytes` of its
  // memory, between steps. The backend outlives it. For benchmarks.
  virtual absl::StatusOr<std::unique_ptr<DeviceProbe>> NewProbe(
      int64_t /*num_bytes*/) {
    return absl::UnimplementedError("memory is the host's");
  }

  // EngineShape::steps_in_flight that is of use: 2 where the device computes
  // while the host plans.
  virtual int UsefulStepsInFlight() const { return 1; }
  virtual StepSize UsefulStepSize() const { return {}; }

  // Another backend on the same device, for a second model in this process (a
  // draft model), which may share threads with this one: the two run no
  // operation at the same time, and either may be destroyed first.
  virtual absl::StatusOr<std::unique_ptr<Backend>> CreateCompanion() {
    return absl::UnimplementedError("one model only");
  }

  // ---- Loading: may allocate, block and start threads.

  // The dtype in which activations of a model with weights of `weights` flow.
  virtual DType ActivationDType(DType weights) const = 0;

  virtual bool SupportsLinear(DType weights, QuantFormat format) const = 0;

  // INVALID_ARGUMENT if parts disagree in cols or do not suit the kind.
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackLinear(
      const LinearSpec& spec) = 0;

  // Copies a small tensor (norm weights, RoPE tables) as f32 into memory that
  // lives as long as the backend.
  virtual absl::StatusOr<TensorView> Upload(TensorView host) = 0;

  // Returns the spec's id. INVALID_ARGUMENT if the backend cannot run it.
  virtual absl::StatusOr<int> AddAttention(const AttentionSpec& spec) = 0;

  // Declares an activation buffer: [max_num_tokens or max_logit_rows, cols].
  virtual int AddActivation(int64_t cols, DType dtype, ActivationRows rows) = 0;

  // What Prepare would allocate; allocates nothing and reports no lack of
  // memory (num_blocks is what fits, perhaps 0). For backends that own memory.
  virtual absl::StatusOr<MemoryPlan> PlanMemory(const EngineShape& /*shape*/) {
    return absl::UnimplementedError("memory is the host's");
  }

  // Allocates everything else; called once, after all of the above.
  // RESOURCE_EXHAUSTED if kv_bytes holds less than one sequence of
  // max_model_len, with both figures.
  virtual absl::StatusOr<MemoryPlan> Prepare(const EngineShape& shape) = 0;

  // Requires: Prepare succeeded. Fixed address.
  virtual TensorView Activation(int id) const = 0;

  // ---- A step: BeginStep, Run, EndStep, Collect. Nothing allocates.

  virtual absl::StatusOr<Step*> BeginStep(const StepPlan& plan) = 0;
  // Calls `enqueue`, or replays what it once enqueued under the same key.
  virtual absl::Status Run(Step& step, const GraphKey& key,
                           absl::FunctionRef<absl::Status()> enqueue) = 0;
  // Between steps, by who has nothing better to do: a little work (some
  // milliseconds) that a later step will not have to do. False: there is none
  // left.
  //   enqueue: as Run's, of model 0, for the step that it is called with.
  virtual bool PrepareAhead(
      absl::FunctionRef<absl::Status(Step*)> /*enqueue*/) {
    return false;
  }
  virtual absl::Status EndStep(Step& step) = 0;
  virtual bool Done(const Step& step) const = 0;
  // Waits for the step and ends it. UNAVAILABLE: the device is broken, and no
  // later step can be run.
  virtual absl::StatusOr<absl::Span<const RowResult>> Collect(Step& step) = 0;

  // ---- Operations: called inside Run. Views are whole activation buffers; an
  // operation works on the step's first num_tokens (or logit) rows.

  // out[t] = scale * table[token t] (+ positions[position t]).
  //   vocab: kVocab weights [vocab_size, cols]; positions: kVocab or null.
  //   out: [num_tokens, cols]
  virtual absl::Status Embed(Step& step, const PackedWeight& vocab,
                             const PackedWeight* positions, float scale,
                             TensorView out) = 0;

  // x[t] += positions[position t].
  //   positions: kVocab weights [>= max_model_len, cols]; x: [num_tokens, cols]
  virtual absl::Status AddPositions(Step& step, const PackedWeight& positions,
                                    TensorView x) = 0;

  // out = norm(x + residual); out may alias x. Zhang & Sennrich 2019,
  // arXiv:1910.07467 (kRms).
  virtual absl::Status Norm(Step& step, TensorView x, const Prologue& prologue,
                            TensorView out) = 0;

  // out = scale * norm(activation(x' W^T + bias)) + residual.
  //   x: [num_tokens, weight.cols]; out: [num_tokens, weight.rows], or half of
  //   that with a gated activation. out must not alias x.
  virtual absl::Status Linear(Step& step, TensorView x,
                              const Prologue& prologue,
                              const PackedWeight& weight,
                              const Epilogue& epilogue, TensorView out) = 0;

  // QK-norm, RoPE, KV write, then causal paged attention of every row's tokens
  // over all positions of its slot up to each token's own.
  //   qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim],
  //   overwritten. out: [num_tokens, num_heads * head_dim]; must not alias qkv.
  //   layer: in [0, num_layers of the spec).
  virtual absl::Status Attention(Step& step, int spec_id, int layer,
                                 TensorView qkv, TensorView out) = 0;

  // Logits of the rows that asked for them, in row order.
  //   vocab: kVocab weights of vocab_size rows, or of those of a slice.
  //   hidden: [num_tokens, weight.cols]; out: [num_logit_rows, weight.rows],
  //   f32, any row stride. softcap as in AttentionSpec; scale multiplies before
  //   it.
  virtual absl::Status Logits(Step& step, TensorView hidden,
                              const Prologue& prologue,
                              const PackedWeight& vocab, float scale,
                              float softcap, TensorView out) = 0;

  // out[i] = x[token of logit row i], in row order: for what goes on from where
  // a token was drawn.
  //   x: [num_tokens, cols]; out: [num_logit_rows, cols], of the same dtype,
  //   and no part of x.
  virtual absl::Status GatherLogitRows(Step& step, TensorView x,
                                       TensorView out) = 0;

  // Moves the step's rows of an activation buffer between the stages of a
  // pipeline, which run the same steps.
  //   x: [num_tokens, cols]; whole rows, one behind the other.
  // UNIMPLEMENTED: the backend is not made for several ranks.
  virtual absl::Status Transfer(Step& /*step*/, TransferKind /*kind*/,
                                Communicator& /*ranks*/, int /*peer*/,
                                TensorView /*x*/) {
    return absl::UnimplementedError("no pipeline of stages");
  }

  // In place of Logits and Sample (or Pool), of a stage behind which others
  // follow: advances each slot by all tokens of its row, drafts included, of
  // which StepRow::first_position may take some back. There are no results. No
  // row may be kDeviceLast.
  virtual absl::Status Advance(Step& /*step*/) {
    return absl::UnimplementedError("no pipeline of stages");
  }

  // Raw log-probabilities, processors, draw, verification; advances each slot:
  // its computed length by the row's tokens less rejected drafts, its last
  // token, history and penalty counts. logits: [num_logit_rows, vocab_size],
  // may be overwritten.
  // With EngineShape::tensor_ranks the logits may be slices: [num_logit_rows,
  // n], n a multiple of 4 and the same on all ranks, rank r's those of the ids
  // from r * n on; what lies beyond the vocabulary is not read. Results are
  // those of the whole rows, and the same on all ranks: tokens exactly as
  // without slices for equal logits.
  virtual absl::Status Sample(Step& step, TensorView logits) = 0;

  // In place of Logits and Sample, for steps without drafts: reduces x' over
  // each slot's tokens, and reports the result (RowResult::embedding) of the
  // rows with num_logits == 1, which end their sequences. Advances each slot.
  // kMean keeps the sum in the slot, in double and in order of position, so
  // that the result does not depend on chunks and batch.
  //   hidden: [num_tokens, pooled_cols]. pooling: not kNone, and the same in
  //   every step.
  // FAILED_PRECONDITION for kMean if a slot's earlier positions did not go
  // through Pool (the slot started with num_computed_tokens > 0).
  virtual absl::Status Pool(Step& step, TensorView hidden,
                            const Prologue& prologue, Pooling pooling) = 0;
};

}  // namespace quire

#endif  // QUIRE_KERNELS_BACKEND_H_
