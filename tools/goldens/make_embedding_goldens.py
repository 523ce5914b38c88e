#!/usr/bin/env python3
"""Tiny embedding checkpoints, and what transformers makes of their inputs.

Each has the files that sentence-transformers writes (modules.json, the pooling's
config.json) and the tensors that the library saves of a model without its head:
with or without the prefix "model.". The one of the Qwen3-Embedding kind also
has a tokenizer whose post-processor appends the end token, which is what the
last-token pooling reads.

The oracle is transformers' AutoModel in float64, loading the files that quire
loads; pooling and normalization are those of sentence-transformers
(models/Pooling.py, models/Normalize.py), written out here. float32 must agree.
"""

import argparse
import json
import pathlib
import shutil

import torch
from make_model_goldens import DTYPES, base_config, make_weights
from safetensors.torch import save_file
from tokenizers import (Tokenizer, decoders, models, pre_tokenizers, processors,
                        trainers)
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

MAX_F32_ERROR = 2e-6
# Lengths around a block of 16 tokens, and longer than a window of 24.
LENGTHS = (1, 5, 16, 33, 91)
TEXTS = ["hello world", "The fox jumps over the lazy dog.",
         "Ünïcödé, 你好, and 🦊!", "a " * 60]
END = "<|endoftext|>"

CHECKPOINTS = {
    # As Qwen3-Embedding: named after the causal model, tensors without prefix.
    "embed_qwen3": dict(
        pooling="lasttoken", normalize=True, prefix="", has_tokenizer=True,
        config=base_config(
            "qwen3", "Qwen3ForCausalLM", num_attention_heads=4,
            num_key_value_heads=2, attention_bias=False, rope_theta=100000.0,
            vocab_size=288, tie_word_embeddings=True, bos_token_id=287,
            eos_token_id=287, torch_dtype="bfloat16")),
    "embed_mean": dict(
        pooling="mean_tokens", normalize=False, prefix="model.",
        has_tokenizer=False,
        config=base_config(
            "mistral", "MistralModel", sliding_window=24,
            num_attention_heads=4, num_key_value_heads=2, rope_theta=10000.0,
            torch_dtype="bfloat16")),
}


def write_tokenizer(directory):
    """Byte-level BPE of 288 ids; the last one, which ends a text, is special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=287, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog and says hello world"] * 4,
        trainer)
    tokenizer.add_special_tokens([END])
    end = tokenizer.token_to_id(END)
    assert end == 287, end
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"$A:0 {END}:0", pair=f"$A:0 {END}:0 $B:1 {END}:1",
            special_tokens=[(END, end)])])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END,
         "pad_token": END, "clean_up_tokenization_spaces": False},
        indent=1) + "\n")


def write_checkpoint(directory, checkpoint, generator):
    config = checkpoint["config"]
    dtype = DTYPES[config["torch_dtype"]]
    weights = {}
    for name, tensor in make_weights(config, generator).items():
        if name.startswith("lm_head."):
            continue
        name = checkpoint["prefix"] + name.removeprefix("model.")
        weights[name] = tensor.to(dtype).contiguous()
    save_file(weights, directory / "model.safetensors", {"format": "pt"})

    def write(path, content):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")

    write(directory / "config.json", config)
    stages = ["Transformer", "Pooling"]
    if checkpoint["normalize"]:
        stages.append("Normalize")
    write(directory / "modules.json", [
        {"idx": i, "name": str(i), "path": f"{i}_{stage}" if i else "",
         "type": f"sentence_transformers.models.{stage}"}
        for i, stage in enumerate(stages)])
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens",
             "weightedmean_tokens", "lasttoken"]
    write(directory / "1_Pooling" / "config.json", {
        "word_embedding_dimension": config["hidden_size"],
        **{f"pooling_mode_{m}": m == checkpoint["pooling"] for m in modes},
        "include_prompt": True})
    write(directory / "config_sentence_transformers.json", {
        "prompts": {"query": "Instruct: find it\nQuery:", "document": ""},
        "default_prompt_name": None, "similarity_fn_name": "cosine"})


@torch.no_grad()
def embed(model, ids, checkpoint):
    hidden = model(torch.tensor([ids])).last_hidden_state[0].double()
    is_mean = checkpoint["pooling"] == "mean_tokens"
    pooled = hidden.mean(0) if is_mean else hidden[-1]
    if checkpoint["normalize"]:
        pooled = torch.nn.functional.normalize(pooled, p=2, dim=0)
    return pooled


def make(root, name, checkpoint):
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(name))
    write_checkpoint(directory, checkpoint, generator)
    exact_model, f32_model = [
        AutoModel.from_pretrained(directory, dtype=dtype,
                                  attn_implementation="eager").eval()
        for dtype in (torch.float64, torch.float32)]
    vocab = checkpoint["config"]["vocab_size"]
    cases = [{"prompt": torch.randint(3, vocab - 1, (length,),
                                      generator=generator).tolist()}
             for length in LENGTHS]
    if checkpoint["has_tokenizer"]:
        write_tokenizer(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids[-1] == 287
            cases.append({"text": text, "prompt": ids})
    for case in cases:
        exact = embed(exact_model, case["prompt"], checkpoint)
        rounded = embed(f32_model, case["prompt"], checkpoint)
        error = ((exact - rounded).abs().max() / exact.norm()).item()
        assert error <= MAX_F32_ERROR, f"float32 differs by {error}"
        case["embedding"] = [round(x, 8) for x in exact.tolist()]
    text = json.dumps({"cases": cases}, separators=(",", ":"))
    (directory / "golden.json").write_text(text + "\n")
    size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
    print(f"{name}: {len(cases)} cases, {size / 1e3:.0f} kB")


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path,
                        default=here / "tests" / "testdata" / "goldens")
    parser.add_argument("checkpoints", nargs="*", default=list(CHECKPOINTS))
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in args.checkpoints:
        make(args.out, name, CHECKPOINTS[name])


if __name__ == "__main__":
    main()
