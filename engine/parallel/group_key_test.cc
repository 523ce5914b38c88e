#include "engine/parallel/group_key.h"

#include <fstream>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

constexpr char kSecret[] = "0123456789abcdef";

GroupKey Key(absl::string_view secret = kSecret) {
  return *GroupKey::Create(secret);
}

TEST(GroupKeyTest, OnlyTheSameKeyProves) {
  const std::string worker = GroupKey::MakeNonce();
  const std::string leader = GroupKey::MakeNonce();
  const std::string proof = Key().Prove("worker", worker, leader, "hello");
  EXPECT_EQ(proof.size(), GroupKey::kMacBytes);
  EXPECT_TRUE(Key().IsProof(proof, "worker", worker, leader, "hello"));
  EXPECT_FALSE(Key("0123456789abcdeF")
                   .IsProof(proof, "worker", worker, leader, "hello"));
  EXPECT_FALSE(GroupKey().IsProof(proof, "worker", worker, leader, "hello"));
  EXPECT_FALSE(Key().IsProof(proof, "leader", worker, leader, "hello"));
  EXPECT_FALSE(Key().IsProof(proof, "worker", leader, worker, "hello"));
  EXPECT_FALSE(Key().IsProof(proof, "worker", worker, leader, "hell0"));
  EXPECT_FALSE(Key().IsProof("", "worker", worker, leader, "hello"));
  EXPECT_FALSE(Key().IsProof(proof, "worker", "", leader, "hello"));
  for (size_t i = 0; i < proof.size(); ++i) {
    std::string other = proof;
    other[i] ^= 1;
    EXPECT_FALSE(Key().IsProof(other, "worker", worker, leader, "hello"));
  }
}

// By Python's hmac module: hmac.new(b"0123456789abcdef", b"quire worker\n" +
// bytes(32) + bytes([1]) * 32 + b"x", "sha256").
TEST(GroupKeyTest, IsHmacSha256) {
  EXPECT_EQ(absl::BytesToHexString(Key().Prove("worker", std::string(32, '\0'),
                                               std::string(32, '\1'), "x")),
            "9a44b6a2f8858be6ac925d2671a10bc5660d992264293825bf8ca6ddfbae67d2");
}

TEST(GroupKeyTest, NoncesDiffer) {
  std::set<std::string> nonces;
  for (int i = 0; i < 100; ++i) nonces.insert(GroupKey::MakeNonce());
  EXPECT_EQ(nonces.size(), 100u);
}

TEST(GroupKeyTest, ShortKeysAndMissingFilesAreRefused) {
  const absl::Status status = GroupKey::Create("0123456789abcde\n").status();
  EXPECT_EQ(status.message(),
            "the group's key has 15 bytes, and needs at least 16");
  EXPECT_TRUE(GroupKey().empty());
  const std::string path = absl::StrCat(testing::TempDir(), "/group_key");
  EXPECT_TRUE(absl::StrContains(GroupKey::ReadFile(path).status().message(),
                                "group_key: cannot be read"));
  std::ofstream(path) << kSecret << "\n";
  const auto key = GroupKey::ReadFile(path);
  ASSERT_TRUE(key.ok()) << key.status();
  const std::string nonce = GroupKey::MakeNonce();
  // The line's end is not part of it.
  EXPECT_TRUE(Key().IsProof(key->Prove("worker", nonce, nonce), "worker", nonce,
                            nonce));
}

}  // namespace
}  // namespace quire
