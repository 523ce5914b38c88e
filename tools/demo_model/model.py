"""The Llama architecture in PyTorch, laid out for training on packed chats.

All tokens of a batch are one flat row; only attention looks at the single chats, which
lie in blocks of equal padded length. Nothing but attention depends on the blocks, so
the rest compiles once.
"""

import torch
from torch import nn
from torch.nn import functional as F

import settings

SHORT = 512  # chats up to this length use the written-out attention


class Norm(nn.Module):
    """RMS normalisation."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + settings.NORM_EPS) * self.weight).to(x.dtype)


def rope_table(device=None):
    """cos and sin for all positions, in the half-split layout of Llama checkpoints."""
    half = settings.HEAD_DIM // 2
    inverse = settings.ROPE_THETA ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(settings.MAX_POSITIONS, device=device, dtype=torch.float32)[:, None] * inverse
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Applies the rotary position to x (tokens, heads, head_dim)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, shape: dict):
        super().__init__()
        hidden, self.heads, self.kv_heads = shape["hidden"], shape["heads"], shape["kv_heads"]
        size = settings.HEAD_DIM
        self.norm1, self.norm2 = Norm(hidden), Norm(hidden)
        self.q = nn.Linear(hidden, self.heads * size, bias=False)
        self.k = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.v = nn.Linear(hidden, self.kv_heads * size, bias=False)
        self.o = nn.Linear(self.heads * size, hidden, bias=False)
        self.gate = nn.Linear(hidden, shape["inner"], bias=False)
        self.up = nn.Linear(hidden, shape["inner"], bias=False)
        self.down = nn.Linear(shape["inner"], hidden, bias=False)

    def before_attention(self, x, cos, sin):
        """Queries, keys and values of all tokens; keys and values repeated for grouped heads."""
        h = self.norm1(x)
        size, groups = settings.HEAD_DIM, self.heads // self.kv_heads
        q = rotate(self.q(h).view(-1, self.heads, size), cos, sin)
        k = rotate(self.k(h).view(-1, self.kv_heads, size), cos, sin)
        v = self.v(h).view(-1, self.kv_heads, size)
        return q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)

    def after_attention(self, x, mixed):
        x = x + self.o(mixed)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def plain_attention(q, k, v):
    """Causal attention written out: for short chats its backward pass takes half the time."""
    length = q.shape[-2]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q * settings.HEAD_DIM ** -0.5) @ k.mT
    return scores.masked_fill(future, -1e9).softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def attend(q, k, v, blocks):
    """Causal attention inside each chat; `blocks` lists (chats, padded length) along the row."""
    mixed, at = [], 0
    for count, length in blocks:
        part = slice(at, at + count * length)
        at += count * length
        shaped = [t[part].view(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v)]
        if length <= SHORT:
            out = plain_attention(*shaped)
        else:
            out = F.scaled_dot_product_attention(*shaped, is_causal=True)
        mixed.append(out.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(mixed)


class Llama(nn.Module):
    def __init__(self, shape: dict):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(settings.VOCAB_SIZE, shape["hidden"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["layers"]))
        self.norm = Norm(shape["hidden"])
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if name.startswith("embed") else weight.shape[1] ** -0.5 / 2)
                if name.endswith(("o.weight", "down.weight")):
                    nn.init.zeros_(weight)
        cos, sin = rope_table()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden_states(self, tokens, positions, blocks):
        x = self.embed(tokens)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for layer in self.layers:
            q, k, v = layer.before_attention(x, cos, sin)
            x = layer.after_attention(x, attend(q, k, v, blocks))
        return self.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.embed.weight)

    def compile_parts(self):
        """Compiles everything but attention."""
        for layer in self.layers:
            layer.before_attention = torch.compile(layer.before_attention)
            layer.after_attention = torch.compile(layer.after_attention)


def hugging_face_names(shape: dict) -> dict:
    """From our parameter names to those of a Hugging Face Llama checkpoint."""
    names = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    parts = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q": "self_attn.q_proj",
             "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
             "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    for i in range(shape["layers"]):
        for ours, theirs in parts.items():
            names[f"layers.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names
