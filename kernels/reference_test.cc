// The reference against results worked out by hand: everything else is compared
// with it.
#include "kernels/reference.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

TensorView Row(const std::vector<float>& values) {
  return TensorView::Vector(values.data(), DType::kF32, values.size());
}

TensorView Matrix(const std::vector<float>& values, int64_t cols) {
  return TensorView::Matrix(values.data(), DType::kF32, values.size() / cols,
                            cols);
}

void Fill(TensorView view, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    view.row<float>(i / view.cols)[i % view.cols] = values[i];
  }
}

TEST(ReferenceNormTest, Rms) {
  const std::vector<float> weight = {1, 2};
  NormSpec norm;
  norm.kind = NormSpec::Kind::kRms;
  norm.weight = Row(weight);
  norm.eps = 0.5f;
  // mean(3^2, 4^2) + 0.5 = 13.
  const double values[] = {3, 4};
  std::vector<double> out = ReferenceNorm(norm, values);
  EXPECT_DOUBLE_EQ(out[0], 3 / std::sqrt(13.0));
  EXPECT_DOUBLE_EQ(out[1], 8 / std::sqrt(13.0));
  norm.weight_offset = 1.0f;
  out = ReferenceNorm(norm, values);
  EXPECT_DOUBLE_EQ(out[1], 12 / std::sqrt(13.0));
}

TEST(ReferenceNormTest, Layer) {
  const std::vector<float> weight = {1, 2};
  const std::vector<float> bias = {10, 20};
  NormSpec norm;
  norm.kind = NormSpec::Kind::kLayer;
  norm.weight = Row(weight);
  norm.bias = Row(bias);
  norm.eps = 0.0f;
  const double values[] = {1, 5};  // Mean 3, deviation 2.
  const std::vector<double> out = ReferenceNorm(norm, values);
  EXPECT_DOUBLE_EQ(out[0], 9);
  EXPECT_DOUBLE_EQ(out[1], 22);
}

// One slot, one head of dimension 2, f32 everywhere.
class ReferenceBackendTest : public testing::Test {
 protected:
  void Prepare() {
    shape_.max_num_seqs = 1;
    shape_.max_num_tokens = 4;
    shape_.max_logit_rows = 4;
    shape_.max_model_len = 8;
    shape_.vocab_size = 3;
    shape_.block_size = 2;
    shape_.kv_bytes = 1 << 12;
    ASSERT_TRUE(backend_.Prepare(shape_).ok());
    params_.temperature = 0.0f;
  }

  Step& Begin(int num_tokens, int num_logits, std::vector<int32_t> token_ids) {
    static constexpr int32_t kBlocks[] = {3, 1, 0, 2};
    SlotUpdate update;
    update.params = &params_;
    update.append_blocks = kBlocks;
    StepRow row;
    row.num_tokens = num_tokens;
    row.num_logits = num_logits;
    row.num_drafts = std::max(num_logits - 1, 0);
    StepPlan plan;
    if (!is_started_) plan.updates = absl::MakeConstSpan(&update, 1);
    is_started_ = true;
    plan.rows = absl::MakeConstSpan(&row, 1);
    plan.token_ids = token_ids;
    return **backend_.BeginStep(plan);
  }

  void End(Step& step) {
    ASSERT_TRUE(backend_.EndStep(step).ok());
    ASSERT_TRUE(backend_.Collect(step).ok());
  }

  ReferenceBackend backend_;
  SlotParams params_;
  EngineShape shape_;
  bool is_started_ = false;
};

TEST_F(ReferenceBackendTest, LinearWithEverything) {
  const std::vector<float> gate = {1, 2};  // [1, 2]
  const std::vector<float> up = {3, -1};
  const std::vector<float> bias = {0.5f, 1};
  LinearSpec spec;
  spec.kind = LinearKind::kGateUp;
  spec.parts = {{Matrix(gate, 2), QuantFormat::kDense},
                {Matrix(up, 2), QuantFormat::kDense}};
  spec.bias = Row(bias);
  const auto weight = std::move(backend_.PackLinear(spec)).value();
  const auto add = [&](int cols) {
    return backend_.AddActivation(cols, DType::kF32, ActivationRows::kTokens);
  };
  const int x_id = add(2), residual_id = add(2), out_id = add(1);
  Prepare();
  Step& step = Begin(1, 0, {0});
  Fill(backend_.Activation(x_id), {1, 1});
  Fill(backend_.Activation(residual_id), {1, 2});
  Fill(backend_.Activation(out_id), {100});
  Prologue prologue;
  prologue.residual = backend_.Activation(residual_id);
  prologue.residual_out = backend_.Activation(residual_id);
  Epilogue epilogue;
  epilogue.activation = Epilogue::Activation::kSwiGlu;
  epilogue.residual = backend_.Activation(out_id);
  ASSERT_TRUE(backend_
                  .Linear(step, backend_.Activation(x_id), prologue, *weight,
                          epilogue, backend_.Activation(out_id))
                  .ok());
  // y = (2, 3); gate 2 + 6 + 0.5 = 8.5; up 6 - 3 + 1 = 4.
  EXPECT_EQ(backend_.Activation(residual_id).row<float>(0)[0], 2.0f);
  EXPECT_EQ(backend_.Activation(residual_id).row<float>(0)[1], 3.0f);
  EXPECT_FLOAT_EQ(backend_.Activation(out_id).row<float>(0)[0],
                  100 + 4 * 8.5 / (1 + std::exp(-8.5)));
  End(step);
}

// Quantized parts beside a bf16 one, which alone rounds x'.
TEST_F(ReferenceBackendTest, QuantizedWeights) {
  const uint8_t codes[] = {0x9a, 0x08};  // int4: (10, 9), then (8, 0).
  const float scales[] = {0.5f, 2.0f};
  const std::vector<uint16_t> ones(2, FloatToBf16(1.0f));
  LinearSpec spec;
  spec.parts.resize(2);
  spec.parts[0].format = QuantFormat::kInt4;
  spec.parts[0].data = TensorView::Matrix(codes, DType::kU8, 2, 1);
  spec.parts[0].scales = TensorView::Matrix(scales, DType::kF32, 2, 1);
  spec.parts[0].group_size = 2;
  spec.parts[1].data = TensorView::Matrix(ones.data(), DType::kBF16, 1, 2);
  const auto weight = std::move(backend_.PackLinear(spec)).value();
  EXPECT_EQ(weight->rows, 3);
  EXPECT_EQ(weight->cols, 2);
  const int x_id =
      backend_.AddActivation(2, DType::kF32, ActivationRows::kTokens);
  const int out_id =
      backend_.AddActivation(3, DType::kF32, ActivationRows::kTokens);
  Prepare();
  Step& step = Begin(1, 0, {0});
  Fill(backend_.Activation(x_id), {1.0f + 0x1p-9f, 2});
  ASSERT_TRUE(backend_
                  .Linear(step, backend_.Activation(x_id), Prologue(), *weight,
                          Epilogue(), backend_.Activation(out_id))
                  .ok());
  const float* out = backend_.Activation(out_id).row<float>(0);
  EXPECT_EQ(out[0], (1.0f + 0x1p-9f) * 1.0f + 2 * 0.5f);
  EXPECT_EQ(out[1], 2 * -16.0f);
  EXPECT_EQ(out[2], 3.0f);
  End(step);
}

TEST_F(ReferenceBackendTest, Bf16WeightsRoundTheInput) {
  const std::vector<uint16_t> one = {FloatToBf16(1.0f)};
  LinearSpec spec;
  spec.parts = {{TensorView::Matrix(one.data(), DType::kBF16, 1, 1),
                 QuantFormat::kDense}};
  const auto weight = std::move(backend_.PackLinear(spec)).value();
  const int x_id =
      backend_.AddActivation(1, DType::kF32, ActivationRows::kTokens);
  const int out_id =
      backend_.AddActivation(1, DType::kF32, ActivationRows::kTokens);
  Prepare();
  Step& step = Begin(1, 0, {0});
  Fill(backend_.Activation(x_id), {1.0f + 0x1p-9f});  // Between two bf16.
  ASSERT_TRUE(backend_
                  .Linear(step, backend_.Activation(x_id), Prologue(), *weight,
                          Epilogue(), backend_.Activation(out_id))
                  .ok());
  EXPECT_EQ(backend_.Activation(out_id).row<float>(0)[0], 1.0f);
  End(step);
}

TEST_F(ReferenceBackendTest, AttentionOverTwoSteps) {
  AttentionSpec spec;
  spec.num_layers = 1;
  spec.num_heads = 1;
  spec.num_kv_heads = 1;
  spec.head_dim = 2;
  spec.scale = 1.0f;
  spec.kv_dtype = DType::kF32;
  const int spec_id = *backend_.AddAttention(spec);
  const int qkv_id =
      backend_.AddActivation(6, DType::kF32, ActivationRows::kTokens);
  const int out_id =
      backend_.AddActivation(2, DType::kF32, ActivationRows::kTokens);
  Prepare();
  const auto attend = [&](Step& step) {
    ASSERT_TRUE(backend_
                    .Attention(step, spec_id, 0, backend_.Activation(qkv_id),
                               backend_.Activation(out_id))
                    .ok());
  };
  // q, k, v of three tokens; the scores of the last are ln 2 and 0 and 0.
  const float ln2 = std::log(2.0f);
  Step& first = Begin(2, 0, {0, 0});
  Fill(backend_.Activation(qkv_id), {0, 0, ln2, 0, 4, 8,  //
                                     0, 0, 0, 0, 2, 0});
  attend(first);
  const TensorView out = backend_.Activation(out_id);
  EXPECT_FLOAT_EQ(out.row<float>(0)[0], 4);  // Sees only itself.
  EXPECT_FLOAT_EQ(out.row<float>(1)[0], 3);  // The mean of both.
  EXPECT_FLOAT_EQ(out.row<float>(1)[1], 4);
  End(first);
  Step& second = Begin(1, 0, {0});
  Fill(backend_.Activation(qkv_id), {1, 0, 0, 0, 6, 4});
  attend(second);
  EXPECT_FLOAT_EQ(out.row<float>(0)[0], (2 * 4 + 2 + 6) / 4.0);
  EXPECT_FLOAT_EQ(out.row<float>(0)[1], (2 * 8 + 0 + 4) / 4.0);
  End(second);
}

TEST_F(ReferenceBackendTest, RopeLayouts) {
  // No turn at position 0, a quarter turn after: (a, b) becomes (-b, a).
  std::vector<float> table = {1, 1, 0, 0};  // Two cosines, two sines.
  for (int position = 1; position < 8; ++position) {
    table.insert(table.end(), {0, 0, 1, 1});
  }
  AttentionSpec spec;
  spec.num_layers = 1;
  spec.num_heads = 1;
  spec.num_kv_heads = 1;
  spec.head_dim = 4;
  spec.scale = 1.0f;
  spec.kv_dtype = DType::kF32;
  spec.rope_table = *backend_.Upload(Matrix(table, 4));
  int ids[2];
  for (int interleaved = 0; interleaved < 2; ++interleaved) {
    spec.rope_interleaved = interleaved == 1;
    ids[interleaved] = *backend_.AddAttention(spec);
  }
  const int qkv_id =
      backend_.AddActivation(12, DType::kF32, ActivationRows::kTokens);
  const int out_id =
      backend_.AddActivation(4, DType::kF32, ActivationRows::kTokens);
  Prepare();
  // q of the second token is ln 3 * e_0 and turns into ln 3 * e_2 if the pairs
  // are halves apart, into ln 3 * e_1 if they are neighbours; k of the first is
  // e_2. With v = 4 and 0 the outputs are 4 * 3 / 4 and 4 / 2.
  const float ln3 = std::log(3.0f);
  const float expected[] = {3, 2};
  for (int interleaved = 0; interleaved < 2; ++interleaved) {
    is_started_ = false;
    Step& step = Begin(2, 0, {0, 0});
    Fill(backend_.Activation(qkv_id), {0,   0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0,  //
                                       ln3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
    ASSERT_TRUE(backend_
                    .Attention(step, ids[interleaved], 0,
                               backend_.Activation(qkv_id),
                               backend_.Activation(out_id))
                    .ok());
    EXPECT_FLOAT_EQ(backend_.Activation(out_id).row<float>(1)[0],
                    expected[interleaved]);
    End(step);
  }
}

TEST(ReferenceSampleTest, GreedyWithProcessors) {
  const std::vector<float> logits = {1.0f, 2.0f, 2.0f, -1.0f};
  SlotParams params;
  params.temperature = 0.0f;
  const auto token = [&](std::vector<int32_t> history, int num_prompt) {
    return ReferenceSampleRow(logits, params, history, num_prompt,
                              history.size())
        .token;
  };
  EXPECT_EQ(token({}, 0), 1);
  params.repetition_penalty = 1.5f;  // 2 / 1.5 for id 1, in the prompt.
  EXPECT_EQ(token({1}, 1), 2);
  params.repetition_penalty = 1.0f;
  params.frequency_penalty = 0.6f;
  EXPECT_EQ(token({1, 2}, 2), 1);           // Prompt tokens do not count.
  EXPECT_EQ(token({0, 2, 1}, 1), 1);        // 1.4 each, above 1.
  EXPECT_EQ(token({0, 2, 1, 2, 1}, 1), 0);  // 0.8 each.
  params.frequency_penalty = 0.0f;
  params.bias_ids = {3};
  params.bias = {4.0f};
  EXPECT_EQ(token({}, 0), 3);
  params.banned_before_min = {3};
  params.min_tokens = 2;
  EXPECT_EQ(token({0, 0}, 1), 1);  // One token is generated.
  EXPECT_EQ(token({0, 0, 0}, 1), 3);
  params.allowed_ids = {0};
  EXPECT_EQ(token({0, 0, 0}, 1), 0);
}

TEST(ReferenceSampleTest, Logprobs) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f),
                                     std::log(5.0f), std::log(2.0f)};
  SlotParams params;
  params.temperature = 0.0f;
  params.num_logprobs = 3;
  params.bias_ids = {0};
  params.bias = {100.0f};
  const ReferenceSample sample = ReferenceSampleRow(logits, params, {}, 0, 0);
  EXPECT_EQ(sample.token, 0);
  EXPECT_NEAR(sample.logprob, std::log(0.1), 1e-6);  // Before the bias.
  EXPECT_EQ(sample.top_ids, (std::vector<int32_t>{2, 1, 3}));
  EXPECT_NEAR(sample.top_logprobs[0], std::log(0.5), 1e-6);
}

TEST(ReferenceDistributionTest, FiltersInOrderAndKeepsTies) {
  std::vector<float> logits;
  for (float p : {0.4f, 0.2f, 0.2f, 0.1f, 0.1f}) logits.push_back(std::log(p));
  SlotParams params;
  const auto distribution = [&] {
    return ReferenceDistribution(logits, params, {}, 0, 0);
  };
  const auto expect = [&](std::vector<double> expected) {
    const std::vector<double> got = distribution();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(got[i], expected[i], 1e-6) << i;
    }
  };
  expect({0.4, 0.2, 0.2, 0.1, 0.1});
  params.top_k = 2;  // The second and third tie.
  expect({0.5, 0.25, 0.25, 0, 0});
  params.top_p = 0.5f;  // Of those: the first reaches it.
  expect({1, 0, 0, 0, 0});
  params.top_p = 0.51f;
  expect({0.5, 0.25, 0.25, 0, 0});
  params = SlotParams();
  params.min_p = 0.3f;
  expect({0.5, 0.25, 0.25, 0, 0});
}

}  // namespace
}  // namespace quire
