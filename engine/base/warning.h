// Warnings of parts far below the log: a drafter that fails while it serves, a
// graph that cannot be captured.
#ifndef QUIRE_ENGINE_BASE_WARNING_H_
#define QUIRE_ENGINE_BASE_WARNING_H_

#include <functional>
#include <string>

#include "absl/strings/string_view.h"

namespace quire {

using WarningHandler = std::function<void(const std::string& text)>;

// Of the process, as the memory reserve: who warns is made by factories of
// factories, and says something once in a life. Without a handler, or with
// null, warnings are lines on stderr. Returns when no call of the handler
// before is under way any more. Thread-safe.
void SetWarningHandler(WarningHandler handler);

// Thread-safe. The handler must not warn.
void Warn(absl::string_view text);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_WARNING_H_
