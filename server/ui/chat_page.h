// The built-in chat page: one HTML file in the binary, of which nothing is
// read from disk and nothing is loaded from elsewhere.
#ifndef QUIRE_SERVER_UI_CHAT_PAGE_H_
#define QUIRE_SERVER_UI_CHAT_PAGE_H_

#include "server/http_server.h"

namespace quire {

// Adds `GET /` (and with it HEAD), which needs no key: the page asks for one
// itself if the API wants it. Answers 304 to the current ETag. Call before
// `http` is started; keeps no reference to it.
void AddChatPage(HttpServer* http);

}  // namespace quire

#endif  // QUIRE_SERVER_UI_CHAT_PAGE_H_
