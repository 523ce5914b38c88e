"""Greedy decoding of many prompts at once in PyTorch, for evaluation during training."""

import torch
from torch.nn import functional as F

import settings


@torch.inference_mode()
def greedy(model, prompts: list, stops: set, max_new: int) -> list:
    """The greedy continuation of each prompt (lists of ids), without the stop token.

    Prompts are padded on the left; padding is masked and positions count from the
    first real token, so a prompt's reply does not depend on its neighbours.
    """
    width = max(map(len, prompts))
    missing = torch.tensor([width - len(p) for p in prompts])
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    room = min(width + max_new, settings.MAX_POSITIONS)
    caches = [[torch.zeros(len(prompts), layer.heads, room, settings.HEAD_DIM) for _ in "kv"] for layer in model.layers]
    slots = torch.arange(room)
    replies = [[] for _ in prompts]
    running = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    begin, end = 0, width
    while True:
        rows = len(running)
        positions = (slots[begin:end] - missing[:, None]).clamp(min=0)
        mask = (slots[:end] >= missing[:, None])[:, None] & (slots[:end] <= slots[begin:end, None])
        mask |= slots[:end] == slots[begin:end, None]  # padding sees itself, to keep its softmax finite
        x = model.embed(ids).flatten(0, 1)
        cos, sin = (table[positions].flatten(0, 1)[:, None] for table in (model.cos, model.sin))
        for layer, (keys, values) in zip(model.layers, caches):
            q, k, v = (t.unflatten(0, (rows, end - begin)).transpose(1, 2) for t in layer.before_attention(x, cos, sin))
            keys[:, :, begin:end], values[:, :, begin:end] = k, v
            mixed = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask[:, None])
            x = layer.after_attention(x, mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        last = x.unflatten(0, (rows, end - begin))[:, -1]
        chosen = model.logits(model.norm(last)).argmax(-1)
        keep = [row for row, token in enumerate(chosen.tolist()) if token not in stops]
        for row in keep:
            replies[running[row]].append(chosen[row].item())
        if not keep or end >= room:
            return replies
        if len(keep) < rows:
            running = [running[row] for row in keep]
            missing, chosen = missing[keep], chosen[keep]
            caches = [[cache[keep] for cache in pair] for pair in caches]
        ids = chosen[:, None]
        begin, end = end, end + 1
