#!/usr/bin/env python3
"""Takes the README's picture of the chat page.

Needs the built program, and the packages of tools/setup.sh. From the root:

    .venv/e2e/bin/python tools/screenshot.py
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from browser import Browser  # noqa: E402
from conftest import Server  # noqa: E402

TARGET = ROOT / "server" / "ui" / "screenshot.png"
MAX_BYTES = 200 << 10
QUESTIONS = (
    "Hello! Who are you?",
    "What is 7 + 5?",
    "Tell me a short story about a fox.",
)


def main():
    server, browser = Server(), Browser()
    try:
        page = browser.new_page(width=1000, height=720)
        page.open(server.url + "/")
        page.wait("document.querySelector('#model').options.length > 0")
        page.click("#settings-button")
        page.fill("#temperature", "0")
        page.click("#settings-button")
        for number, question in enumerate(QUESTIONS, 1):
            page.click("#draft")
            page.type(question)
            page.press("Enter")
            page.wait(f"document.querySelectorAll('.assistant .stats').length === {number}")
        page.screenshot(TARGET)
    finally:
        browser.close()
        server.stop()
    size = TARGET.stat().st_size
    print(f"{TARGET.relative_to(ROOT)}: {size} bytes")
    if size > MAX_BYTES:
        sys.exit(f"more than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
