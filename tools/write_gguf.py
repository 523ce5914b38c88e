#!/usr/bin/env python3
"""Writes a model directory as a GGUF file.

    tools/write_gguf.py models/demo demo-q8_0.gguf --type q8_0

DIRECTORY holds a llama, qwen2 or qwen3 model in bf16 as `model.safetensors` and, if it
has one, a byte-level BPE tokenizer (without: a file to measure, not to talk to). Other
types than those of --type are llama-quantize's to make, of a file with f32 or bf16.
"""

import argparse
import json
import mmap
import pathlib
import struct

ALIGNMENT = 32
U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
# Numbers of tensor types, and the bytes of so many values.
TYPES = {"f32": (0, 4, 1), "q8_0": (8, 34, 32), "bf16": (30, 2, 1)}
# Families whose rotary halves llama.cpp wants interleaved.
INTERLEAVED = ("llama",)
FAMILIES = ("llama", "qwen2", "qwen3")


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


def _padding(size):
    return bytes(-size % ALIGNMENT)


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


CONVERSIONS = {"f32": _to_f32, "q8_0": _to_q8_0, "bf16": bytes}


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


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name):
    module, kind = name.rsplit(".", 1)
    if module in NAMES:
        return f"{NAMES[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"


def _head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _config_keys(config):
    family = config["model_type"]
    if family not in FAMILIES:
        raise SystemExit(f"write_gguf: {family}: not one of {', '.join(FAMILIES)}")
    keys = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": _head_dim(config),
        "vocab_size": config["vocab_size"],
    }
    return {
        "general.architecture": family,
        **{f"{family}.{key}": value for key, value in keys.items()},
    }


def _tokenizer_keys(model, pre):
    if not (model / "tokenizer.json").exists():
        return {"tokenizer.ggml.model": "no_vocab"}
    settings = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokens = {id: text for text, id in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, 1)
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3
    ids = {text: id for id, text in tokens.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return {
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


def _write(out, config, keys, header, data, kind):
    infos, offset = b"", 0
    kinds = {}
    for name, tensor in header.items():
        if tensor["dtype"] != "BF16":
            raise SystemExit(f"write_gguf: {name} is {tensor['dtype']}, not BF16")
        shape = tensor["shape"]
        kinds[name] = kind if len(shape) == 2 else "f32"
        number, num_bytes, num_values = TYPES[kinds[name]]
        infos += _string(_gguf_name(name)) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, offset
        )
        begin, end = tensor["data_offsets"]
        size = (end - begin) // 2 // num_values * num_bytes
        offset += size + len(_padding(size))
    start = b"GGUF" + struct.pack("<IQQ", 3, len(header), len(keys))
    start += b"".join(_string(key) + _value(value) for key, value in keys.items()) + infos
    out.write(start + _padding(len(start)))
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        content = data[begin:end]
        is_rotated = ".q_proj." in name or ".k_proj." in name
        if is_rotated and config["model_type"] in INTERLEAVED:
            content = _interleaved(content, tensor["shape"][0], _head_dim(config))
        content = CONVERSIONS[kinds[name]](content)
        out.write(content + _padding(len(content)))


def write_gguf(model, path, kind, pre="deepseek-r1-qwen"):
    """Writes the directory `model` to `path`, matrices as `kind` of TYPES."""
    model = pathlib.Path(model)
    config = json.loads((model / "config.json").read_text())
    keys = {**_config_keys(config), **_tokenizer_keys(model, pre)}
    with (model / "model.safetensors").open("rb") as file, pathlib.Path(path).open("wb") as out:
        header_size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            data = memoryview(whole)[8 + header_size :]
            try:
                _write(out, config, keys, header, data, kind)
            finally:
                data.release()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--type", choices=TYPES, default="bf16", help="of matrices (bf16)")
    args = parser.parse_args()
    write_gguf(args.directory, args.file, args.type)


if __name__ == "__main__":
    main()
