"""Measures the demo model on held-out prompts through an OpenAI-compatible HTTP API.

Needs nothing but the standard library. Chats of several turns are held with the
model's own replies, and count as right only if every reply is right.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import scoring
import tasks


def first_model(url: str, timeout: float) -> str:
    """The name of the first model that the server lists."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=timeout) as response:
        return json.load(response)["data"][0]["id"]


def ask(url: str, model: str, messages: list, timeout: float) -> str:
    """One greedy chat completion."""
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": scoring.MAX_REPLY_TOKENS}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)["choices"][0]["message"]["content"] or ""


def hold(one: scoring.Chat, options) -> scoring.Chat:
    """Holds a chat to its end or to its first wrong reply."""
    while not one.finished:
        one.take(ask(options.url, options.model, one.messages(), options.timeout))
    return one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="model name to send; without it, the first that the server lists")
    parser.add_argument("--limit", type=int, default=50, help="chats per task")
    parser.add_argument("--seed", type=int, default=2024, help="which held-out chats are drawn")
    parser.add_argument("--task", action="append", choices=list(tasks.TASKS), help="only this task (may be repeated)")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--min", type=float, default=0.95, help="lowest total share that passes")
    parser.add_argument("--timeout", type=float, default=120, help="seconds per request")
    parser.add_argument("--show-failures", type=int, default=0, metavar="N", help="print up to N failures per task")
    options = parser.parse_args()
    options.url = options.url.rstrip("/")
    try:
        if not options.model:
            options.model = first_model(options.url, options.timeout)
        with ThreadPoolExecutor(options.concurrency) as pool:
            chats = list(pool.map(lambda one: hold(one, options), scoring.held_out_chats(options.limit, options.task, options.seed)))
    except (urllib.error.URLError, OSError, KeyError, ValueError) as error:
        print(f"the server at {options.url} did not answer as expected: {error!r}", file=sys.stderr)
        return 2
    share = scoring.report(chats, options.show_failures)
    if share < options.min:
        print(f"below the required {options.min:.1%}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
