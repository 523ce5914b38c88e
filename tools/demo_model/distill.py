"""Trains the draft model to predict what the demo model would say.

The draft learns the demo model's whole distribution for each reply token, which is
what decides how many of its proposals are accepted in speculative decoding. It has
two layers because copying from the prompt takes two: one to mark each token with the
one before it, one to look up where the current token stood.
"""

import torch
from torch.nn import functional as F

import settings
from model import Llama
from train import arguments, run


def make_draft(options):
    teacher = Llama(settings.DEMO_SHAPE)
    teacher.load_state_dict(torch.load(settings.WORK_DIR / "demo.pt", weights_only=True)["model"])
    teacher.requires_grad_(False)
    if not options.no_compile:
        teacher.compile_parts()

    def divergence(model, ids, targets, learn, positions, blocks):
        """Mean Kullback-Leibler divergence from the demo model over the reply tokens."""
        chosen = learn.nonzero().squeeze(1)
        with torch.no_grad():
            wanted = teacher.logits(teacher.hidden_states(ids, positions, blocks)[chosen]).float().log_softmax(-1)
        found = model.logits(model.hidden_states(ids, positions, blocks)[chosen]).float().log_softmax(-1)
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True)

    return Llama(settings.DRAFT_SHAPE), divergence


if __name__ == "__main__":
    run(make_draft, settings.WORK_DIR / "draft.pt", arguments(__doc__.splitlines()[0], steps=1500), seed=1)
