#!/usr/bin/env python3
"""Makes the tiny checkpoints and golden vectors of tests/golden_logits_test.cc.

    python3 -m venv .venv && .venv/bin/pip install -r tools/goldens/requirements.txt
    .venv/bin/python tools/goldens/make_model_goldens.py

Each family gets tests/testdata/goldens/<family>/ with config.json, safetensors
and golden.json. Weights are random from a fixed seed, rounded to the dtype they
are stored in, and scaled so that every part of the model moves the logits and
the logits have a standard deviation of at least 1: a fault anywhere shows far
above the tolerance. The oracle is transformers, loading the very files that
quire loads, in float64; float32 must agree, and the greedy continuation must
not hang on a near tie.
"""

import argparse
import copy
import json
import math
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

NUM_GREEDY = 64
MIN_LOGIT_STD = 1.0
# Of the greedy choice over the runner-up, in nats; the engine's tolerance on a
# log-probability is 1e-4.
MIN_MARGIN = 2e-3
MAX_F32_ERROR = 4e-5
MIN_DISTINCT = 12
DTYPES = {"float32": torch.float32, "float16": torch.float16,
          "bfloat16": torch.bfloat16}


def base_config(model_type, architecture, **changes):
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_cache": True,
    }
    config.update(changes)
    return {k: v for k, v in config.items() if v is not ...}


def llama(**changes):
    return base_config("llama", "LlamaForCausalLM", **changes)


def gemma(model_type, architecture, **changes):
    return base_config(
        model_type, architecture, hidden_act=...,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        query_pre_attn_scalar=20, sliding_window=24, attention_bias=False,
        torch_dtype="bfloat16", **changes)


def opt(**changes):
    return base_config(
        "opt", "OPTForCausalLM", hidden_act=..., intermediate_size=...,
        rms_norm_eps=..., num_key_value_heads=..., head_dim=...,
        ffn_dim=96, tie_word_embeddings=..., torch_dtype="float16",
        max_position_embeddings=256, **{"activation_function": "relu", **changes})


def phi3(**changes):
    return base_config(
        "phi3", "Phi3ForCausalLM", head_dim=..., num_attention_heads=2,
        num_key_value_heads=1, rope_theta=10000.0, pad_token_id=0, **changes)


# Both spellings of RoPE occur: rope_theta with rope_scaling, rope_parameters.
FAMILIES = {
    "llama": dict(config=llama(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=320, rope_theta=10000.0,
        torch_dtype="float32")),
    "llama_bias": dict(config=llama(
        head_dim=..., num_attention_heads=1, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True, rope_theta=5000.0)),
    "llama_gelu": dict(config=llama(rope_theta=10000.0, hidden_act="gelu")),
    "llama_linear": dict(config=llama(
        rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0})),
    "llama_llama3": dict(config=llama(
        rope_theta=10000.0,
        rope_scaling={"rope_type": "llama3", "factor": 8.0,
                      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64})),
    "llama_yarn": dict(config=llama(
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0,
                         "factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5,
                         "original_max_position_embeddings": 64})),
    "llama_yarn_mscale": dict(config=llama(
        rope_parameters={"rope_type": "yarn", "rope_theta": 20000.0,
                         "factor": 8.0, "beta_fast": 4.0, "beta_slow": 0.5,
                         "mscale": 0.8, "mscale_all_dim": 0.3,
                         "truncate": False,
                         "original_max_position_embeddings": 64})),
    "mistral": dict(config=base_config(
        "mistral", "MistralForCausalLM", sliding_window=24,
        num_attention_heads=4, num_key_value_heads=2, rope_theta=10000.0)),
    "qwen2": dict(config=base_config(
        "qwen2", "Qwen2ForCausalLM", head_dim=..., num_attention_heads=2,
        hidden_size=128, tie_word_embeddings=True, rope_theta=1000000.0,
        use_sliding_window=False, sliding_window=32, max_window_layers=1)),
    "qwen2_window": dict(shards=3, config=base_config(
        "qwen2", "Qwen2ForCausalLM", num_hidden_layers=3,
        rope_theta=10000.0, use_sliding_window=True, sliding_window=20,
        max_window_layers=1, torch_dtype="float16")),
    "qwen3": dict(shards=2, config=base_config(
        "qwen3", "Qwen3ForCausalLM", num_attention_heads=4,
        num_key_value_heads=2, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0})),
    "gemma2": dict(generic=True, config=gemma(
        "gemma2", "Gemma2ForCausalLM", attn_logit_softcapping=2.5,
        final_logit_softcapping=6.0, rope_theta=10000.0, num_hidden_layers=3)),
    # As published for transformers 4, with layers of both kinds.
    "gemma3": dict(generic=True, config=gemma(
        "gemma3_text", "Gemma3ForCausalLM", sliding_window_pattern=2,
        rope_theta=100000.0, rope_local_base_freq=5000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "gemma3_nested": dict(generic=True, nested=True, config=gemma(
        "gemma3_text", "Gemma3ForCausalLM", num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention",
                     "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0,
                               "rope_theta": 200000.0}})),
    "granite": dict(generic=True, config=base_config(
        "granite", "GraniteForCausalLM", head_dim=..., rope_theta=10000.0,
        attention_bias=False, mlp_bias=False, embedding_multiplier=6.0,
        residual_multiplier=0.6, attention_multiplier=0.09,
        logits_scaling=0.7)),
    "olmo2": dict(generic=True, config=base_config(
        "olmo2", "Olmo2ForCausalLM", head_dim=..., num_attention_heads=4,
        num_key_value_heads=2, attention_bias=False, rope_theta=10000.0)),
    "opt": dict(generic=True, config=opt(
        do_layer_norm_before=True, word_embed_proj_dim=64,
        _remove_final_layer_norm=False)),
    # As Galactica: exact GELU, no biases but those of the norms.
    "opt_gelu": dict(generic=True, config=opt(
        do_layer_norm_before=True, word_embed_proj_dim=64,
        activation_function="gelu", enable_bias=False,
        layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)),
    "opt_post_norm": dict(generic=True, config=opt(
        do_layer_norm_before=False, word_embed_proj_dim=32,
        enable_bias=True)),
    "phi3": dict(generic=True, config=phi3(sliding_window=24)),
    "phi3_longrope": dict(generic=True, config=phi3(
        partial_rotary_factor=0.75, original_max_position_embeddings=64,
        sliding_window=None,
        rope_scaling={"type": "longrope",
                      "short_factor": [1.0 + 0.01 * i for i in range(12)],
                      "long_factor": [1.0 + 0.4 * i for i in range(12)]})),
    "smollm3": dict(generic=True, config=base_config(
        "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=3, head_dim=...,
        pad_token_id=0,
        num_attention_heads=2, rope_theta=10000.0, no_rope_layers=[1, 0, 1],
        use_sliding_window=True, sliding_window=24, attention_bias=False,
        mlp_bias=False,
        layer_types=["sliding_attention", "full_attention",
                     "full_attention"])),
    "stablelm": dict(generic=True, config=base_config(
        "stablelm", "StableLmForCausalLM", rms_norm_eps=..., head_dim=...,
        layer_norm_eps=1e-3, num_attention_heads=4, num_key_value_heads=2,
        use_qkv_bias=True, qk_layernorm=False, use_parallel_residual=False,
        partial_rotary_factor=0.5, rope_theta=10000.0)),
    # As StableLM 2 12B.
    "stablelm_parallel": dict(generic=True, config=base_config(
        "stablelm", "StableLmForCausalLM", rms_norm_eps=..., head_dim=...,
        layer_norm_eps=1e-3, num_attention_heads=4, num_key_value_heads=2,
        use_qkv_bias=False, qk_layernorm=True, use_parallel_residual=True,
        rope_theta=10000.0)),
}


def make_weights(config, generator):
    """Tensor name -> float32 tensor."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    vocab = config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    qkv_bias = config.get("attention_bias", False) or config["model_type"] == "qwen2"
    weights = {}

    def matrix(name, rows, cols, gain):
        # Inputs have a root mean square near 1: outputs then have `gain`.
        weights[name + ".weight"] = gain / math.sqrt(cols) * torch.randn(
            rows, cols, generator=generator)

    def bias(name, size):
        weights[name + ".bias"] = 0.2 * torch.randn(size, generator=generator)

    def norm(name, size):
        weights[name + ".weight"] = 1 + 0.3 * torch.randn(
            size, generator=generator)

    # With a tied head this is the deviation of the logits too.
    matrix("model.embed_tokens", vocab, hidden, 2.2)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        norm(layer + "input_layernorm", hidden)
        # Scores then have a standard deviation near 1.4^2: attention that is
        # neither uniform nor on one position.
        for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            name = f"{layer}self_attn.{part}_proj"
            matrix(name, n * head_dim, hidden, 1.0 if part == "v" else 1.4)
            if qkv_bias:
                bias(name, n * head_dim)
        matrix(layer + "self_attn.o_proj", hidden, heads * head_dim, 0.8)
        if config.get("attention_bias"):
            bias(layer + "self_attn.o_proj", hidden)
        if config["model_type"] == "qwen3":
            norm(layer + "self_attn.q_norm", head_dim)
            norm(layer + "self_attn.k_norm", head_dim)
        norm(layer + "post_attention_layernorm", hidden)
        for part, rows, cols in (("gate", inner, hidden), ("up", inner, hidden),
                                 ("down", hidden, inner)):
            name = f"{layer}mlp.{part}_proj"
            matrix(name, rows, cols, 1.2)
            if config.get("mlp_bias"):
                bias(name, rows)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", vocab, hidden, 2.2)
    return weights


def fill_weights(config, generator):
    """As make_weights, for any family that transformers knows: the names and
    shapes are those of its model."""
    # A copy: transformers fills in what it derives.
    auto_config = AutoConfig.for_model(**copy.deepcopy(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(auto_config)
    shared = {"lm_head.weight"} if auto_config.tie_word_embeddings else set()
    is_gemma = config["model_type"].startswith("gemma")
    weights = {}
    for name, tensor in model.state_dict().items():
        if name in shared:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        part = name.split(".")[-2]
        if name.endswith(".bias"):
            weights[name] = 0.2 * noise
        elif tensor.dim() == 1:
            # Norms; Gemma adds 1 to the weight. The branches count for more
            # than the embedding, of which the head is the same matrix.
            is_branch = part in ("post_attention_layernorm",
                                 "post_feedforward_layernorm")
            weights[name] = 0.3 * noise + (
                (6 if is_branch else 0) if is_gemma else 1)
        else:
            gain = GAINS.get(part, 1.2)
            # With a tied head a strong embedding makes a token follow itself.
            if part == "embed_tokens" and shared:
                gain = 1.4
            if part == "embed_tokens" and config.get("embedding_multiplier"):
                gain /= config["embedding_multiplier"]
            weights[name] = gain / math.sqrt(tensor.shape[1]) * noise
    return weights


# Of the outputs over the inputs; of the queries and keys as in make_weights.
GAINS = {"embed_tokens": 2.2, "lm_head": 2.2, "q_proj": 1.4, "k_proj": 1.4,
         "v_proj": 1.0, "qkv_proj": 1.3, "o_proj": 0.8,
         # OPT: what ReLU lets pass has a mean that is the same for all tokens.
         "out_proj": 2.0, "fc2": 0.5,
         # Without a norm the first layer reads these as they are.
         "project_in": 4.0, "embed_positions": 4.0}


def nested(config, weights):
    """The text model as part of one that also sees: what a published
    configuration of Gemma 3 looks like, without the weights for images."""
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": config["eos_token_id"],
        "text_config": {k: v for k, v in config.items()
                        if k not in ("architectures", "eos_token_id")},
        "vision_config": {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 16,
        "torch_dtype": config["torch_dtype"],
    }
    return outer, {"language_model." + name: tensor
                   for name, tensor in weights.items()}


def write_checkpoint(directory, family, generator, is_for_oracle=False):
    config = family["config"]
    dtype = DTYPES[config["torch_dtype"]]
    make = fill_weights if family.get("generic") else make_weights
    weights = {name: tensor.to(dtype).contiguous()
               for name, tensor in make(config, generator).items()}
    if family.get("nested") and not is_for_oracle:
        config, weights = nested(config, weights)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    num_shards = family.get("shards", 1)
    if num_shards == 1:
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::num_shards]}
        save_file(part, directory / file, {"format": "pt"})
        weight_map.update({name: file for name in part})
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total},
             "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=1) + "\n")


@torch.no_grad()
def log_probs(model, ids):
    logits = model(torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1), logits.double()


def make_cases(model, model_f32, vocab, generator):
    cases = []
    # Within a block of 16, across blocks, and beyond 64 positions and windows.
    for length, positions in ((5, [0, 4]), (33, [15, 16, 32]),
                              (91, [0, 23, 24, 63, 64, 90])):
        prompt = torch.randint(3, vocab, (length,), generator=generator).tolist()
        exact, logits = log_probs(model, prompt)
        rounded, _ = log_probs(model_f32, prompt)
        error = (exact - rounded).abs().max().item()
        assert error <= MAX_F32_ERROR, f"float32 differs by {error}"
        std = logits.std(dim=-1).min().item()
        assert std >= MIN_LOGIT_STD, f"logits have a deviation of {std}"
        ids, margin = list(prompt), math.inf
        for _ in range(NUM_GREEDY):
            top = log_probs(model, ids)[0][-1].topk(2)
            margin = min(margin, (top.values[0] - top.values[1]).item())
            ids.append(top.indices[0].item())
        # A continuation that only repeats itself would test little.
        if margin < MIN_MARGIN or len(set(ids[length:])) < MIN_DISTINCT:
            return None
        cases.append({
            "prompt": prompt,
            "greedy": ids[length:],
            "logprobs": [{"position": p,
                          "values": [round(x, 6) for x in exact[p].tolist()]}
                         for p in positions],
        })
    return cases


def make_family(root, name, family):
    directory = root / name
    for seed in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        generator = torch.Generator().manual_seed(1000 * seed + len(name))
        state = generator.get_state()
        write_checkpoint(directory, family, generator)
        oracle = directory
        if family.get("nested"):
            # transformers would want the part that sees as well.
            oracle = directory / "oracle"
            oracle.mkdir()
            generator.set_state(state)
            write_checkpoint(oracle, family, generator, is_for_oracle=True)
        models = [AutoModelForCausalLM.from_pretrained(
            oracle, dtype=dtype, attn_implementation="eager").eval()
            for dtype in (torch.float64, torch.float32)]
        if oracle != directory:
            shutil.rmtree(oracle)
        cases = make_cases(*models, family["config"]["vocab_size"], generator)
        if cases is None:
            continue
        text = json.dumps({"seed": seed, "cases": cases}, separators=(",", ":"))
        (directory / "golden.json").write_text(text + "\n")
        size = sum(f.stat().st_size for f in directory.iterdir())
        distinct = [len(set(case["greedy"])) for case in cases]
        print(f"{name}: seed {seed}, {size / 1e3:.0f} kB, "
              f"distinct greedy tokens {distinct}")
        return
    raise SystemExit(f"{name}: no seed gives a usable continuation")


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path,
                        default=here / "tests" / "testdata" / "goldens")
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in args.families:
        make_family(args.out, name, FAMILIES[name])


if __name__ == "__main__":
    main()
