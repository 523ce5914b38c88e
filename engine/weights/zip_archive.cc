#include "engine/weights/zip_archive.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/weights/stored_tensor.h"

namespace quire {
namespace {

constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr size_t kLocalSize = 30;
constexpr size_t kCentralSize = 46;
constexpr size_t kEndSize = 22;
constexpr size_t kEnd64Size = 56;
constexpr size_t kLocatorSize = 20;
constexpr size_t kMaxComment = 65535;
constexpr uint64_t kMaxEntries = 1'000'000;
constexpr uint16_t kZip64Field = 1;
constexpr uint32_t kIn64 = 0xffffffff;  // The value is in the zip64 field.

template <typename T>
T LoadLittle(absl::Span<const uint8_t> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));  // All hosts are so.
  return value;
}

struct CentralEntry {
  std::string name;
  uint64_t size = 0;
  uint64_t offset = 0;  // Of the local header.
};

struct CentralDirectory {
  uint64_t num_entries = 0;
  uint64_t offset = 0;
  uint64_t size = 0;
};

class ZipParser {
 public:
  ZipParser(absl::Span<const uint8_t> archive, const std::string& path)
      : archive_(archive), path_(path) {}

  absl::StatusOr<ZipEntries> Parse() {
    QUIRE_ASSIGN_OR_RETURN(const CentralDirectory directory, FindDirectory());
    if (directory.offset > archive_.size() ||
        directory.size > archive_.size() - directory.offset) {
      return absl::DataLossError(absl::StrCat(
          path_, ": the archive's directory lies outside it (truncated?)"));
    }
    if (directory.num_entries > kMaxEntries) return Error("too many files");
    central_ = archive_.subspan(directory.offset, directory.size);
    std::vector<CentralEntry> entries;
    for (uint64_t i = 0; i < directory.num_entries; ++i) {
      QUIRE_ASSIGN_OR_RETURN(CentralEntry entry, NextEntry());
      entries.push_back(std::move(entry));
    }
    return Locate(std::move(entries), directory.offset);
  }

 private:
  absl::Status Error(absl::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": not a usable zip archive: ", message));
  }

  // The end record is the last thing but for a comment.
  absl::StatusOr<CentralDirectory> FindDirectory() const {
    const size_t size = archive_.size();
    if (size < kEndSize) {
      return absl::DataLossError(
          absl::StrCat(path_, ": ", size, " bytes, too short for an archive"));
    }
    const size_t lowest = size - std::min(size, kEndSize + kMaxComment);
    for (size_t at = size - kEndSize + 1; at-- > lowest;) {
      if (LoadLittle<uint32_t>(archive_, at) != kEndSignature) continue;
      const size_t comment = LoadLittle<uint16_t>(archive_, at + 20);
      if (at + kEndSize + comment != size) continue;
      return ReadEnd(at);
    }
    return absl::DataLossError(absl::StrCat(
        path_, ": truncated: the archive's directory is not at its end"));
  }

  absl::StatusOr<CentralDirectory> ReadEnd(size_t at) const {
    CentralDirectory directory;
    directory.num_entries = LoadLittle<uint16_t>(archive_, at + 10);
    directory.size = LoadLittle<uint32_t>(archive_, at + 12);
    directory.offset = LoadLittle<uint32_t>(archive_, at + 16);
    if (at < kLocatorSize ||
        LoadLittle<uint32_t>(archive_, at - kLocatorSize) !=
            kLocator64Signature) {
      return directory;
    }
    const uint64_t end64 =
        LoadLittle<uint64_t>(archive_, at - kLocatorSize + 8);
    if (archive_.size() < kEnd64Size || end64 > archive_.size() - kEnd64Size ||
        LoadLittle<uint32_t>(archive_, end64) != kEnd64Signature) {
      return Error("its zip64 end record is not where it should be");
    }
    directory.num_entries = LoadLittle<uint64_t>(archive_, end64 + 32);
    directory.size = LoadLittle<uint64_t>(archive_, end64 + 40);
    directory.offset = LoadLittle<uint64_t>(archive_, end64 + 48);
    return directory;
  }

  // Takes one header off the central directory.
  absl::StatusOr<CentralEntry> NextEntry() {
    if (central_.size() < kCentralSize ||
        LoadLittle<uint32_t>(central_, 0) != kCentralSignature) {
      return Error("its directory is shorter than it says");
    }
    const uint16_t flags = LoadLittle<uint16_t>(central_, 8);
    const uint16_t method = LoadLittle<uint16_t>(central_, 10);
    uint64_t packed_size = LoadLittle<uint32_t>(central_, 20);
    CentralEntry entry;
    entry.size = LoadLittle<uint32_t>(central_, 24);
    entry.offset = LoadLittle<uint32_t>(central_, 42);
    const size_t name_size = LoadLittle<uint16_t>(central_, 28);
    const size_t extra_size = LoadLittle<uint16_t>(central_, 30);
    const size_t comment_size = LoadLittle<uint16_t>(central_, 32);
    const size_t total = kCentralSize + name_size + extra_size + comment_size;
    if (central_.size() < total) {
      return Error("its directory is shorter than it says");
    }
    entry.name.assign(
        reinterpret_cast<const char*>(central_.data()) + kCentralSize,
        name_size);
    const absl::Span<const uint8_t> extra =
        central_.subspan(kCentralSize + name_size, extra_size);
    central_.remove_prefix(total);
    const std::string where = absl::StrCat("file ", Quoted(entry.name));
    if (flags & 1) return Error(absl::StrCat(where, " is encrypted"));
    if (method != 0) {
      return Error(absl::StrCat(where, " is compressed (method ", method,
                                "); PyTorch stores files as they are"));
    }
    QUIRE_RETURN_IF_ERROR(ReadZip64(extra, where, &entry, &packed_size));
    if (packed_size != entry.size) {
      return Error(absl::StrCat(where, " has two sizes"));
    }
    return entry;
  }

  // Replaces what does not fit 32 bits; the field has only these, in this
  // order.
  absl::Status ReadZip64(absl::Span<const uint8_t> extra,
                         const std::string& where, CentralEntry* entry,
                         uint64_t* packed_size) const {
    std::vector<uint64_t*> values;
    for (uint64_t* value : {&entry->size, packed_size, &entry->offset}) {
      if (*value == kIn64) values.push_back(value);
    }
    if (values.empty()) return absl::OkStatus();
    while (extra.size() >= 4) {
      const uint16_t id = LoadLittle<uint16_t>(extra, 0);
      const size_t size = LoadLittle<uint16_t>(extra, 2);
      extra.remove_prefix(4);
      if (size > extra.size()) break;
      if (id == kZip64Field && size >= values.size() * 8) {
        for (size_t i = 0; i < values.size(); ++i) {
          *values[i] = LoadLittle<uint64_t>(extra, i * 8);
        }
        return absl::OkStatus();
      }
      extra.remove_prefix(size);
    }
    return Error(absl::StrCat(where, " lacks its 64-bit sizes"));
  }

  // The files' data; they end before the directory.
  absl::StatusOr<ZipEntries> Locate(std::vector<CentralEntry> entries,
                                    uint64_t directory_offset) const {
    std::sort(entries.begin(), entries.end(),
              [](const CentralEntry& a, const CentralEntry& b) {
                return a.offset < b.offset;
              });
    ZipEntries files;
    uint64_t covered = 0;
    for (const CentralEntry& entry : entries) {
      const std::string where = absl::StrCat("file ", Quoted(entry.name));
      if (entry.offset < covered) {
        return Error(absl::StrCat(where, " overlaps the one before it"));
      }
      if (entry.offset > directory_offset ||
          directory_offset - entry.offset < kLocalSize) {
        return Error(absl::StrCat(where, " lies outside the archive"));
      }
      if (LoadLittle<uint32_t>(archive_, entry.offset) != kLocalSignature) {
        return Error(absl::StrCat(where, " has no header"));
      }
      const size_t name_size =
          LoadLittle<uint16_t>(archive_, entry.offset + 26);
      const size_t extra_size =
          LoadLittle<uint16_t>(archive_, entry.offset + 28);
      const uint64_t data = entry.offset + kLocalSize + name_size + extra_size;
      if (data > directory_offset || entry.size > directory_offset - data) {
        return Error(absl::StrCat(where, " lies outside the archive"));
      }
      if (name_size != entry.name.size() ||
          std::memcmp(archive_.data() + entry.offset + kLocalSize,
                      entry.name.data(), name_size) != 0) {
        return Error(absl::StrCat(where, " has another name in its header"));
      }
      if (!files.emplace(entry.name, archive_.subspan(data, entry.size))
               .second) {
        return Error(absl::StrCat(where, " is in it twice"));
      }
      covered = data + entry.size;
    }
    return files;
  }

  absl::Span<const uint8_t> archive_;
  const std::string& path_;
  absl::Span<const uint8_t> central_;  // What is left of it.
};

}  // namespace

absl::StatusOr<ZipEntries> ParseZip(absl::Span<const uint8_t> archive,
                                    const std::string& path) {
  return ZipParser(archive, path).Parse();
}

}  // namespace quire
