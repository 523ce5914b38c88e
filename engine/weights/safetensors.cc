#include "engine/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/weights/pytorch_file.h"
#include "nlohmann/json.hpp"

namespace quire {
namespace {

// The format's own limit on the header.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
// A 405B model has about 1,100 tensors; mixtures of experts reach 100,000.
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxDimensions = 8;
constexpr int64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxShards = 10'000;

struct HeaderEntry {
  std::string name;
  StoredDType dtype = StoredDType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Receives the header's JSON as events: no tree of a hostile header is ever
// built, nesting beyond the format's ends the parse, and duplicate keys are
// seen (a tree would silently keep the last).
class HeaderHandler {
 public:
  using json = nlohmann::json;

  const std::string& error() const { return error_; }
  std::vector<HeaderEntry>& entries() { return entries_; }
  bool is_complete() const { return place_ == Place::kEnd; }

  bool key(std::string& key) {
    switch (place_) {
      case Place::kHeader:
        if (!names_.insert(key).second) {
          return Fail(absl::StrCat("tensor ", Quoted(key), ": duplicate key"));
        }
        if (names_.size() > kMaxTensors) return Fail("too many tensors");
        name_ = key;
        return true;
      case Place::kMetadata:
        return true;
      case Place::kTensor:
        if (key == "dtype") return BeginField(Field::kDType);
        if (key == "shape") return BeginField(Field::kShape);
        if (key == "data_offsets") return BeginField(Field::kOffsets);
        return FailTensor(absl::StrCat("unknown field ", Quoted(key)));
      default:
        return Fail("header: unexpected key");
    }
  }

  bool start_object(std::size_t) {
    if (place_ == Place::kStart) {
      place_ = Place::kHeader;
      return true;
    }
    if (place_ == Place::kHeader) {
      if (name_ == "__metadata__") {
        place_ = Place::kMetadata;
        return true;
      }
      place_ = Place::kTensor;
      entry_ = HeaderEntry();
      entry_.name = name_;
      seen_ = 0;
      return true;
    }
    return FailTensor("unexpected nested object");
  }

  bool end_object() {
    if (place_ == Place::kTensor) {
      if (seen_ != kAllFields) {
        return FailTensor("lacks one of dtype, shape, data_offsets");
      }
      entries_.push_back(std::move(entry_));
    }
    place_ = place_ == Place::kHeader ? Place::kEnd : Place::kHeader;
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ != Place::kTensor || field_ == Field::kDType) {
      return FailTensor("unexpected array");
    }
    place_ = Place::kArray;
    num_offsets_ = 0;
    return true;
  }

  bool end_array() {
    place_ = Place::kTensor;
    if (field_ == Field::kOffsets && num_offsets_ != 2) {
      return FailTensor("data_offsets must hold two numbers");
    }
    return true;
  }

  bool number_unsigned(json::number_unsigned_t value) {
    if (place_ != Place::kArray) return FailTensor("unexpected number");
    if (field_ == Field::kOffsets) {
      if (num_offsets_ == 2) return FailTensor("more than two data_offsets");
      (num_offsets_ == 0 ? entry_.begin : entry_.end) = value;
      ++num_offsets_;
      return true;
    }
    if (entry_.shape.size() == kMaxDimensions) {
      return FailTensor(
          absl::StrCat("shape has more than ", kMaxDimensions, " dimensions"));
    }
    if (value > uint64_t{1} << 62) {
      return FailTensor(absl::StrCat("dimension ", value, " is too large"));
    }
    entry_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != Field::kDType) {
      return FailTensor("unexpected string");
    }
    const std::optional<StoredDType> dtype = StoredDTypeFromName(value);
    if (!dtype) {
      return FailTensor(absl::StrCat("unknown dtype ", Quoted(value)));
    }
    entry_.dtype = *dtype;
    return true;
  }

  bool null() { return FailTensor("unexpected null"); }
  bool boolean(bool) { return FailTensor("unexpected boolean"); }
  bool number_integer(json::number_integer_t value) {
    return FailTensor(absl::StrCat("negative number ", value));
  }
  bool number_float(json::number_float_t, const std::string& text) {
    return FailTensor(absl::StrCat("not an integer: ", Quoted(text)));
  }
  bool binary(json::binary_t&) { return FailTensor("unexpected binary"); }
  bool parse_error(std::size_t position, const std::string&,
                   const json::exception&) {
    return Fail(
        absl::StrCat("header is not valid JSON at byte ", position + 8));
  }

 private:
  enum class Place { kStart, kHeader, kMetadata, kTensor, kArray, kEnd };
  enum class Field { kDType = 1, kShape = 2, kOffsets = 4 };
  static constexpr int kAllFields = 7;

  bool BeginField(Field field) {
    if (seen_ & static_cast<int>(field)) return FailTensor("duplicate field");
    seen_ |= static_cast<int>(field);
    field_ = field;
    return true;
  }
  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }
  bool FailTensor(absl::string_view message) {
    if (place_ == Place::kStart) return Fail("header is not a JSON object");
    return Fail(absl::StrCat("tensor ", Quoted(name_), ": ", message));
  }

  Place place_ = Place::kStart;
  Field field_ = Field::kDType;
  int seen_ = 0;
  int num_offsets_ = 0;
  std::string name_;
  HeaderEntry entry_;
  std::set<std::string> names_;
  std::vector<HeaderEntry> entries_;
  std::string error_;
};

// The product of `shape`, times the element size, without overflow.
absl::StatusOr<int64_t> CheckedElements(const HeaderEntry& entry,
                                        absl::string_view where) {
  int64_t num_elements = 1;
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(num_elements, size, &num_elements)) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": shape ", ShapeString(entry.shape),
                       " has more elements than fit"));
    }
  }
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(num_elements, StoredDTypeSize(entry.dtype),
                             &num_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": shape ",
                                                   ShapeString(entry.shape),
                                                   " has more bytes than fit"));
  }
  if (entry.end < entry.begin ||
      entry.end - entry.begin != static_cast<uint64_t>(num_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": data_offsets [", entry.begin, ", ", entry.end,
        ") do not hold ", ShapeString(entry.shape), " elements of ",
        StoredDTypeName(entry.dtype), " (", num_bytes, " bytes)"));
  }
  return num_elements;
}

absl::StatusOr<std::vector<HeaderEntry>> ParseHeader(
    absl::Span<const uint8_t> header, const std::string& path) {
  HeaderHandler handler;
  const char* begin = reinterpret_cast<const char*>(header.data());
  const bool ok =
      nlohmann::json::sax_parse(begin, begin + header.size(), &handler);
  if (!ok || !handler.is_complete()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ",
        handler.error().empty() ? "header is not valid" : handler.error()));
  }
  return std::move(handler.entries());
}

}  // namespace

absl::Status ParseSafetensors(absl::Span<const uint8_t> file,
                              const std::string* path,
                              std::vector<StoredTensor>& tensors) {
  if (file.size() < 8) {
    return absl::DataLossError(absl::StrCat(
        *path, ": ", file.size(), " bytes, too short for a safetensors file"));
  }
  uint64_t header_size = 0;
  std::memcpy(&header_size, file.data(),
              8);  // Little endian, as all our hosts.
  if (header_size > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        *path, ": header of ", header_size, " bytes, more than the limit of ",
        kMaxHeaderBytes, " (not a safetensors file?)"));
  }
  if (header_size > file.size() - 8) {
    return absl::DataLossError(absl::StrCat(*path, ": truncated: header of ",
                                            header_size, " bytes, but only ",
                                            file.size() - 8, " bytes follow"));
  }
  QUIRE_ASSIGN_OR_RETURN(std::vector<HeaderEntry> entries,
                         ParseHeader(file.subspan(8, header_size), *path));
  const absl::Span<const uint8_t> data = file.subspan(8 + header_size);
  std::stable_sort(entries.begin(), entries.end(),
                   [](const HeaderEntry& a, const HeaderEntry& b) {
                     return std::pair(a.begin, a.end) <
                            std::pair(b.begin, b.end);
                   });
  std::vector<StoredTensor> parsed;
  parsed.reserve(entries.size());
  uint64_t covered = 0;
  for (HeaderEntry& entry : entries) {
    const std::string where =
        absl::StrCat(*path, ": tensor ", Quoted(entry.name));
    QUIRE_ASSIGN_OR_RETURN(const int64_t num_elements,
                           CheckedElements(entry, where));
    if (entry.begin != covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": data begins at ", entry.begin, ", ",
          entry.begin < covered ? "inside the tensor before it"
                                : "leaving a hole after the tensor before it",
          " (which ends at ", covered, ")"));
    }
    if (entry.end > data.size()) {
      return absl::DataLossError(
          absl::StrCat(where, ": truncated: data ends at ", entry.end,
                       ", but the file holds ", data.size(), " bytes of data"));
    }
    covered = entry.end;
    parsed.push_back({std::move(entry.name), entry.dtype,
                      std::move(entry.shape), num_elements,
                      data.subspan(entry.begin, entry.end - entry.begin),
                      path});
  }
  if (covered != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(*path, ": ", data.size() - covered,
                     " bytes after the last tensor belong to none"));
  }
  std::move(parsed.begin(), parsed.end(), std::back_inserter(tensors));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(
    const std::string& directory) {
  auto checkpoint = std::shared_ptr<Checkpoint>(new Checkpoint);
  const std::string single = absl::StrCat(directory, "/model.safetensors");
  absl::Status status = checkpoint->AddFile(single);
  if (status.ok()) {
    checkpoint->path_ = single;
    return checkpoint;
  }
  if (!absl::IsNotFound(status)) return status;
  status = checkpoint->OpenIndex(directory, "model.safetensors.index.json");
  if (status.ok()) return checkpoint;
  if (!checkpoint->path_.empty()) return status;
  const std::string pytorch = absl::StrCat(directory, "/pytorch_model.bin");
  status = checkpoint->AddFile(pytorch);
  if (status.ok()) {
    checkpoint->path_ = pytorch;
    return checkpoint;
  }
  if (!absl::IsNotFound(status)) return status;
  status = checkpoint->OpenIndex(directory, "pytorch_model.bin.index.json");
  if (status.ok()) return checkpoint;
  if (!checkpoint->path_.empty()) return status;
  return absl::NotFoundError(absl::StrCat(
      directory, ": holds none of model.safetensors, pytorch_model.bin and ",
      "their indices *.index.json"));
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::FromTensors(
    std::string path, std::vector<StoredTensor> tensors,
    std::shared_ptr<const void> owner,
    std::vector<std::shared_ptr<const MappedFile>> files) {
  auto checkpoint = std::shared_ptr<Checkpoint>(new Checkpoint);
  checkpoint->path_ = std::move(path);
  checkpoint->owner_ = std::move(owner);
  checkpoint->files_ = std::move(files);
  QUIRE_RETURN_IF_ERROR(checkpoint->AddTensors(std::move(tensors)));
  return checkpoint;
}

absl::Status Checkpoint::AddFile(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file,
                         MappedFile::Open(path));
  files_.push_back(file);
  std::vector<StoredTensor> tensors;
  QUIRE_RETURN_IF_ERROR(
      absl::EndsWith(path, ".bin")
          ? ParsePytorchFile(file->bytes(), &file->path(), tensors)
          : ParseSafetensors(file->bytes(), &file->path(), tensors));
  return AddTensors(std::move(tensors));
}

absl::Status Checkpoint::AddTensors(std::vector<StoredTensor> tensors) {
  for (StoredTensor& tensor : tensors) {
    num_bytes_ += tensor.data.size();
    const std::string name = tensor.name;
    const std::string& path = *tensor.path;
    const auto [it, is_new] = tensors_.emplace(name, std::move(tensor));
    if (!is_new) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", Quoted(name), " is also in ", *it->second.path));
    }
  }
  return absl::OkStatus();
}

// Leaves path_ empty if there is no such file.
absl::Status Checkpoint::OpenIndex(const std::string& directory,
                                   const char* name) {
  const std::string index_path = absl::StrCat(directory, "/", name);
  absl::StatusOr<std::string> text = ReadTextFile(index_path, kMaxIndexBytes);
  if (absl::IsNotFound(text.status())) return text.status();
  path_ = index_path;
  QUIRE_RETURN_IF_ERROR(text.status());
  const nlohmann::json index = nlohmann::json::parse(*text, nullptr, false);
  const auto map = index.find("weight_map");
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": not a JSON object with a weight_map object"));
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": weight_map: tensor ", Quoted(tensor), ": not a string"));
    }
    const std::string& name = shard.get_ref<const std::string&>();
    // A plain file name: nothing outside the model's own directory is opened.
    if (name.empty() || name[0] == '.' ||
        name.find_first_of(absl::string_view("/\\\0", 3).data(), 0, 3) !=
            std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": weight_map: tensor ", Quoted(tensor),
                       ": not a plain file name: ", Quoted(name)));
    }
    shards.insert(name);
    if (shards.size() > kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat(
          path_, ": weight_map names more than ", kMaxShards, " files"));
    }
  }
  for (const std::string& shard : shards) {
    QUIRE_RETURN_IF_ERROR(AddFile(absl::StrCat(directory, "/", shard)));
  }
  for (const auto& [name, shard] : map->items()) {
    const StoredTensor* tensor = Find(name);
    const std::string expected =
        absl::StrCat(directory, "/", shard.get_ref<const std::string&>());
    if (tensor == nullptr || *tensor->path != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": weight_map: tensor ", Quoted(name),
                       " is not in ", expected));
    }
  }
  return absl::OkStatus();
}

const StoredTensor* Checkpoint::Find(absl::string_view name) const {
  const auto it = tensors_.find(std::string(name));
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace quire
