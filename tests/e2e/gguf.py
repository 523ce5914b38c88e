"""Writes a model directory (llama, bf16, byte-level BPE) as a GGUF file."""

import json
import struct

ALIGNMENT = 32
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
# Numbers of tensor types.
TYPES = {"f32": 0, "q8_0": 8, "bf16": 30}


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    """The type and bytes of a key's value."""
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    return struct.pack(f"<IIQ{len(value)}i", ARRAY, I32, len(value), *value)


def _pad(data):
    return data + bytes(-len(data) % ALIGNMENT)


def _to_f32(bf16):
    """bf16 is the upper half of f32."""
    out = bytearray(2 * len(bf16))
    out[2::4] = bf16[0::2]
    out[3::4] = bf16[1::2]
    return bytes(out)


def _to_q8_0(bf16):
    """Blocks of 32: an f16 scale of max|x| / 127, then 32 bytes."""
    values = struct.unpack(f"<{len(bf16) // 2}f", _to_f32(bf16))
    out = bytearray()
    for begin in range(0, len(values), 32):
        block = values[begin : begin + 32]
        scale = max(map(abs, block)) / 127
        inverse = 1 / scale if scale else 0.0
        out += struct.pack("<e32b", scale, *[round(x * inverse) for x in block])
    return bytes(out)


def _interleaved(data, rows, head_dim):
    """Rows (s, j) of each head in the order (j, s), as llama.cpp wants them."""
    size = len(data) // rows
    half = head_dim // 2
    order = [
        head + s * half + j
        for head in range(0, rows, head_dim)
        for j in range(half)
        for s in range(2)
    ]
    return b"".join(data[row * size : (row + 1) * size] for row in order)


LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name):
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _keys(model, pre):
    config = json.loads((model / "config.json").read_text())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokens = {id: text for text, id in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3
    ids = {text: id for id, text in tokens.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return config, {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens[id] for id in sorted(tokens)],
        "tokenizer.ggml.token_type": [types[id] for id in sorted(tokens)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": ids[settings["bos_token"]],
        "tokenizer.ggml.eos_token_id": ids[settings["eos_token"]],
        "tokenizer.ggml.add_bos_token": settings["add_bos_token"],
        "tokenizer.chat_template": settings["chat_template"],
    }


def write_gguf(model, path, kind, pre="deepseek-r1-qwen"):
    """Writes the directory `model` to `path`, matrices as `kind` of TYPES."""
    config, keys = _keys(model, pre)
    file = (model / "model.safetensors").read_bytes()
    header_size = struct.unpack("<Q", file[:8])[0]
    header = json.loads(file[8 : 8 + header_size])
    header.pop("__metadata__", None)
    infos, data = b"", b""
    for name, tensor in header.items():
        assert tensor["dtype"] == "BF16"
        begin, end = (8 + header_size + offset for offset in tensor["data_offsets"])
        content, shape = file[begin:end], tensor["shape"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            content = _interleaved(content, shape[0], head_dim)
        own_kind = kind if len(shape) == 2 else "f32"
        if own_kind == "f32":
            content = _to_f32(content)
        elif own_kind == "q8_0":
            content = _to_q8_0(content)
        infos += _string(_gguf_name(name)) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TYPES[own_kind], len(data)
        )
        data += _pad(content)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(header), len(keys))
    pairs = b"".join(_string(key) + _value(value) for key, value in keys.items())
    path.write_bytes(_pad(start + pairs + infos) + data)
