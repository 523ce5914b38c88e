// What tells two copies of a model's files apart without reading all of them.
#ifndef QUIRE_CLI_MODEL_FINGERPRINT_H_
#define QUIRE_CLI_MODEL_FINGERPRINT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace quire {

struct ModelFile {
  std::string name;  // Without its directory.
  int64_t num_bytes = 0;
  std::string hash;  // 16 hexadecimal digits.

  friend bool operator==(const ModelFile&, const ModelFile&) = default;
};

// Of a model that is larger than this, so many bytes are read.
inline constexpr int64_t kFingerprintBytes = int64_t{64} << 20;

// The files of a model (a directory, or one file and its other parts), by name:
// what configures it and what holds its weights. Of a model of up to
// kFingerprintBytes every byte counts; of a larger one every byte of the files
// that are no weights, the first and last 64 KiB of each file of weights, and
// 4 KiB in every SampleStride(bytes of weights): whatever has been changed over
// that length is noticed, a few bytes may be not. All ranks read the same
// places, so that what they find can be compared, though each loads other parts
// of the weights. What cannot be read is hashed as far as it can.
std::vector<ModelFile> FingerprintModel(const std::string& path);

// Bytes between the beginnings of two samples.
int64_t SampleStride(int64_t num_weight_bytes);

}  // namespace quire

#endif  // QUIRE_CLI_MODEL_FINGERPRINT_H_
