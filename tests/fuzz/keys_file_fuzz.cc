// The file of API keys: whatever bytes, then whether anybody gets in who must
// not.
#include <cstddef>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/http/api_keys.h"
#include "tests/fuzz/memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static quire::MemoryFile& file = *new quire::MemoryFile;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  file.Set(text);
  const auto keys = quire::ApiKeys::Create({"given"}, file.path());
  if (!keys.ok()) {
    QUIRE_CHECK(absl::IsInvalidArgument(keys.status()));
    return 0;
  }
  // The key of the command line counts beside it, and nothing else opens: the
  // file holds digests, not keys.
  const auto owner = (*keys)->Authenticate("Bearer given");
  QUIRE_CHECK(owner != nullptr && owner->name == "key-1");
  for (const absl::string_view line : {"", "Bearer ", "Bearer"}) {
    QUIRE_CHECK((*keys)->Authenticate(line) == nullptr);
  }
  QUIRE_CHECK((*keys)->Authenticate(absl::StrCat("Bearer ", text)) == nullptr ||
              absl::StripAsciiWhitespace(text) == "given");
  // The seeds have this one: `printf key | sha256sum`.
  if (const auto other = (*keys)->Authenticate("Bearer key")) {
    QUIRE_CHECK(!other->name.empty() && other->name.size() <= 64);
    QUIRE_CHECK(!absl::StartsWith(other->name, "key-"));
  }
  QUIRE_CHECK((*keys)->ReloadIfChanged().ok());
  return 0;
}
