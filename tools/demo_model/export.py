"""Writes a trained checkpoint as a Hugging Face Llama model with bfloat16 weights."""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import chat
import settings
from model import hugging_face_names


def config(shape: dict, ids: dict) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": settings.VOCAB_SIZE,
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": settings.HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": settings.MAX_POSITIONS,
        "rms_norm_eps": settings.NORM_EPS,
        "rope_theta": settings.ROPE_THETA,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids[chat.BOS],
        "eos_token_id": ids[chat.END],
        "pad_token_id": ids[chat.END_OF_TEXT],
    }


def generation_config(ids: dict) -> dict:
    return {
        "bos_token_id": ids[chat.BOS],
        "eos_token_id": [ids[chat.END], ids[chat.END_OF_TEXT]],
        "pad_token_id": ids[chat.END_OF_TEXT],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
    }


def export(checkpoint: Path, shape: dict, folder: Path) -> None:
    """Replaces the files of `folder` one by one; each is complete whenever it is there."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    tensors = {theirs: state[ours].bfloat16().contiguous() for ours, theirs in hugging_face_names(shape).items()}
    tokenizer = Tokenizer.from_file(str(settings.DEMO_DIR / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in chat.SPECIAL_TOKENS}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        temporary = Path(name)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        for file, content in (("config.json", config(shape, ids)), ("generation_config.json", generation_config(ids))):
            (temporary / file).write_text(json.dumps(content, indent=2) + "\n")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(settings.DEMO_DIR / file, temporary / file)
        for file in temporary.iterdir():
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder.name}: {sum(t.numel() for t in tensors.values())} parameters, {size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["demo", "draft"])
    options = parser.parse_args()
    if options.which == "demo":
        export(settings.WORK_DIR / "demo.pt", settings.DEMO_SHAPE, settings.DEMO_DIR)
    else:
        export(settings.WORK_DIR / "draft.pt", settings.DRAFT_SHAPE, settings.DRAFT_DIR)


if __name__ == "__main__":
    main()
