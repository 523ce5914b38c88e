#!/usr/bin/env python3
"""Writes a workload in which answers repeat their prompts: copies and edits.

With `--kind other` one in which they do not, with `--kind all` every task. The demo model's own held-out tasks (tools/demo_model), as a data set for
`quire bench throughput --dataset-name custom`. Needs only the standard library.
"""
import argparse
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools" / "demo_model"))

import tasks  # noqa: E402

COPIES = ["copy", "replace_word", "edit_text"]
OTHERS = ["story", "about_itself", "facts", "write_code", "word_problem"]


def prompt_of(user):
    # The demo model's chat template; the tokenizer adds <|bos|>.
    return f"<|im_start|>user\n{user.strip()}<|im_end|>\n<|im_start|>assistant\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--kind", choices=["copy", "other", "all"], default="copy")
    arguments = parser.parse_args()
    names = {"copy": COPIES, "other": OTHERS, "all": list(tasks.TASKS)}[arguments.kind]
    samples = []
    for name in names:
        # The longest ones: an answer of a few tokens measures prefill.
        drawn = tasks.held_out_samples(name, 6 * arguments.count // len(names))
        drawn.sort(key=lambda sample: -len(sample.turns[0].reply))
        samples += drawn[: arguments.count // len(names)]
    random.Random(1).shuffle(samples)
    with arguments.output.open("w") as output:
        for sample in samples:
            turn = sample.turns[0]
            # At least three characters a token: the end is not run past.
            line = {"prompt": prompt_of(turn.user), "output_tokens": max(8, len(turn.reply) // 3)}
            output.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
