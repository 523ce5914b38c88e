// The files in a zip archive that are stored without compression, as
// PyTorch writes them: views of the archive, nothing is copied.
//
// PKWARE, APPNOTE.TXT 6.3.10: local headers (4.3.7), central directory (4.3.12)
// and its ends (4.3.14 to 4.3.16), zip64 extra field (4.5.3). The central
// directory decides; a local header must agree with it where it says the same.
//
// The archive is untrusted: everything is checked to lie inside it, and no two
// files may overlap or have one name.
#ifndef QUIRE_ENGINE_WEIGHTS_ZIP_ARCHIVE_H_
#define QUIRE_ENGINE_WEIGHTS_ZIP_ARCHIVE_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace quire {

using ZipEntries =
    std::map<std::string, absl::Span<const uint8_t>, std::less<>>;

// By name. `path` names the archive in messages. INVALID_ARGUMENT if it is
// malformed, or a file in it is compressed or encrypted; DATA_LOSS if it is cut
// off.
absl::StatusOr<ZipEntries> ParseZip(absl::Span<const uint8_t> archive,
                                    const std::string& path);

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_ZIP_ARCHIVE_H_
