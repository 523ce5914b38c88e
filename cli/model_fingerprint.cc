#include "cli/model_fingerprint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "xxhash.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// A page: what a read from a disk costs at least.
constexpr int64_t kSampleBytes = 4096;
constexpr int64_t kEndBytes = int64_t{64} << 10;
constexpr int64_t kReadBytes = int64_t{1} << 20;

bool IsWeights(const fs::path& file) {
  const std::string extension = file.extension();
  return extension == ".safetensors" || extension == ".bin" ||
         extension == ".gguf";
}

std::vector<fs::path> FilesOf(const std::string& path) {
  std::vector<fs::path> files;
  std::error_code error;
  const bool is_directory = fs::is_directory(path, error);
  const fs::path directory =
      is_directory ? fs::path(path) : fs::path(path).parent_path();
  const std::string name = fs::path(path).filename();
  // NAME-00001-of-00003.gguf: the others belong to it.
  constexpr size_t kPartLength = 19;  // "00001-of-00003.gguf"
  const bool has_parts = !is_directory && absl::EndsWith(name, ".gguf") &&
                         name.size() > kPartLength &&
                         name.substr(name.size() - 14, 4) == "-of-";
  if (!is_directory && !has_parts) return {path};
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const fs::path& file = entry.path();
    if (!fs::is_regular_file(file, error)) continue;
    const std::string other = file.filename();
    const size_t part_at = name.size() - std::min(name.size(), kPartLength);
    const bool is_part = has_parts && other.size() == name.size() &&
                         other.compare(0, part_at, name, 0, part_at) == 0 &&
                         other.compare(part_at + 5, std::string::npos, name,
                                       part_at + 5, std::string::npos) == 0;
    const bool is_of_directory =
        is_directory && (IsWeights(file) || file.extension() == ".json");
    if (is_part || is_of_directory) files.push_back(file);
  }
  // As the loader has it: the other format is a copy that nobody reads.
  const auto is_safetensors = [](const fs::path& file) {
    return file.extension() == ".safetensors";
  };
  if (std::any_of(files.begin(), files.end(), is_safetensors)) {
    std::erase_if(
        files, [](const fs::path& file) { return file.extension() == ".bin"; });
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The hash of a file, of which one page in `stride` bytes counts.
class FileHash {
 public:
  FileHash() : state_(XXH3_createState(), &XXH3_freeState) {}

  std::string Of(const fs::path& path, int64_t num_bytes, int64_t stride) {
    XXH3_64bits_reset(state_.get());
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0) {
      if (stride <= kSampleBytes) {
        Add(0, num_bytes);
      } else {
        // What lies between the samples would be read ahead.
        posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
        const int64_t tail = std::max<int64_t>(0, num_bytes - kEndBytes);
        Add(0, std::min(kEndBytes, num_bytes));
        for (int64_t at = stride; at < tail; at += stride) {
          Add(at, kSampleBytes);
        }
        Add(tail, num_bytes - tail);
      }
      close(fd_);
    }
    return absl::StrFormat("%016x", XXH3_64bits_digest(state_.get()));
  }

 private:
  void Add(int64_t at, int64_t num_bytes) {
    while (num_bytes > 0) {
      const ssize_t num_read =
          pread(fd_, buffer_.data(),
                std::min<int64_t>(num_bytes, buffer_.size()), at);
      if (num_read < 0 && errno == EINTR) continue;
      if (num_read <= 0) return;
      XXH3_64bits_update(state_.get(), buffer_.data(), num_read);
      at += num_read;
      num_bytes -= num_read;
    }
  }

  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
  std::string buffer_ = std::string(kReadBytes, '\0');
  int fd_ = -1;
};

}  // namespace

int64_t SampleStride(int64_t num_weight_bytes) {
  constexpr int64_t kNumSamples = kFingerprintBytes / kSampleBytes;
  const int64_t stride = (num_weight_bytes + kNumSamples - 1) / kNumSamples;
  return std::max<int64_t>(1, (stride + kSampleBytes - 1) / kSampleBytes) *
         kSampleBytes;
}

std::vector<ModelFile> FingerprintModel(const std::string& path) {
  std::vector<ModelFile> files;
  std::vector<bool> is_sampled;
  const std::vector<fs::path> paths = FilesOf(path);
  int64_t num_weight_bytes = 0;
  for (const fs::path& file : paths) {
    std::error_code error;
    const auto size = fs::file_size(file, error);
    const int64_t num_bytes = error ? 0 : static_cast<int64_t>(size);
    files.push_back({file.filename(), num_bytes, ""});
    is_sampled.push_back(IsWeights(file) || num_bytes > kFingerprintBytes);
    if (is_sampled.back()) num_weight_bytes += num_bytes;
  }
  const int64_t stride = SampleStride(num_weight_bytes);
  FileHash hash;
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].hash = hash.Of(paths[i], files[i].num_bytes,
                            is_sampled[i] ? stride : kSampleBytes);
  }
  return files;
}

}  // namespace quire
