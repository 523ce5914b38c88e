"""Generates the training chats, tokenizes them and writes them as flat numpy arrays.

Three files come out: `tokens.npy` (the ids of all chats, one after the other),
`replies.npy` (1 where the token belongs to an assistant reply and is to be learnt)
and `starts.npy` (where each chat begins). The trainer maps them into memory.
"""

import argparse
import multiprocessing
import random

import numpy as np
from tokenizers import Tokenizer

import chat
import settings
import tasks

CHATS_PER_JOB = 5_000


def make_job(seed: int):
    """The chats of one job, encoded; they depend on nothing but its seed."""
    tokenizer = Tokenizer.from_file(str(settings.DEMO_DIR / "tokenizer.json"))
    rng = random.Random(f"train {seed}")
    names = list(tasks.TASKS)
    weights = [tasks.TASKS[name].weight for name in names]
    pieces, flags, first = [], [], []
    for _ in range(CHATS_PER_JOB):
        messages = tasks.conversation(rng, names, weights)
        first.append(len(pieces))
        for text, is_reply in chat.segments(messages):
            pieces.append(text)
            flags.append(is_reply)
    encoded = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    lengths = np.array([len(e.ids) for e in encoded])
    tokens = np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded])
    replies = np.repeat(np.array(flags, dtype=np.uint8), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])[first]
    return tokens, replies, starts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=45, help=f"how many times {CHATS_PER_JOB} chats to make")
    parser.add_argument("--seed", type=int, default=0, help="number of the first job; another value makes other chats")
    parser.add_argument("--out", default="data", help="name of the folder under the work directory")
    parser.add_argument("--processes", type=int, default=4)
    options = parser.parse_args()
    folder = settings.WORK_DIR / options.out
    folder.mkdir(parents=True, exist_ok=True)
    tokens, replies, starts, total = [], [], [], 0
    seeds = range(options.seed, options.seed + options.jobs)
    with multiprocessing.Pool(options.processes) as pool:
        for job_tokens, job_replies, job_starts in pool.imap(make_job, seeds):
            tokens.append(job_tokens)
            replies.append(job_replies)
            starts.append(job_starts + total)
            total += len(job_tokens)
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "replies.npy", np.concatenate(replies))
    np.save(folder / "starts.npy", np.concatenate(starts + [[total]]).astype(np.int64))
    print(f"{total} tokens in {sum(map(len, starts))} chats, {sum(int(r.sum()) for r in replies)} of them in replies")


if __name__ == "__main__":
    main()
