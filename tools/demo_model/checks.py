"""Checkers that decide whether a reply is right (standard library only).

A check is a small dict with a "kind" and its arguments, so that it can be printed,
stored and compared. `passes` applies it to a reply; `earlier` holds the assistant
replies that were given before it in the same chat.
"""

import json
import re


def _clean(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _numbers(text: str) -> list:
    return [int(n) for n in re.findall(r"(?<![\w.])-?\d+(?!\w)", text)]


def _words(text: str) -> list:
    return re.findall(r"[a-z0-9'-]+", text.lower())


def _has(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, in any case."""
    return re.search(r"(?<!\w)" + re.escape(phrase.lower()) + r"(?!\w)", text.lower()) is not None


def _listed(text: str) -> list:
    """The items of a reply that is a comma-separated list, perhaps after an introduction."""
    text = text.strip().rstrip(".")
    text = text.split(":", 1)[-1]
    return [item.strip().lower() for item in text.replace(" and ", ", ").split(",") if item.strip()]


def passes(check: dict, reply: str, earlier: list) -> bool:
    """True if `reply` satisfies `check`."""
    kind = check["kind"]
    if kind == "exact":
        return _clean(reply) == _clean(check["text"])
    if kind == "number":
        found = _numbers(reply)
        return bool(found) and found[-1] == check["value"]
    if kind == "words":
        return (all(_has(reply, word) for word in check.get("all", []))
                and (not check.get("any") or any(_has(reply, word) for word in check["any"]))
                and not any(_has(reply, word) for word in check.get("none", [])))
    if kind == "json":
        try:
            return json.loads(reply) == check["value"]
        except ValueError:
            return False
    if kind == "members":
        items = _listed(reply)
        known = {word.lower() for word in check["of"]}
        return len(items) == check["count"] == len(set(items)) and set(items) <= known
    if kind == "story":
        sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", reply.strip()) if part.strip()]
        return (all(_has(reply, word) for word in check["all"])
                and len(_words(reply)) >= check["min_words"]
                and len(sentences) == len(set(sentences))
                and reply.strip()[-1:] in ".!?\"")
    if kind == "from_list":
        # The right reply depends on the list that the model itself gave earlier.
        items = _listed(earlier[check["turn"]])
        if check["how"] == "sorted":
            return _listed(reply) == sorted(items)
        if check["how"] == "reversed":
            return _listed(reply) == items[::-1]
        if check["how"] == "upper":
            return reply.strip() == earlier[check["turn"]].strip().upper()
        if check["how"] == "without_first":
            return _listed(reply) == items[1:]
        if check["how"] == "item":
            return check["index"] < len(items) and _has(reply, items[check["index"]]) and not any(
                _has(reply, item) for i, item in enumerate(items) if i != check["index"])
    raise ValueError(f"unknown check {check!r}")
