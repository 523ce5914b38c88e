"""What all chat tasks share: samples, the register of tasks, the split (standard library only).

Each task is a function of a random generator that returns a `Sample`: one or more
user turns, the reply that the model learns for each, and a check that tells whether
some other reply would be right too. The same functions make the training data and
the held-out prompts: a hash of each sample's content (`key`) puts it on one side or
the other, so that no held-out content is ever trained on.
"""

import hashlib
import random
from dataclasses import dataclass

HELD_OUT_PERCENT = 6


@dataclass
class Turn:
    user: str
    reply: str
    check: dict


@dataclass
class Sample:
    task: str
    key: str
    turns: list
    system: str = ""
    mixable: bool = True  # may stand inside a longer chat about other things
    parts: tuple = ()  # keys of the smaller tasks inside; none of them may be held out in training


@dataclass
class Task:
    name: str
    weight: float
    make: object


TASKS = {}


def task(name: str, weight: float):
    """Registers a generator; `weight` is its share of the training samples."""
    def register(make):
        TASKS[name] = Task(name, weight, make)
        return make
    return register


def is_held_out(key: str) -> bool:
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def draw(name: str, rng: random.Random, held_out: bool) -> Sample:
    """A sample of the named task from the training side or the held-out side."""
    while True:
        sample = TASKS[name].make(rng)
        if is_held_out(sample.key) == held_out and (held_out or not any(map(is_held_out, sample.parts))):
            sample.task = name
            return sample


def one(key, user, reply, check=None, **more) -> Sample:
    """A sample of a single turn; without a check, the reply must match exactly."""
    return Sample("", str(key), [Turn(user, reply, check or exact(reply))], **more)


def exact(text: str) -> dict:
    return {"kind": "exact", "text": text}


def number(value: int) -> dict:
    return {"kind": "number", "value": value}


def has(*words, none=(), any_of=()) -> dict:
    return {"kind": "words", "all": list(words), "none": list(none), "any": list(any_of)}


def casual(rng, text: str) -> str:
    """Sometimes the prompt as people type it in a hurry, or with a few polite words."""
    roll = rng.random()
    if roll < 0.12:
        return text[0].lower() + text[1:].rstrip("?.!")
    if roll < 0.18:
        return text.rstrip("?.!")
    if roll < 0.26:
        return rng.choice(["Hi! ", "Hello. ", "Quick question: ", "Please help me. ", "Ok. ", "Tell me: "]) + text
    if roll < 0.29:
        return text + rng.choice([" Thanks!", " Thank you.", " Please."])
    return text


def comma(items) -> str:
    """The items in one line, as all list tasks show them."""
    return ", ".join(str(item) for item in items)
