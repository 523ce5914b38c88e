// `quire chat`: a conversation in the terminal.
#ifndef QUIRE_CLI_CHAT_H_
#define QUIRE_CLI_CHAT_H_

#include "cli/options.h"

namespace quire {

// Reads messages from standard input, one a line, and streams the answers to
// standard output until the end of input. Returns the exit code.
int RunChat(const ChatOptions& options);

}  // namespace quire

#endif  // QUIRE_CLI_CHAT_H_
