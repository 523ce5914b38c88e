#include "server/http/api_keys.h"

#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace quire {
namespace {

// `printf key | sha256sum`, from coreutils.
constexpr char kAlphaSha256[] =
    "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
constexpr char kBetaSha256[] =
    "F44E64E75F3948E9F73F8DFA94721C4ce8cbb4f265c4790c702b2d41cfbf2753";

std::string WriteFile(const std::string& text) {
  const std::string path =
      testing::TempDir() + "/keys_" +
      testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
  const std::string temporary = path + ".new";
  std::ofstream(temporary) << text;
  std::rename(temporary.c_str(), path.c_str());
  return path;
}

std::unique_ptr<ApiKeys> Make(const std::vector<std::string>& keys,
                              const std::string& file = "") {
  auto made = ApiKeys::Create(keys, file);
  EXPECT_TRUE(made.ok()) << made.status();
  return made.ok() ? *std::move(made) : nullptr;
}

std::string OwnerName(const ApiKeys& keys, const std::string& authorization) {
  const auto owner = keys.Authenticate(authorization);
  return owner == nullptr ? "(nobody)" : owner->name;
}

TEST(ApiKeysTest, NoKeysAcceptsAll) {
  EXPECT_EQ(OwnerName(*Make({}), ""), "");
  EXPECT_EQ(OwnerName(*Make({}), "Bearer x"), "");
}

TEST(ApiKeysTest, OnlyWholeKeysOfTheBearerScheme) {
  const auto keys = Make({"alpha", "beta"});
  EXPECT_EQ(OwnerName(*keys, "Bearer alpha"), "key-1");
  EXPECT_EQ(OwnerName(*keys, "bearer  beta"), "key-2");
  for (const char* value : {"", "Bearer", "Bearer ", "alpha", "Basic alpha",
                            "Bearer alph", "Bearer alphaa", "Bearer ALPHA",
                            "Bearer alpha beta", "Bearer: alpha"}) {
    EXPECT_EQ(keys->Authenticate(value), nullptr) << value;
  }
  EXPECT_EQ(keys->Authenticate(std::string("Bearer alpha\0", 13)), nullptr);
  EXPECT_EQ(keys->Authenticate("Bearer " + std::string(1 << 20, 'k')), nullptr);
}

TEST(ApiKeysTest, AnEmptyKeyOpensNothing) {
  const auto keys = Make({""});
  EXPECT_EQ(keys->Authenticate(""), nullptr);
  EXPECT_EQ(keys->Authenticate("Bearer "), nullptr);
  EXPECT_EQ(keys->Authenticate("Bearer x"), nullptr);
}

TEST(ApiKeysTest, KnowsThatItLetsNobodyIn) {
  EXPECT_FALSE(Make({})->LetsNobodyIn());
  EXPECT_FALSE(Make({"alpha"})->LetsNobodyIn());
  const std::string path = WriteFile("keys: []\n");
  const auto keys = Make({}, path);
  EXPECT_TRUE(keys->LetsNobodyIn());
  EXPECT_EQ(keys->Authenticate("Bearer alpha"), nullptr);
  EXPECT_FALSE(Make({"alpha"}, path)->LetsNobodyIn());
  WriteFile(std::string("keys:\n- {name: a, sha256: ") + kAlphaSha256 + "}\n");
  EXPECT_TRUE(*keys->ReloadIfChanged());
  EXPECT_FALSE(keys->LetsNobodyIn());
}

TEST(ApiKeysTest, FileHasDigestsNamesAndLimits) {
  const std::string path = WriteFile(
      std::string("keys:\n- name: team-a\n  sha256: ") + kAlphaSha256 +
      "\n  max_concurrent_requests: 8\n  requests_per_minute: 600\n"
      "  tokens_per_minute: 100000\n- name: team-a\n  sha256: " +
      kBetaSha256 + "\n");
  const auto keys = Make({"gamma"}, path);
  const auto owner = keys->Authenticate("Bearer alpha");
  ASSERT_NE(owner, nullptr);
  EXPECT_EQ(owner->name, "team-a");
  EXPECT_EQ(owner->limits, (ApiKeyLimits{8, 600, 100000}));
  EXPECT_EQ(keys->Authenticate("Bearer beta"), owner);
  EXPECT_EQ(OwnerName(*keys, "Bearer gamma"), "key-1");
  EXPECT_EQ(keys->Authenticate(std::string("Bearer ") + kAlphaSha256), nullptr);
}

TEST(ApiKeysTest, WeightsAreOfTheNameAndALoneNameIsToldSo) {
  const std::string alpha =
      std::string("keys:\n- {name: a, weight: 3, sha256: ") + kAlphaSha256 +
      "}\n";
  const std::string path =
      WriteFile(alpha + "- {name: a, sha256: " + kBetaSha256 + "}\n");
  const auto keys = Make({}, path);
  EXPECT_EQ(keys->Authenticate("Bearer alpha")->share_weight, 3);
  EXPECT_EQ(keys->Authenticate("Bearer beta")->share_weight, 3);
  // Two keys of one name share with nobody.
  EXPECT_TRUE(keys->Authenticate("Bearer alpha")->is_only_one);
  WriteFile(alpha + "- {name: b, sha256: " + kBetaSha256 + "}\n");
  EXPECT_TRUE(*keys->ReloadIfChanged());
  EXPECT_FALSE(keys->Authenticate("Bearer alpha")->is_only_one);
  EXPECT_FALSE(keys->Authenticate("Bearer beta")->is_only_one);
  EXPECT_EQ(keys->Authenticate("Bearer beta")->share_weight, 1);
  const auto fixed = Make({"x"});
  EXPECT_TRUE(fixed->Authenticate("Bearer x")->is_only_one);
  EXPECT_FALSE(Make({"x", "y"})->Authenticate("Bearer x")->is_only_one);
}

TEST(ApiKeysTest, ChangedFileCountsAndABadOneDoesNot) {
  const std::string path = WriteFile("keys: []");
  const auto keys = Make({}, path);
  EXPECT_EQ(keys->Authenticate("Bearer alpha"), nullptr);
  EXPECT_FALSE(*keys->ReloadIfChanged());
  WriteFile(std::string("keys:\n- {name: a, sha256: ") + kAlphaSha256 + "}");
  EXPECT_TRUE(*keys->ReloadIfChanged());
  EXPECT_EQ(OwnerName(*keys, "Bearer alpha"), "a");
  WriteFile("keys: {");
  EXPECT_FALSE(keys->ReloadIfChanged().ok());
  EXPECT_FALSE(*keys->ReloadIfChanged());  // Said once.
  EXPECT_EQ(OwnerName(*keys, "Bearer alpha"), "a");
  std::remove(path.c_str());
  EXPECT_FALSE(keys->ReloadIfChanged().ok());
  EXPECT_EQ(OwnerName(*keys, "Bearer alpha"), "a");
}

TEST(ApiKeysTest, ErrorsNameFileEntryAndField) {
  const std::string good =
      std::string("- {name: a, sha256: ") + kAlphaSha256 + "}\n";
  const std::pair<std::string, std::string> cases[] = {
      {"keys: [", ": line "},
      {"[]", "must be one list 'keys'"},
      {"keys: 3", "must be one list 'keys'"},
      {"keys: []\nother: 1", "must be one list 'keys'"},
      {"keys:\n" + good + "- 7", "keys[1]: must be a map"},
      {"keys:\n- {name: a}", "keys[0]: 'name' and 'sha256' are needed"},
      {"keys:\n- {name: a, sha256: 12}", "64 hexadecimal digits"},
      {"keys:\n- {name: 'a b', sha256: 12}", "'name' must have"},
      {"keys:\n- {name: a, key: secret}", "unknown field"},
      {"keys:\n- {name: a, requests_per_minute: -1}",
       "'requests_per_minute' must be a positive integer"},
      {"keys:\n- {name: a, tokens_per_minute: 1e9}", "'tokens_per_minute'"},
      {"keys:\n- {name: a, weight: 0}", "'weight' must be a positive"},
      {"keys:\n- {name: a, weight: 1001}", "at most 1000"},
      {"keys:\n- {name: [a]}", "plain values"},
      {"keys:\n- {name: key-1, sha256: 12}", "must not begin with 'key-'"},
      {"keys:\n" + good + good, "keys[1]: the key is there already"},
      {"keys:\n" + good +
           "- {name: a, requests_per_minute: 3, sha256: " + kBetaSha256 + "}",
       "keys[1]: other limits than an earlier key of this name"},
  };
  for (const auto& [text, message] : cases) {
    const std::string path = WriteFile(text);
    const absl::Status status = ApiKeys::Create({}, path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    const std::string said(status.message());
    EXPECT_NE(said.find(message), std::string::npos) << said;
    EXPECT_NE(said.find(path), std::string::npos) << said;
    EXPECT_EQ(said.find("secret"), std::string::npos) << said;
  }
  EXPECT_FALSE(ApiKeys::Create({}, "/nowhere.yaml").ok());
  EXPECT_EQ(ApiKeys::Create({}, "/tmp").status().message(),
            "keys file /tmp: is a directory");
}

}  // namespace
}  // namespace quire
