#include "engine/model/pooling_config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST(ParsePoolingConfigTest, Modes) {
  const auto parse = [](absl::string_view text) {
    return ParsePoolingConfig(text, "p.json", 64);
  };
  EXPECT_EQ(*parse(R"({"pooling_mode_lasttoken": true})"), Pooling::kLast);
  EXPECT_EQ(*parse(R"({"pooling_mode_mean_tokens": true,
                       "pooling_mode_lasttoken": false,
                       "word_embedding_dimension": 64})"),
            Pooling::kMean);
  EXPECT_EQ(*parse(R"({"pooling_mode": "mean", "embedding_dimension": 64})"),
            Pooling::kMean);
  EXPECT_EQ(*parse(R"({"pooling_mode": "lasttoken"})"), Pooling::kLast);
}

TEST(ParsePoolingConfigTest, RefusalsNameFileAndField) {
  const auto expect_error = [](absl::string_view text, const char* field) {
    const absl::Status status = ParsePoolingConfig(text, "p.json", 64).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("p.json")) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field)) << text;
  };
  expect_error("[]", "object");
  expect_error("{", "object");
  expect_error("{}", "pooling_mode_lasttoken");
  expect_error(R"({"pooling_mode": "cls"})", "pooling_mode");
  expect_error(R"({"pooling_mode": 3})", "pooling_mode");
  expect_error(R"({"pooling_mode_cls_token": true})", "pooling_mode_cls_token");
  expect_error(R"({"pooling_mode_lasttoken": true,
                   "word_embedding_dimension": 32})",
               "word_embedding_dimension");
}

// A directory with the files given.
class ResolveEmbeddingTest : public testing::Test {
 protected:
  ResolveEmbeddingTest() {
    fs::remove_all(directory_);
    fs::create_directories(directory_ / "1_Pooling");
    config_.architecture = "Qwen3ForCausalLM";
    config_.hidden_size = 64;
  }
  ~ResolveEmbeddingTest() override { fs::remove_all(directory_); }

  void Write(const char* name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
  }
  void WriteStages() {
    Write("modules.json",
          R"([{"type": "sentence_transformers.models.Transformer", "path": ""},
              {"type": "sentence_transformers.models.Pooling",
               "path": "1_Pooling"}])");
    Write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true})");
  }
  absl::StatusOr<std::optional<EmbeddingConfig>> Resolve(
      ModelTask task, std::optional<Pooling> pooling = std::nullopt) {
    return ResolveEmbedding(directory_.string(), config_, task, pooling);
  }

  const fs::path directory_ = fs::path(testing::TempDir()) /
                              absl::StrCat("pooling_config_", ::getpid());
  ModelConfig config_;
};

TEST_F(ResolveEmbeddingTest, WithoutFilesTheTaskDecides) {
  EXPECT_FALSE(Resolve(ModelTask::kAuto)->has_value());
  EXPECT_FALSE(Resolve(ModelTask::kGenerate)->has_value());
  const auto embedding = Resolve(ModelTask::kEmbed);
  ASSERT_TRUE(embedding->has_value());
  EXPECT_EQ((*embedding)->pooling, Pooling::kLast);
  EXPECT_TRUE((*embedding)->normalize);
  EXPECT_EQ((*Resolve(ModelTask::kEmbed, Pooling::kMean))->pooling,
            Pooling::kMean);
}

TEST_F(ResolveEmbeddingTest, ATrunkEmbeds) {
  config_.is_trunk = true;
  EXPECT_TRUE(Resolve(ModelTask::kAuto)->has_value());
  EXPECT_EQ(Resolve(ModelTask::kGenerate).status().code(),
            absl::StatusCode::kInvalidArgument);
  config_.tie_word_embeddings = true;
  EXPECT_FALSE(Resolve(ModelTask::kGenerate)->has_value());
}

TEST_F(ResolveEmbeddingTest, StagesDecide) {
  WriteStages();
  const auto embedding = Resolve(ModelTask::kAuto);
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  ASSERT_TRUE(embedding->has_value());
  EXPECT_EQ((*embedding)->pooling, Pooling::kMean);
  EXPECT_FALSE((*embedding)->normalize);
  EXPECT_EQ((*embedding)->max_input_tokens, 0);
  EXPECT_FALSE(Resolve(ModelTask::kGenerate)->has_value());
}

TEST_F(ResolveEmbeddingTest, InputLimits) {
  WriteStages();
  Write("sentence_bert_config.json",
        R"({"max_seq_length": 512, "do_lower_case": false})");
  EXPECT_EQ((*Resolve(ModelTask::kAuto))->max_input_tokens, 512);
  Write("sentence_bert_config.json", R"({"do_lower_case": true})");
  EXPECT_THAT(std::string(Resolve(ModelTask::kAuto).status().message()),
              HasSubstr("do_lower_case"));
}

TEST_F(ResolveEmbeddingTest, OtherStagesAreRefused) {
  WriteStages();
  for (const char* modules :
       {"{}", "[7]", R"([{"path": "1_Pooling"}])",
        R"([{"type": "sentence_transformers.models.Dense", "path": "2"}])",
        R"([{"type": "x.Pooling", "path": "/etc"}])",
        R"([{"type": "x.Pooling", "path": "1_Pooling"},
            {"type": "x.Pooling", "path": "1_Pooling"}])"}) {
    Write("modules.json", modules);
    EXPECT_EQ(Resolve(ModelTask::kAuto).status().code(),
              absl::StatusCode::kInvalidArgument)
        << modules;
  }
  // A reranker's or a plain model's stages are none of an embedding.
  Write("modules.json", R"([{"type": "x.Transformer", "path": ""}])");
  EXPECT_FALSE(Resolve(ModelTask::kAuto)->has_value());
}

}  // namespace
}  // namespace quire
