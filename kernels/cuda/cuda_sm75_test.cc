// What the CUDA backend does on a GPU of compute capability 7.5, which has no
// bf16, 64 KiB of shared memory and no asynchronous copies. That it computes
// right there, tests/*_sm75 show.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"

namespace quire {
namespace {

class CudaSm75Test : public testing::Test {
 protected:
  static LinearSpec SpecOf(const std::vector<uint16_t>& values) {
    LinearSpec spec;
    spec.parts = {{TensorView::Matrix(values.data(), DType::kBF16, 8, 8),
                   QuantFormat::kDense}};
    return spec;
  }

  const std::unique_ptr<CudaBackend> backend_ =
      std::move(CudaBackend::Create({})).value();
};

TEST_F(CudaSm75Test, IsEmulated) {
  EXPECT_EQ(backend_->device().properties().major, 7);
  EXPECT_EQ(backend_->device().properties().minor, 5);
}

TEST_F(CudaSm75Test, EverythingBecomesF16) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    EXPECT_EQ(backend_->ActivationDType(dtype), DType::kF16);
  }
  std::vector<uint16_t> values(64, FloatToBf16(3.0f));
  EXPECT_TRUE(backend_->PackLinear(SpecOf(values)).ok());
  values[9] = FloatToBf16(70000.0f);
  const absl::Status status = backend_->PackLinear(SpecOf(values)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(status.message(),
            "row 1 of a weight holds a bf16 value beyond f16, in which this "
            "GPU keeps it");
}

TEST_F(CudaSm75Test, ABf16KvCacheIsRefused) {
  AttentionSpec attention;
  attention.num_layers = attention.num_heads = attention.num_kv_heads = 1;
  attention.head_dim = 256;
  attention.scale = 0.0625f;
  attention.kv_dtype = DType::kBF16;
  ASSERT_TRUE(backend_->AddAttention(attention).ok());
  backend_->AddActivation(64, DType::kF16, ActivationRows::kTokens);
  EngineShape shape;
  shape.max_num_seqs = 1;
  shape.max_num_tokens = 8;
  shape.max_logit_rows = 1;
  shape.max_model_len = 64;
  shape.vocab_size = 8;
  shape.block_size = 8;
  shape.kv_bytes = 1 << 20;
  const absl::Status status = backend_->Prepare(shape).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message())
                .find("a KV cache in bf16 for activations in f16"),
            std::string::npos)
      << status;
}

}  // namespace
}  // namespace quire
