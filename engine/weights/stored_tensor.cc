#include "engine/weights/stored_tensor.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace quire {
namespace {

struct DTypeEntry {
  const char* name;
  StoredDType dtype;
  int size;
};

constexpr DTypeEntry kDTypes[] = {
    {"BOOL", StoredDType::kBool, 1},      {"U8", StoredDType::kU8, 1},
    {"I8", StoredDType::kI8, 1},          {"F8_E5M2", StoredDType::kF8E5M2, 1},
    {"F8_E4M3", StoredDType::kF8E4M3, 1}, {"F8_E8M0", StoredDType::kF8E8M0, 1},
    {"I16", StoredDType::kI16, 2},        {"U16", StoredDType::kU16, 2},
    {"F16", StoredDType::kF16, 2},        {"BF16", StoredDType::kBF16, 2},
    {"I32", StoredDType::kI32, 4},        {"U32", StoredDType::kU32, 4},
    {"F32", StoredDType::kF32, 4},        {"F64", StoredDType::kF64, 8},
    {"I64", StoredDType::kI64, 8},        {"U64", StoredDType::kU64, 8},
    {"C64", StoredDType::kC64, 8},
};

const DTypeEntry& EntryOf(StoredDType dtype) {
  for (const DTypeEntry& entry : kDTypes) {
    if (entry.dtype == dtype) return entry;
  }
  QUIRE_CHECK(false);
  __builtin_unreachable();
}

}  // namespace

const char* StoredDTypeName(StoredDType dtype) { return EntryOf(dtype).name; }

std::optional<StoredDType> StoredDTypeFromName(absl::string_view name) {
  for (const DTypeEntry& entry : kDTypes) {
    if (name == entry.name) return entry.dtype;
  }
  return std::nullopt;
}

int64_t StoredDTypeSize(StoredDType dtype) { return EntryOf(dtype).size; }

std::string ShapeString(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

std::string Quoted(absl::string_view text) {
  constexpr size_t kMaxShown = 120;
  const bool is_long = text.size() > kMaxShown;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxShown)),
                      is_long ? "..." : "", "\"");
}

}  // namespace quire
