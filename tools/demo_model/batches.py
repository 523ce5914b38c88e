"""Turns the flat token arrays into batches of whole chats, without mixing chats in attention."""

import numpy as np
import torch

import settings

ROUND_TO = 16  # chats are padded to a multiple of this
WINDOW = 8192  # how many chats are grouped by length at a time
LOOK_AHEAD = 48  # how many runs of chats are tried to fill a batch


class Batches:
    """An endless, repeatable stream of batches of a fixed number of tokens.

    The n-th batch of a stream depends only on the data, the seed and n's epoch, so a
    resumed run goes on with the same batches.
    """

    def __init__(self, folder, batch_tokens: int, seed: int, pad: int):
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.replies = np.load(folder / "replies.npy", mmap_mode="r")
        self.starts = np.load(folder / "starts.npy")
        self.batch_tokens, self.seed, self.pad = batch_tokens, seed, pad

    def _window_batches(self, chats, rng):
        """Groups the chats of one window into runs of equal padded length, and the runs into batches."""
        lengths = np.minimum(self.starts[chats + 1] - self.starts[chats], settings.MAX_POSITIONS)
        padded = -(-lengths // ROUND_TO) * ROUND_TO
        per_run = self.batch_tokens // 8
        runs = []
        for length in np.unique(padded):
            members = chats[padded == length]
            count = max(1, per_run // int(length))
            runs += [(members[i:i + count], int(length)) for i in range(0, len(members), count)]
        rng.shuffle(runs)
        while len(runs) > LOOK_AHEAD:
            batch, room = [], self.batch_tokens
            for run in runs[:LOOK_AHEAD]:
                if len(run[0]) * run[1] <= room:
                    batch.append(run)
                    room -= len(run[0]) * run[1]
            taken = set(map(id, batch))
            runs = [run for run in runs[:LOOK_AHEAD] if id(run) not in taken] + runs[LOOK_AHEAD:]
            yield batch
        # The few runs left over at the end of a window are dropped.

    def _build(self, batch):
        """Ids, targets, which targets are learnt, positions and attention blocks of one batch."""
        size = self.batch_tokens
        ids = np.full(size, self.pad, dtype=np.int64)
        learn = np.zeros(size, dtype=bool)
        positions = np.zeros(size, dtype=np.int64)
        blocks, at = [], 0
        for members, length in batch:
            blocks.append((len(members), length))
            for chat in members:
                start, end = self.starts[chat], min(self.starts[chat + 1], self.starts[chat] + settings.MAX_POSITIONS)
                count = int(end - start)
                ids[at:at + count] = self.tokens[start:end]
                learn[at:at + count] = self.replies[start:end]
                positions[at:at + length] = np.arange(length)
                at += length
        if at < size:
            blocks.append((1, size - at))
            positions[at:] = np.arange(size - at) % settings.MAX_POSITIONS
        # The target of a token is the one after it in the row. Chats never begin with a reply,
        # so no target is the first token of another chat.
        targets, learn = np.roll(ids, -1), np.roll(learn, -1)
        return tuple(map(torch.from_numpy, (ids, targets, learn, positions))) + (blocks,)

    def stream(self, first: int = 0, stride: int = 1):
        """Every `stride`-th batch from number `first` on."""
        number, epoch = 0, 0
        while True:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(len(self.starts) - 1)
            for i in range(0, len(order), WINDOW):
                for batch in self._window_batches(order[i:i + WINDOW], rng):
                    if number >= first and (number - first) % stride == 0:
                        yield self._build(batch)
                    number += 1
            epoch += 1
