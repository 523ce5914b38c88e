#!/usr/bin/env python3
"""Turns the chat page into a C++ header: its bytes and what its headers say.

The Content-Security-Policy names the page's one script and one style sheet by
their hashes, so that nothing else that might get into the page can run.
"""

import base64
import hashlib
import re
import sys

MAX_BYTES = 60 << 10
# Of a literal; compilers need not take longer ones.
PIECE = 8 << 10


def sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def only(page, tag):
    """The content of the page's one element `tag`."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    if len(found) != 1 or page.count(f"<{tag}") != 1:
        sys.exit(f"embed: the page must have one plain <{tag}>, not {len(found)}")
    return found[0]


def main():
    with open(sys.argv[1], encoding="utf-8", newline="") as file:
        page = file.read()
    size = len(page.encode())
    if size > MAX_BYTES:
        sys.exit(f"embed: the page has {size} bytes, more than {MAX_BYTES}")
    if re.search(r"""<[^>]*\s(on\w+|style)\s*=""", page.split("<script>")[0]):
        sys.exit("embed: the policy forbids inline handlers and styles")
    if ')page"' in page or "\r" in page:
        sys.exit('embed: the page must not contain `)page"` or CR')
    pieces = [page[i : i + PIECE] for i in range(0, len(page), PIECE)]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src 'sha256-{sha256(only(page, 'script'))}'",
            f"style-src 'sha256-{sha256(only(page, 'style'))}'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    etag = hashlib.sha256(page.encode()).hexdigest()[:32]
    literal = "\n".join(f'R"page({piece})page"' for piece in pieces)
    print(
        f"""// Made by embed.py.
#include "absl/strings/string_view.h"

namespace quire {{

// The array's last byte is the terminator.
constexpr char kChatPageText[] =
{literal};
constexpr absl::string_view kChatPage(kChatPageText, sizeof(kChatPageText) - 1);
constexpr char kChatPageEtag[] = "\\"{etag}\\"";
constexpr char kChatPagePolicy[] = "{policy}";

}}  // namespace quire"""
    )


if __name__ == "__main__":
    main()
