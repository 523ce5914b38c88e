#include "server/ui/chat_page.h"

#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/ui/chat_page_data.h"

namespace quire {
namespace {

// If-None-Match: a list of tags, weak ones included, or "*" (RFC 9110 13.1.2).
bool HasCurrentPage(absl::string_view if_none_match) {
  for (absl::string_view tag : absl::StrSplit(if_none_match, ',')) {
    tag = absl::StripAsciiWhitespace(tag);
    if (tag == "*") return true;
    absl::ConsumePrefix(&tag, "W/");
    if (tag == kChatPageEtag) return true;
  }
  return false;
}

}  // namespace

void AddChatPage(HttpServer* http) {
  http->AddRoute(
      "GET", "/", RouteAccess::kPublic,
      [](const HttpRequest& request, std::shared_ptr<HttpResponder> responder) {
        const HttpHeaders headers = {
            {"ETag", kChatPageEtag},
            // Kept by the browser, asked for each time: a new version of the
            // server shows at once, and an unchanged page costs no body.
            {"Cache-Control", "no-cache"},
            {"Content-Security-Policy", kChatPagePolicy},
            {"X-Content-Type-Options", "nosniff"},
            {"Referrer-Policy", "no-referrer"},
            {"Cross-Origin-Opener-Policy", "same-origin"},
            {"Cross-Origin-Resource-Policy", "same-origin"},
        };
        if (HasCurrentPage(request.Header("if-none-match"))) {
          responder->Send(304, "", "", headers);
        } else {
          responder->Send(200, "text/html; charset=utf-8",
                          std::string(kChatPage), headers);
        }
      });
}

}  // namespace quire
