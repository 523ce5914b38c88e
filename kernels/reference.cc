#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "kernels/quant_codec.h"
#include "kernels/reference_math.h"
#include "kernels/reference_weight.h"

namespace quire {

using reference::Activate;
using reference::GatherLogits;
using reference::Load;
using reference::NormBySquare;
using reference::NormHeads;
using reference::Product;
using reference::PrologueRow;
using reference::ReferenceWeight;
using reference::Round;
using reference::Softcap;
using reference::Store;
using reference::StoreKvHead;

namespace {

struct Slot {
  bool is_active = false;
  SlotParams params;
  std::vector<int32_t> tokens;  // History and draws.
  int32_t num_prompt_tokens = 0;
  int64_t num_computed_tokens = 0;
  int64_t num_start_tokens = 0;  // Of the history that it started with.
  int32_t last_token = -1;
  std::vector<int32_t> block_table;
  std::vector<double> pooled_sum;
  int64_t num_pooled_tokens = 0;
};

struct KvStorage {
  AttentionSpec spec;
  std::vector<float> values;  // [layer][block][K, V][kv_head][slot][head_dim]

  int64_t Index(int num_blocks, int block_size, int layer, int32_t block,
                int is_value, int kv_head, int offset) const {
    int64_t index = int64_t{layer} * num_blocks + block;
    index = index * 2 + is_value;
    index = index * spec.num_kv_heads + kv_head;
    index = index * block_size + offset;
    return index * spec.head_dim;
  }
};

struct TokenState {
  int32_t slot = 0;
  int32_t id = 0;
  int64_t position = 0;
};

struct ReferenceStep {
  bool is_free = true;
  bool is_sampled = false;
  std::vector<StepRow> rows;
  std::vector<TokenState> tokens;
  std::vector<int64_t> logit_tokens;  // Index into `tokens`.
  std::vector<int32_t> scored_ids;
  std::vector<RowResult> results;
  struct Row {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    std::vector<int32_t> top_ids;
    std::vector<float> top_logprobs;
    std::vector<float> scored_logprobs;
    std::vector<int32_t> scored_ranks;
    std::vector<int32_t> scored_top_ids;
    std::vector<float> scored_top_logprobs;
    std::vector<float> embedding;
  };
  std::vector<Row> result_rows;
};

ReferenceStep& AsReference(Step& step) {
  return *reinterpret_cast<ReferenceStep*>(&step);
}

// AttentionSpec::norm_ranks: the mean squares of q and k over all ranks' heads,
// [num_tokens, 2]; empty if there are no such norms.
//   heads_of(t, first, count): those heads of token t.
template <typename HeadsOf>
absl::StatusOr<std::vector<float>> SquaresOfRanks(const AttentionSpec& spec,
                                                  size_t num_tokens,
                                                  HeadsOf heads_of) {
  std::vector<float> squares;
  if (spec.norm_ranks == nullptr) return squares;
  QUIRE_CHECK(spec.q_norm.kind == NormSpec::Kind::kRms &&
              spec.k_norm.kind == NormSpec::Kind::kRms);
  for (size_t t = 0; t < num_tokens; ++t) {
    for (const auto& heads : {heads_of(t, 0, spec.num_heads),
                              heads_of(t, spec.num_heads, spec.num_kv_heads)}) {
      double sum = 0.0;
      for (double value : heads) sum += value * value;
      squares.push_back(static_cast<float>(sum));
    }
  }
  QUIRE_RETURN_IF_ERROR(spec.norm_ranks->AllReduceSum(
      TensorView::Matrix(squares.data(), DType::kF32, num_tokens, 2), nullptr));
  // Several ranks may hold the same KV head.
  const int size = spec.norm_ranks->size();
  for (size_t i = 0; i < squares.size(); ++i) {
    const int heads = i % 2 == 0 ? spec.num_heads : spec.num_kv_heads;
    squares[i] /= static_cast<float>(size * heads * spec.head_dim);
  }
  return squares;
}

// RoPE of one head at one position.
std::vector<double> RotateHead(const AttentionSpec& spec, const Slot& slot,
                               std::vector<double> head, int64_t position) {
  const bool is_long = !spec.long_rope_table.empty() &&
                       slot.num_start_tokens > spec.long_rope_after;
  const TensorView& table = is_long ? spec.long_rope_table : spec.rope_table;
  const int64_t half = table.empty() ? 0 : table.cols / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double cosine = Load(table, position, i);
    const double sine = Load(table, position, half + i);
    double& a = head[spec.rope_interleaved ? 2 * i : i];
    double& b = head[spec.rope_interleaved ? 2 * i + 1 : half + i];
    const double rotated = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = rotated;
  }
  return head;
}

}  // namespace

struct ReferenceBackend::State {
  QuantizedProducts quantized_products = QuantizedProducts::kExact;
  struct ActivationBuffer {
    int64_t cols;
    DType dtype;
    ActivationRows rows;
    std::vector<char> memory;
  };

  // What a backend with activations of 16 bits rounds between its kernels.
  double Kept(double value) const {
    return options.activations ? Round(*options.activations, value) : value;
  }
  std::vector<double> Kept(std::vector<double> values) const {
    for (double& value : values) value = Kept(value);
    return values;
  }

  ReferenceOptions options;
  EngineShape shape;
  int num_blocks = 0;
  std::vector<std::unique_ptr<std::vector<float>>> uploads;
  std::vector<KvStorage> kv;
  std::vector<ActivationBuffer> activations;
  std::vector<Slot> slots;
  std::vector<ReferenceStep> steps;

  void Apply(const SlotUpdate& update);
  void CopyBlock(int32_t from, int32_t to);
  // False if a logit is not finite.
  bool ScoreRow(const ReferenceStep& step, const StepRow& row,
                TensorView logits, int64_t first_logit, int64_t first_scored,
                ReferenceStep::Row* out);
  void SampleRow(ReferenceStep& step, const StepRow& row, TensorView logits,
                 int64_t first_logit, ReferenceStep::Row* out,
                 RowResult* result);
  float* KvAt(KvStorage& kv, int layer, const Slot& slot, int64_t position,
              int is_value, int kv_head) {
    const int32_t block = slot.block_table.at(position / shape.block_size);
    return &kv.values[kv.Index(num_blocks, shape.block_size, layer, block,
                               is_value, kv_head, position % shape.block_size)];
  }
};

ReferenceBackend::ReferenceBackend(const ReferenceOptions& options)
    : state_(std::make_unique<State>()) {
  state_->options = options;
}
ReferenceBackend::ReferenceBackend(QuantizedProducts quantized_products)
    : state_(std::make_unique<State>()) {
  state_->quantized_products = quantized_products;
}
ReferenceBackend::~ReferenceBackend() = default;

std::string ReferenceBackend::Description() const { return "reference"; }

DType ReferenceBackend::ActivationDType(DType weights) const {
  return state_->options.activations.value_or(DType::kF32);
}

bool ReferenceBackend::SupportsLinear(DType weights, QuantFormat format) const {
  return format != QuantFormat::kDense || IsFloatDType(weights);
}

absl::StatusOr<std::unique_ptr<PackedWeight>> ReferenceBackend::PackLinear(
    const LinearSpec& spec) {
  return reference::PackWeight(spec, state_->quantized_products,
                               state_->options);
}

absl::StatusOr<TensorView> ReferenceBackend::Upload(TensorView host) {
  auto values = std::make_unique<std::vector<float>>();
  for (int64_t row = 0; row < host.rows; ++row) {
    for (int64_t col = 0; col < host.cols; ++col) {
      values->push_back(static_cast<float>(Load(host, row, col)));
    }
  }
  const TensorView view =
      TensorView::Matrix(values->data(), DType::kF32, host.rows, host.cols);
  state_->uploads.push_back(std::move(values));
  return view;
}

absl::StatusOr<int> ReferenceBackend::AddAttention(const AttentionSpec& spec) {
  state_->kv.push_back({spec, {}});
  return static_cast<int>(state_->kv.size()) - 1;
}

int ReferenceBackend::AddActivation(int64_t cols, DType dtype,
                                    ActivationRows rows) {
  state_->activations.push_back({cols, dtype, rows, {}});
  return static_cast<int>(state_->activations.size()) - 1;
}

absl::StatusOr<MemoryPlan> ReferenceBackend::Prepare(const EngineShape& shape) {
  state_->shape = shape;
  const int blocks_per_seq =
      (shape.max_model_len + shape.block_size - 1) / shape.block_size;
  int64_t bytes_per_block = 0;
  for (const KvStorage& kv : state_->kv) {
    bytes_per_block += int64_t{2} * kv.spec.num_layers * kv.spec.num_kv_heads *
                       shape.block_size *
                       KvHeadBytes(kv.spec.kv_dtype, kv.spec.head_dim);
  }
  MemoryPlan plan;
  plan.num_blocks = bytes_per_block == 0
                        ? blocks_per_seq
                        : static_cast<int>(shape.kv_bytes / bytes_per_block);
  if (plan.num_blocks < blocks_per_seq) {
    return absl::ResourceExhaustedError(
        absl::StrCat(shape.kv_bytes, " bytes of KV cache; one sequence needs ",
                     blocks_per_seq * bytes_per_block));
  }
  plan.kv_bytes = plan.num_blocks * bytes_per_block;
  state_->num_blocks = plan.num_blocks;
  for (KvStorage& kv : state_->kv) {
    kv.values.resize(kv.Index(plan.num_blocks, shape.block_size,
                              kv.spec.num_layers, 0, 0, 0, 0));
  }
  for (State::ActivationBuffer& buffer : state_->activations) {
    const int64_t rows = buffer.rows == ActivationRows::kTokens
                             ? shape.max_num_tokens
                             : shape.max_logit_rows;
    buffer.memory.resize(rows * buffer.cols * DTypeSize(buffer.dtype));
  }
  state_->slots.resize(shape.max_num_seqs);
  state_->steps.resize(shape.steps_in_flight);
  return plan;
}

TensorView ReferenceBackend::Activation(int id) const {
  const State::ActivationBuffer& buffer = state_->activations.at(id);
  return TensorView::Matrix(
      buffer.memory.data(), buffer.dtype,
      buffer.memory.size() / (buffer.cols * DTypeSize(buffer.dtype)),
      buffer.cols);
}

void ReferenceBackend::State::Apply(const SlotUpdate& update) {
  Slot& slot = slots.at(update.slot);
  if (update.params != nullptr) {
    slot = Slot();
    slot.is_active = true;
    slot.params = *update.params;
    slot.tokens.assign(update.history.begin(), update.history.end());
    slot.num_prompt_tokens = update.num_prompt_tokens;
    slot.num_computed_tokens = update.num_computed_tokens;
    slot.num_start_tokens = update.history.size();
  }
  QUIRE_CHECK(slot.is_active);
  slot.block_table.insert(slot.block_table.end(), update.append_blocks.begin(),
                          update.append_blocks.end());
}

void ReferenceBackend::State::CopyBlock(int32_t from, int32_t to) {
  for (KvStorage& storage : kv) {
    for (int layer = 0; layer < storage.spec.num_layers; ++layer) {
      const auto at = [&](int32_t block) {
        return storage.values.begin() + storage.Index(num_blocks,
                                                      shape.block_size, layer,
                                                      block, 0, 0, 0);
      };
      std::copy(at(from), at(from + 1), at(to));
    }
  }
}

absl::StatusOr<Step*> ReferenceBackend::BeginStep(const StepPlan& plan) {
  const auto free = std::find_if(state_->steps.begin(), state_->steps.end(),
                                 [](const auto& step) { return step.is_free; });
  QUIRE_CHECK(free != state_->steps.end());
  ReferenceStep& step = *free;
  step = ReferenceStep();
  step.is_free = false;
  for (const SlotUpdate& update : plan.updates) state_->Apply(update);
  for (const auto& [from, to] : plan.block_copies) state_->CopyBlock(from, to);
  step.scored_ids.assign(plan.scored_ids.begin(), plan.scored_ids.end());
  size_t next_token = 0;
  for (const StepRow& row : plan.rows) {
    Slot& slot = state_->slots.at(row.slot);
    if (row.first_position >= 0) {
      QUIRE_CHECK(row.first_position <= slot.num_computed_tokens);
      slot.num_computed_tokens = row.first_position;
    }
    for (int i = 0; i < row.num_tokens; ++i) {
      TokenState token;
      token.slot = row.slot;
      token.position = slot.num_computed_tokens + i;
      token.id = row.source == TokenSource::kDeviceLast
                     ? slot.last_token
                     : plan.token_ids.at(next_token++);
      if (i >= row.num_tokens - row.num_logits) {
        step.logit_tokens.push_back(step.tokens.size());
      }
      step.tokens.push_back(token);
    }
    step.rows.push_back(row);
  }
  return reinterpret_cast<Step*>(&step);
}

absl::Status ReferenceBackend::Run(Step& step, const GraphKey& key,
                                   absl::FunctionRef<absl::Status()> enqueue) {
  return enqueue();
}

absl::Status ReferenceBackend::EndStep(Step& step) {
  ReferenceStep& reference_step = AsReference(step);
  if (!reference_step.is_sampled) {
    QUIRE_CHECK(reference_step.logit_tokens.empty());
    for (const StepRow& row : reference_step.rows) {
      state_->slots[row.slot].num_computed_tokens += row.num_tokens;
    }
  }
  return absl::OkStatus();
}

bool ReferenceBackend::Done(const Step& step) const { return true; }

absl::StatusOr<absl::Span<const RowResult>> ReferenceBackend::Collect(
    Step& step) {
  AsReference(step).is_free = true;
  return absl::Span<const RowResult>(AsReference(step).results);
}

absl::Status ReferenceBackend::Embed(Step& step, const PackedWeight& vocab,
                                     const PackedWeight* positions, float scale,
                                     TensorView out) {
  const auto& table = static_cast<const ReferenceWeight&>(vocab);
  const auto* position_table = static_cast<const ReferenceWeight*>(positions);
  const ReferenceStep& reference_step = AsReference(step);
  for (size_t t = 0; t < reference_step.tokens.size(); ++t) {
    const TokenState& token = reference_step.tokens[t];
    for (int64_t col = 0; col < table.cols; ++col) {
      double value = scale * table.at(token.id, col);
      if (position_table != nullptr) {
        value = state_->Kept(value) + position_table->at(token.position, col);
      }
      Store(out, t, col, value);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::AddPositions(Step& step,
                                            const PackedWeight& positions,
                                            TensorView x) {
  const auto& table = static_cast<const ReferenceWeight&>(positions);
  const std::vector<TokenState>& tokens = AsReference(step).tokens;
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (int64_t col = 0; col < table.cols; ++col) {
      Store(x, t, col, Load(x, t, col) + table.at(tokens[t].position, col));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Norm(Step& step, TensorView x,
                                    const Prologue& prologue, TensorView out) {
  for (size_t t = 0; t < AsReference(step).tokens.size(); ++t) {
    const std::vector<double> row = PrologueRow(x, prologue, t);
    for (int64_t col = 0; col < x.cols; ++col) Store(out, t, col, row[col]);
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Linear(Step& step, TensorView x,
                                      const Prologue& prologue,
                                      const PackedWeight& weight,
                                      const Epilogue& epilogue,
                                      TensorView out) {
  const size_t num_tokens = AsReference(step).tokens.size();
  const auto product = [&](size_t t) {
    return Product(state_->Kept(PrologueRow(x, prologue, t)), num_tokens,
                   static_cast<const ReferenceWeight&>(weight));
  };
  TensorView sums;  // Over the ranks.
  if (epilogue.all_reduce != nullptr) {
    QUIRE_CHECK(epilogue.activation == Epilogue::Activation::kNone);
    sums =
        TensorView::Matrix(epilogue.norm_input.data, epilogue.norm_input.dtype,
                           num_tokens, weight.rows);
    for (size_t t = 0; t < num_tokens; ++t) {
      const std::vector<double> row = product(t);
      for (size_t col = 0; col < row.size(); ++col) {
        Store(sums, t, col, row[col]);
      }
    }
    QUIRE_RETURN_IF_ERROR(epilogue.all_reduce->AllReduceSum(sums, nullptr));
  }
  for (size_t t = 0; t < num_tokens; ++t) {
    std::vector<double> row = sums.empty()
                                  ? Activate(epilogue.activation, product(t))
                                  : PrologueRow(sums, Prologue(), t);
    if (epilogue.norm.kind != NormSpec::Kind::kNone) {
      row = ReferenceNorm(epilogue.norm, state_->Kept(row));
    }
    for (size_t col = 0; col < row.size(); ++col) {
      const double residual =
          epilogue.residual.empty() ? 0.0 : Load(epilogue.residual, t, col);
      Store(out, t, col, epilogue.scale * row[col] + residual);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Attention(Step& step, int spec_id, int layer,
                                         TensorView qkv, TensorView out) {
  KvStorage& kv = state_->kv.at(spec_id);
  const AttentionSpec& spec = kv.spec;
  const int head_dim = spec.head_dim;
  const std::vector<TokenState>& tokens = AsReference(step).tokens;
  // The heads [first, first + count) of token t, and one of such a range.
  const auto heads_of = [&](size_t t, int first, int count) {
    std::vector<double> values(count * head_dim);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = Load(qkv, t, int64_t{first} * head_dim + i);
    }
    return values;
  };
  const auto head_of = [&](const std::vector<double>& heads, int head) {
    return std::vector<double>(heads.begin() + head * head_dim,
                               heads.begin() + (head + 1) * head_dim);
  };
  QUIRE_ASSIGN_OR_RETURN(const std::vector<float> squares,
                         SquaresOfRanks(spec, tokens.size(), heads_of));
  const auto normed = [&](size_t t, bool is_k) {
    const NormSpec& norm = is_k ? spec.k_norm : spec.q_norm;
    std::vector<double> heads =
        is_k ? heads_of(t, spec.num_heads, spec.num_kv_heads)
             : heads_of(t, 0, spec.num_heads);
    return squares.empty()
               ? NormHeads(norm, head_dim, std::move(heads))
               : NormBySquare(norm, squares[2 * t + is_k], std::move(heads));
  };
  for (size_t t = 0; t < tokens.size(); ++t) {
    const Slot& slot = state_->slots[tokens[t].slot];
    const std::vector<double> keys = normed(t, true);
    for (int head = 0; head < spec.num_kv_heads; ++head) {
      const std::vector<double> k =
          RotateHead(spec, slot, head_of(keys, head), tokens[t].position);
      const std::vector<double> v =
          heads_of(t, spec.num_heads + spec.num_kv_heads + head, 1);
      float* k_out = state_->KvAt(kv, layer, slot, tokens[t].position, 0, head);
      float* v_out = state_->KvAt(kv, layer, slot, tokens[t].position, 1, head);
      StoreKvHead(spec.kv_dtype, k, k_out);
      StoreKvHead(spec.kv_dtype, v, v_out);
    }
  }
  for (size_t t = 0; t < tokens.size(); ++t) {
    const Slot& slot = state_->slots[tokens[t].slot];
    const int64_t position = tokens[t].position;
    const int64_t first =
        spec.sliding_window > 0
            ? std::max<int64_t>(0, position - spec.sliding_window + 1)
            : 0;
    const std::vector<double> queries = normed(t, false);
    for (int head = 0; head < spec.num_heads; ++head) {
      const int kv_head = head / (spec.num_heads / spec.num_kv_heads);
      const std::vector<double> q = state_->Kept(
          RotateHead(spec, slot, head_of(queries, head), position));
      std::vector<double> scores;
      for (int64_t p = first; p <= position; ++p) {
        const float* k = state_->KvAt(kv, layer, slot, p, 0, kv_head);
        double score = 0.0;
        for (int i = 0; i < head_dim; ++i) score += q[i] * k[i];
        scores.push_back(Softcap(score * spec.scale, spec.softcap));
      }
      const double max = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      std::vector<double> mixed(head_dim);
      for (int64_t p = first; p <= position; ++p) {
        const double probability = std::exp(scores[p - first] - max);
        sum += probability;
        const float* v = state_->KvAt(kv, layer, slot, p, 1, kv_head);
        for (int i = 0; i < head_dim; ++i) {
          mixed[i] += state_->Kept(probability) * v[i];
        }
      }
      for (int i = 0; i < head_dim; ++i) {
        Store(out, t, int64_t{head} * head_dim + i, mixed[i] / sum);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Logits(Step& step, TensorView hidden,
                                      const Prologue& prologue,
                                      const PackedWeight& vocab, float scale,
                                      float softcap, TensorView out) {
  const std::vector<int64_t>& logit_tokens = AsReference(step).logit_tokens;
  for (size_t i = 0; i < logit_tokens.size(); ++i) {
    const std::vector<double> row = Product(
        state_->Kept(PrologueRow(hidden, prologue, logit_tokens[i])),
        logit_tokens.size(), static_cast<const ReferenceWeight&>(vocab));
    for (size_t id = 0; id < row.size(); ++id) {
      Store(out, i, id, Softcap(row[id] * scale, softcap));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::GatherLogitRows(Step& step, TensorView x,
                                               TensorView out) {
  const std::vector<int64_t>& logit_tokens = AsReference(step).logit_tokens;
  for (size_t i = 0; i < logit_tokens.size(); ++i) {
    for (int64_t col = 0; col < x.cols; ++col) {
      Store(out, i, col, Load(x, logit_tokens[i], col));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Transfer(Step& step, TransferKind kind,
                                        Communicator& ranks, int peer,
                                        TensorView x) {
  x.rows = AsReference(step).tokens.size();
  if (x.rows == 0) return absl::OkStatus();
  return kind == TransferKind::kSend ? ranks.Send(x, peer, nullptr)
                                     : ranks.Receive(x, peer, nullptr);
}

absl::Status ReferenceBackend::Advance(Step& step) {
  ReferenceStep& reference_step = AsReference(step);
  reference_step.is_sampled = true;
  for (const StepRow& row : reference_step.rows) {
    state_->slots[row.slot].num_computed_tokens += row.num_tokens;
  }
  return absl::OkStatus();
}

bool ReferenceBackend::State::ScoreRow(const ReferenceStep& step,
                                       const StepRow& row, TensorView logits,
                                       int64_t first_logit,
                                       int64_t first_scored,
                                       ReferenceStep::Row* out) {
  // A greedy draw's report says all but the log-probability and the rank.
  SlotParams params;
  params.temperature = 0.0f;
  params.num_logprobs = std::max(slots[row.slot].params.num_prompt_logprobs, 0);
  for (int i = 0; i < row.num_scored; ++i) {
    const auto values = absl::MakeConstSpan(
        logits.row<const float>(first_logit + i), shape.vocab_size);
    const int32_t id = step.scored_ids.at(first_scored + i);
    const ReferenceSample best =
        ReferenceSampleRow(values, params, {}, 0, /*position=*/0);
    if (best.non_finite) return false;
    out->scored_logprobs.push_back(static_cast<float>(
        best.logprob + (double{values[id]} - values[best.token])));
    out->scored_ranks.push_back(1 +
                                static_cast<int32_t>(std::count_if(
                                    values.begin(), values.end(),
                                    [&](float v) { return v > values[id]; })));
    out->scored_top_ids.insert(out->scored_top_ids.end(), best.top_ids.begin(),
                               best.top_ids.end());
    out->scored_top_logprobs.insert(out->scored_top_logprobs.end(),
                                    best.top_logprobs.begin(),
                                    best.top_logprobs.end());
  }
  return true;
}

void ReferenceBackend::State::SampleRow(ReferenceStep& step, const StepRow& row,
                                        TensorView logits, int64_t first_logit,
                                        ReferenceStep::Row* out,
                                        RowResult* result) {
  Slot& slot = slots[row.slot];
  const auto logits_of = [&](int i) {
    return absl::MakeConstSpan(logits.row<const float>(first_logit + i),
                               shape.vocab_size);
  };
  if (row.num_logits == row.num_scored) {
    slot.num_computed_tokens += row.num_tokens;
    return;
  }
  const int num_top = std::max(slot.params.num_logprobs, 0);
  for (int i = row.num_scored; i < row.num_logits; ++i) {
    for (float logit : logits_of(i)) {
      result->non_finite |= !std::isfinite(logit);
    }
    if (result->non_finite) {
      // A token that means nothing, so that every row has a result.
      out->tokens.push_back(0);
      if (slot.params.num_logprobs >= 0) {
        out->logprobs.push_back(0.0f);
        out->top_ids.insert(out->top_ids.end(), num_top, 0);
        out->top_logprobs.insert(out->top_logprobs.end(), num_top, 0.0f);
      }
      break;
    }
    const int64_t t = step.logit_tokens[first_logit + i];
    const ReferenceSample sample =
        ReferenceSampleRow(logits_of(i), slot.params, slot.tokens,
                           slot.num_prompt_tokens, step.tokens[t].position + 1);
    result->all_masked |= sample.all_masked;
    out->tokens.push_back(sample.token);
    slot.tokens.push_back(sample.token);
    if (slot.params.num_logprobs >= 0) {
      out->logprobs.push_back(static_cast<float>(sample.logprob));
      out->top_ids.insert(out->top_ids.end(), sample.top_ids.begin(),
                          sample.top_ids.end());
      out->top_logprobs.insert(out->top_logprobs.end(),
                               sample.top_logprobs.begin(),
                               sample.top_logprobs.end());
    }
    if (sample.all_masked || i + 1 == row.num_logits ||
        step.tokens[t + 1].id != sample.token) {
      break;
    }
  }
  slot.last_token = out->tokens.back();
  slot.num_computed_tokens += row.num_tokens -
                              (row.num_logits - row.num_scored) +
                              static_cast<int>(out->tokens.size());
}

absl::Status ReferenceBackend::Sample(Step& step, TensorView logits) {
  ReferenceStep& reference_step = AsReference(step);
  std::vector<float> whole;
  Communicator* const ranks = state_->shape.tensor_ranks;
  if (ranks != nullptr && logits.cols < state_->shape.vocab_size) {
    logits.rows = reference_step.logit_tokens.size();
    QUIRE_RETURN_IF_ERROR(
        GatherLogits(*ranks, logits, state_->shape.vocab_size, &whole));
    logits = TensorView::Matrix(whole.data(), DType::kF32, logits.rows,
                                state_->shape.vocab_size);
  }
  reference_step.is_sampled = true;
  // Spans into result_rows must stay valid.
  reference_step.result_rows.reserve(reference_step.rows.size());
  int64_t first_logit = 0;
  int64_t first_scored = 0;
  for (const StepRow& row : reference_step.rows) {
    if (row.num_logits == 0) {
      state_->slots[row.slot].num_computed_tokens += row.num_tokens;
      continue;
    }
    RowResult result;
    result.slot = row.slot;
    ReferenceStep::Row& out = reference_step.result_rows.emplace_back();
    state_->SampleRow(reference_step, row, logits, first_logit, &out, &result);
    result.non_finite |= !state_->ScoreRow(reference_step, row, logits,
                                           first_logit, first_scored, &out);
    first_scored += row.num_scored;
    result.tokens = out.tokens;
    result.logprobs = out.logprobs;
    result.top_ids = out.top_ids;
    result.top_logprobs = out.top_logprobs;
    result.scored_logprobs = out.scored_logprobs;
    result.scored_ranks = out.scored_ranks;
    result.scored_top_ids = out.scored_top_ids;
    result.scored_top_logprobs = out.scored_top_logprobs;
    reference_step.results.push_back(result);
    first_logit += row.num_logits;
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Pool(Step& step, TensorView hidden,
                                    const Prologue& prologue, Pooling pooling) {
  ReferenceStep& reference_step = AsReference(step);
  reference_step.is_sampled = true;
  // Spans into result_rows must stay valid.
  reference_step.result_rows.reserve(reference_step.rows.size());
  int64_t t = 0;
  for (const StepRow& row : reference_step.rows) {
    Slot& slot = state_->slots[row.slot];
    if (pooling == Pooling::kMean) {
      QUIRE_CHECK(slot.num_pooled_tokens == slot.num_computed_tokens);
    }
    slot.pooled_sum.resize(hidden.cols);
    std::vector<double> x;
    for (int i = 0; i < row.num_tokens; ++i) {
      x = PrologueRow(hidden, prologue, t++);
      for (int64_t c = 0; c < hidden.cols; ++c) slot.pooled_sum[c] += x[c];
    }
    slot.num_pooled_tokens += row.num_tokens;
    slot.num_computed_tokens += row.num_tokens;
    if (row.num_logits == 0) continue;
    ReferenceStep::Row& out = reference_step.result_rows.emplace_back();
    RowResult result;
    result.slot = row.slot;
    for (int64_t c = 0; c < hidden.cols; ++c) {
      out.embedding.push_back(
          static_cast<float>(pooling == Pooling::kMean
                                 ? slot.pooled_sum[c] / slot.num_pooled_tokens
                                 : x[c]));
      result.non_finite |= !std::isfinite(out.embedding.back());
    }
    result.embedding = out.embedding;
    reference_step.results.push_back(result);
  }
  return absl::OkStatus();
}

}  // namespace quire
