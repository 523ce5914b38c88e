"""Measures a checkpoint or an exported model on held-out prompts, in PyTorch.

Runs the same chats with the same checks as evaluate.py, without a server. Weights
are rounded to bfloat16, as in the exported files, and the arithmetic is in float32.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import chat
import scoring
import settings
import tasks
from decode import greedy
from model import Llama, hugging_face_names

BATCH = 32


def load_model(path: Path, shape: dict) -> Llama:
    """A model from a training checkpoint (.pt) or from an exported folder."""
    model = Llama(shape)
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)["model"]
    else:
        stored = load_file(path / "model.safetensors")
        state = {ours: stored[theirs] for ours, theirs in hugging_face_names(shape).items()}
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in state.items()})
    return model.eval()


def hold_all(model: Llama, tokenizer: Tokenizer, chats: list) -> None:
    """Holds all chats to their ends, one turn of many chats at a time."""
    stops = {tokenizer.token_to_id(chat.END), tokenizer.token_to_id(chat.END_OF_TEXT)}
    while waiting := [one for one in chats if not one.finished]:
        prompts = [tokenizer.encode(chat.prompt(one.messages()), add_special_tokens=False).ids for one in waiting]
        order = sorted(range(len(waiting)), key=lambda i: len(prompts[i]))
        for i in range(0, len(order), BATCH):
            group = order[i:i + BATCH]
            replies = greedy(model, [prompts[j] for j in group], stops, scoring.MAX_REPLY_TOKENS)
            for j, reply in zip(group, replies):
                waiting[j].take(tokenizer.decode(reply))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=settings.DEMO_DIR, help="checkpoint or exported folder")
    parser.add_argument("--draft", action="store_true", help="the model has the shape of the draft model")
    parser.add_argument("--limit", type=int, default=50, help="chats per task")
    parser.add_argument("--task", action="append", choices=list(tasks.TASKS), help="only this task (may be repeated)")
    parser.add_argument("--seed", type=int, default=2024, help="another seed draws other held-out chats")
    parser.add_argument("--min", type=float, default=0.95, help="lowest total share that passes")
    parser.add_argument("--show-failures", type=int, default=0, metavar="N", help="print up to N failures per task")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, settings.DRAFT_SHAPE if options.draft else settings.DEMO_SHAPE)
    tokenizer = Tokenizer.from_file(str(settings.DEMO_DIR / "tokenizer.json"))
    chats = scoring.held_out_chats(options.limit, options.task, options.seed)
    hold_all(model, tokenizer, chats)
    return 0 if scoring.report(chats, options.show_failures) >= options.min else 1


if __name__ == "__main__":
    sys.exit(main())
