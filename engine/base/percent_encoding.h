// Percent-encoding of URIs (RFC 3986, section 2.1).
#ifndef QUIRE_ENGINE_BASE_PERCENT_ENCODING_H_
#define QUIRE_ENGINE_BASE_PERCENT_ENCODING_H_

#include <string>

#include "absl/strings/string_view.h"

namespace quire {

// `text` with the byte in place of each "%" that two hexadecimal digits follow;
// any other "%" stays. The result may hold any byte.
std::string PercentDecoded(absl::string_view text);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_PERCENT_ENCODING_H_
