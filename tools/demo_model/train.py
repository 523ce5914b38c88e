"""Trains the demo model on the generated chats.

Only the assistant replies are learnt. The learning rate warms up, stays constant and
falls to zero over the last part of the run, so a run can be stopped, lengthened or
shortened with --steps before the fall begins. Each batch is shared by single-threaded
processes that average their gradients: on models this small that is faster than
threads, above all on a machine that has other work to do. Checkpoints hold everything a run
needs to go on as if it had not stopped; the script continues from one by itself.
"""

import argparse
import os
import tempfile
import time

import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F

import settings
from batches import Batches
from model import Llama
from optimizer import make_optimizers

PAD = 0  # the id of <|endoftext|>


def rate_factor(step: int, steps: int, warm_up: int, fall: float) -> float:
    """Share of the full learning rate at a step: warm-up, constant, linear fall to zero."""
    start_of_fall = steps * (1 - fall)
    if step < warm_up:
        return (step + 1) / warm_up
    return min(1.0, max(0.0, (steps - step) / (steps - start_of_fall)))


def set_rates(optimizers, factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * factor


def save_checkpoint(path, model, optimizers, step: int) -> None:
    """Writes a new file and renames it, so that an interrupted write loses nothing."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
             "random": torch.get_rng_state(), "step": step}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path, model, optimizers) -> int:
    """Restores the run from `path` if there is one; returns the number of finished steps."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["random"])
    return state["step"]


def arguments(description: str, steps: int) -> argparse.Namespace:
    """The options that training and distillation share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--data", default="data", help="folder of the tokenized chats under the work directory")
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--other-rate", type=float, default=0.003)
    parser.add_argument("--fall", type=float, default=0.45, help="share of the run in which the rate falls")
    parser.add_argument("--processes", type=int, default=4, help="processes that share each batch, one core each")
    parser.add_argument("--batch-tokens", type=int, default=12288, help="tokens per step, over all processes")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def average_gradients(parameters, processes: int) -> None:
    """Replaces the gradients by their mean over all processes."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= processes
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad.copy_(part.view_as(p))


def train_process(rank: int, options, make, path, seed: int, meeting_point: str) -> None:
    """One of the training processes; all hold the same weights and take different chats."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=options.processes)
    torch.manual_seed(seed)
    model, loss_of = make(options)
    optimizers = make_optimizers(model, options.matrix_rate, options.other_rate)
    done = load_checkpoint(path, model, optimizers)
    if not options.no_compile:
        model.compile_parts()
    parameters = list(model.parameters())
    say = print if rank == 0 else lambda *_, **__: None
    say(f"{sum(p.numel() for p in parameters)} parameters, {done} steps done", flush=True)

    share = options.batch_tokens // options.processes
    batches = Batches(settings.WORK_DIR / options.data, share, seed=seed, pad=PAD)
    stream = batches.stream(first=done * options.processes + rank, stride=options.processes)
    began, total = time.time(), 0.0
    for step in range(done, options.steps):
        batch = next(stream)
        set_rates(optimizers, rate_factor(step, options.steps, warm_up=100, fall=options.fall))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, *batch)
        loss.backward()
        average_gradients(parameters, options.processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % 20 == 0:
            pace = (time.time() - began) / (step + 1 - done)
            say(f"step {step + 1}: loss {total / 20:.4f}, {pace:.3f} s per step", flush=True)
            total = 0.0
        if rank == 0 and ((step + 1) % options.save_every == 0 or step + 1 == options.steps):
            save_checkpoint(path, model, optimizers, step + 1)
    distributed.destroy_process_group()


def run(make, path, options, seed: int) -> None:
    """Trains what `make` returns, a model and the function for its loss on a batch."""
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{folder}/meeting_point"
        multiprocessing.spawn(train_process, (options, make, path, seed, meeting_point), nprocs=options.processes)


def reply_loss(model, ids, targets, learn, positions, blocks):
    """Mean cross-entropy of the reply tokens; logits are made for those alone."""
    chosen = learn.nonzero().squeeze(1)
    hidden = model.hidden_states(ids, positions, blocks)[chosen]
    return F.cross_entropy(model.logits(hidden).float(), targets[chosen])


def make_demo(_options):
    return Llama(settings.DEMO_SHAPE), reply_loss


if __name__ == "__main__":
    run(make_demo, settings.WORK_DIR / "demo.pt", arguments(__doc__.splitlines()[0], steps=4300), seed=0)
