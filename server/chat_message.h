// One message of a chat request, as templates want it.
#ifndef QUIRE_SERVER_CHAT_MESSAGE_H_
#define QUIRE_SERVER_CHAT_MESSAGE_H_

#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace quire {

// Checks a message and makes its content a string (text parts joined by
// newlines), the arguments of its tool calls objects, and the role "developer"
// "system". INVALID_ARGUMENT naming the parameter, whose name begins with
// `parameter` ("messages[3]").
absl::Status NormalizeMessage(const std::string& parameter,
                              nlohmann::ordered_json& message);

}  // namespace quire

#endif  // QUIRE_SERVER_CHAT_MESSAGE_H_
