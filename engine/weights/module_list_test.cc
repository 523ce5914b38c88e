#include "engine/weights/module_list.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::HasSubstr;

// The entry that names the module, or "".
std::string Found(ModuleMatch match, std::vector<std::string> entries,
                  absl::string_view module) {
  const auto list = ModuleList::Create("field", match, std::move(entries));
  EXPECT_TRUE(list.ok()) << list.status();
  const auto found = list->Find(module);
  EXPECT_TRUE(found.ok()) << found.status();
  return *found == nullptr ? "" : **found;
}

TEST(ModuleListTest, ExactNamesAndExpressions) {
  const auto found = [](std::string entry, absl::string_view module) {
    return !Found(ModuleMatch::kExact, {"other", entry}, module).empty();
  };
  EXPECT_TRUE(found("lm_head", "lm_head"));
  EXPECT_FALSE(found("lm_hea", "lm_head"));
  EXPECT_FALSE(found("mlp", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(
      found("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(found("layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(found("re:.*up_proj", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(found("re:.*\\.mlp\\.(up|gate)", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(found("re:.*gate$", "model.layers.0.mlp.gate_proj"));
  EXPECT_FALSE(found("re:up_proj", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(found("Linear", "lm_head"));
}

TEST(ModuleListTest, Components) {
  const auto found = [](std::string entry, absl::string_view module) {
    return !Found(ModuleMatch::kComponents, {entry}, module).empty();
  };
  EXPECT_TRUE(found("lm_head", "lm_head"));
  EXPECT_TRUE(found("self_attn", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(found("model.layers.0", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(found("mlp.gate", "model.layers.0.mlp.gate"));
  EXPECT_FALSE(found("mlp.gate", "model.layers.0.mlp.gate_proj"));
  EXPECT_FALSE(found("layers.1", "model.layers.10.mlp.up_proj"));
  EXPECT_FALSE(found("", "lm_head"));
  // No expressions here.
  EXPECT_FALSE(found("re:.*", "lm_head"));
}

TEST(ModuleListTest, EmptyNamesNothing) {
  EXPECT_EQ(ModuleList().Find("lm_head").value(), nullptr);
}

TEST(ModuleListTest, BadAndExpensiveExpressions) {
  const auto bad = ModuleList::Create("f", ModuleMatch::kExact, {"re:(a"});
  EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()),
              HasSubstr("holds \"re:(a\", which is no regular expression"));
  const auto slow = ModuleList::Create("quantization_config.ignore",
                                       ModuleMatch::kExact, {"re:(a+)+$"});
  ASSERT_TRUE(slow.ok()) << slow.status();
  const auto found = slow->Find(std::string(60, 'a') + "b");
  EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(found.status().message()),
              HasSubstr("quantization_config.ignore holds \"re:(a+)+$\", which "
                        "takes too long"));
}

}  // namespace
}  // namespace quire
