#include "server/http/api_keys.h"

#include <openssl/rand.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

constexpr int64_t kMaxFileBytes = 4 << 20;
constexpr size_t kMaxKeys = 10000;
constexpr size_t kMaxNameBytes = 64;
constexpr int64_t kMaxLimit = int64_t{1} << 50;
constexpr int64_t kMaxWeight = 1000;

std::array<uint8_t, 32> Sha256(absl::string_view text) {
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(),
         digest.data());
  return digest;
}

std::array<uint8_t, 32> RandomSecret() {
  std::array<uint8_t, 32> secret;
  QUIRE_CHECK(RAND_bytes(secret.data(), secret.size()) == 1);
  return secret;
}

// Of the command line's keys.
constexpr absl::string_view kFixedNamePrefix = "key-";

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

bool ParseDigest(const std::string& text, std::array<uint8_t, 32>* digest) {
  const bool is_hex =
      text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
        return absl::ascii_isxdigit(c);
      });
  if (!is_hex) return false;
  const std::string bytes = absl::HexStringToBytes(text);
  std::memcpy(digest->data(), bytes.data(), digest->size());
  return true;
}

struct Entry {
  std::array<uint8_t, 32> digest;
  ApiKeyOwner owner;
  bool has_own_settings = false;  // Beside name and key.
};

// `where`: the entry, for the message.
absl::StatusOr<Entry> ParseEntry(const YAML::Node& node,
                                 const std::string& where) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
  };
  if (!node.IsMap()) return error("must be a map of fields");
  Entry entry;
  std::set<std::string> seen;
  int64_t weight = 1;
  std::map<std::string, int64_t*> limits = {
      {"weight", &weight},
      {"max_concurrent_requests", &entry.owner.limits.max_concurrent_requests},
      {"requests_per_minute", &entry.owner.limits.requests_per_minute},
      {"tokens_per_minute", &entry.owner.limits.tokens_per_minute}};
  for (const auto& field : node) {
    if (!field.first.IsScalar() || !field.second.IsScalar()) {
      return error("fields must have plain values");
    }
    const std::string& name = field.first.Scalar();
    const std::string& value = field.second.Scalar();
    if (!seen.insert(name).second) return error("a field is given twice");
    if (name == "name") {
      if (!IsName(value)) {
        return error("'name' must have 1 to 64 letters, digits, '.', '_', '-'");
      }
      if (absl::StartsWith(value, kFixedNamePrefix)) {
        return error("'name' must not begin with 'key-': --api-key does");
      }
      entry.owner.name = value;
    } else if (name == "sha256") {
      if (!ParseDigest(value, &entry.digest)) {
        return error("'sha256' must have 64 hexadecimal digits");
      }
    } else if (const auto limit = limits.find(name); limit != limits.end()) {
      if (!absl::SimpleAtoi(value, limit->second) || *limit->second < 1 ||
          *limit->second > (name == "weight" ? kMaxWeight : kMaxLimit)) {
        return error(absl::StrCat(
            "'", name, "' must be a positive integer",
            name == "weight" ? absl::StrCat(", at most ", kMaxWeight) : ""));
      }
    } else {
      return error(
          "unknown field; there are name, sha256, max_concurrent_requests, "
          "requests_per_minute, tokens_per_minute, weight");
    }
  }
  entry.owner.share_weight = static_cast<int32_t>(weight);
  entry.has_own_settings = seen.size() > 2;
  if (seen.count("name") == 0 || seen.count("sha256") == 0) {
    return error("'name' and 'sha256' are needed");
  }
  return entry;
}

// Exceptions of the library become statuses.
absl::StatusOr<std::vector<Entry>> ParseFile(const std::string& path) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys file ", path, ": ", what));
  };
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return error("is a directory");
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return error("cannot be read");
  if (file.tellg() > kMaxFileBytes) return error("larger than 4 MiB");
  file.seekg(0);
  std::stringstream text;
  text << file.rdbuf();
  try {
    const YAML::Node root = YAML::Load(text.str());
    const YAML::Node keys = root.IsMap() ? root["keys"] : YAML::Node();
    if (!keys.IsDefined() || !keys.IsSequence() || root.size() != 1) {
      return error("must be one list 'keys'");
    }
    if (keys.size() > kMaxKeys) return error("more than 10000 keys");
    std::vector<Entry> entries;
    for (const YAML::Node& node : keys) {
      const std::string where =
          absl::StrCat("keys file ", path, ": keys[", entries.size(), "]");
      QUIRE_ASSIGN_OR_RETURN(Entry entry, ParseEntry(node, where));
      entries.push_back(std::move(entry));
    }
    return entries;
  } catch (const YAML::ParserException& e) {
    return error(absl::StrCat("line ", e.mark.line + 1, ": ", e.msg));
  } catch (const std::exception&) {
    return error("not readable as YAML");
  }
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys, const std::string& file)
    : file_(file),
      secret_(RandomSecret()),
      anybody_(keys.empty() && file.empty() ? std::make_shared<ApiKeyOwner>()
                                            : nullptr) {
  for (const std::string& key : keys) {
    if (key.empty()) continue;
    auto owner = std::make_shared<ApiKeyOwner>();
    owner->name = absl::StrCat(kFixedNamePrefix, fixed_keys_.size() + 1);
    fixed_keys_.emplace(Blind(Sha256(key)), std::move(owner));
  }
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Create(
    const std::vector<std::string>& keys, const std::string& file) {
  std::unique_ptr<ApiKeys> created(new ApiKeys(keys, file));
  created->file_version_ = created->FileVersion();
  QUIRE_ASSIGN_OR_RETURN(created->keys_, created->Load());
  return created;
}

absl::StatusOr<std::shared_ptr<const ApiKeys::Keys>> ApiKeys::Load() const {
  auto keys = std::make_shared<Keys>(fixed_keys_);
  std::vector<Entry> entries;
  if (!file_.empty()) {
    QUIRE_ASSIGN_OR_RETURN(entries, ParseFile(file_));
  }
  std::set<std::string> names;
  for (const auto& [digest, owner] : *keys) names.insert(owner->name);
  for (const Entry& entry : entries) names.insert(entry.owner.name);
  const bool is_only_one = names.size() == 1;
  for (auto& [digest, owner] : *keys) {
    auto copy = std::make_shared<ApiKeyOwner>(*owner);
    copy->is_only_one = is_only_one;
    owner = std::move(copy);
  }
  std::map<std::string, std::shared_ptr<const ApiKeyOwner>> owners;
  for (size_t i = 0; i < entries.size(); ++i) {
    const ApiKeyOwner& own = entries[i].owner;
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys file ", file_, ": keys[", i, "]: ", what));
    };
    std::shared_ptr<const ApiKeyOwner>& owner = owners[own.name];
    if (owner == nullptr) {
      auto first = std::make_shared<ApiKeyOwner>(own);
      first->is_only_one = is_only_one;
      owner = std::move(first);
    } else if (entries[i].has_own_settings &&
               (own.limits != owner->limits ||
                own.share_weight != owner->share_weight)) {
      return error("other limits than an earlier key of this name");
    }
    if (!keys->emplace(Blind(entries[i].digest), owner).second) {
      return error("the key is there already");
    }
  }
  return keys;
}

ApiKeys::Digest ApiKeys::Blind(const Digest& digest) const {
  std::array<uint8_t, 64> both;
  std::copy(secret_.begin(), secret_.end(), both.begin());
  std::copy(digest.begin(), digest.end(), both.begin() + secret_.size());
  return Sha256(absl::string_view(reinterpret_cast<const char*>(both.data()),
                                  both.size()));
}

std::string ApiKeys::FileVersion() const {
  struct stat info = {};
  if (file_.empty() || stat(file_.c_str(), &info) != 0) return "";
  return absl::StrCat(info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec,
                      " ", info.st_mtim.tv_nsec);
}

bool ApiKeys::LetsNobodyIn() const {
  if (anybody_ != nullptr) return false;
  std::lock_guard<std::mutex> lock(mu_);
  return keys_->empty();
}

absl::StatusOr<bool> ApiKeys::ReloadIfChanged() {
  std::string version = FileVersion();
  if (version == file_version_) return false;
  file_version_ = std::move(version);
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<const Keys> keys, Load());
  std::lock_guard<std::mutex> lock(mu_);
  keys_ = std::move(keys);
  return true;
}

std::shared_ptr<const ApiKeyOwner> ApiKeys::Authenticate(
    absl::string_view authorization) const {
  if (anybody_ != nullptr) return anybody_;
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return nullptr;
  const Digest digest =
      Sha256(absl::StripAsciiWhitespace(authorization.substr(kScheme.size())));
  std::shared_ptr<const Keys> keys;
  {
    std::lock_guard<std::mutex> lock(mu_);
    keys = keys_;
  }
  const auto found = keys->find(Blind(digest));
  return found == keys->end() ? nullptr : found->second;
}

}  // namespace quire
