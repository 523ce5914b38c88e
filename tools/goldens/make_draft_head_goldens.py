#!/usr/bin/env python3
"""Makes the tiny draft heads and golden drafts of tests/head_drafter_test.cc.

    python3 -m venv .venv && .venv/bin/pip install -r tools/goldens/requirements.txt
    .venv/bin/python tools/goldens/make_draft_head_goldens.py

Each case gets tests/testdata/draft_heads/<case>/: an EAGLE-3 head in the layout
of the published checkpoints (arXiv:2503.01840) for the golden model "llama", or a
model in the layout of MiMo-7B (arXiv:2505.07608) with its MTP layer. Weights are
random from a fixed seed. The oracle is written out here in float64 from those
descriptions; the target's hidden states are those of transformers, which loads
the very files that quire loads. golden.json has a prompt, its greedy
continuation, and for every prefix of it the chain of drafts, each with its
probability.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

HERE = pathlib.Path(__file__).resolve().parents[2]
OUT = HERE / "tests" / "testdata" / "draft_heads"
TARGET = HERE / "tests" / "testdata" / "goldens" / "llama"
NUM_GREEDY = 24
NUM_DRAFTS = 4
# Of a draft over the runner-up, in nats.
MIN_MARGIN = 2e-3


def matrix(generator, rows, cols, gain):
    return (gain / math.sqrt(cols) * torch.randn(rows, cols, generator=generator)).bfloat16()


def norm_weight(generator, size):
    return (1 + 0.3 * torch.randn(size, generator=generator)).bfloat16()


def layer_weights(generator, prefix, config, cols, qkv_bias):
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    weights = {}
    for part, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"]),
                        ("v", config["num_key_value_heads"])):
        name = f"{prefix}self_attn.{part}_proj."
        weights[name + "weight"] = matrix(generator, heads * size, cols, 1.0 if part == "v" else 1.4)
        if qkv_bias:
            weights[name + "bias"] = (0.2 * torch.randn(heads * size, generator=generator)).bfloat16()
    weights[prefix + "self_attn.o_proj.weight"] = matrix(
        generator, hidden, config["num_attention_heads"] * size, 0.8)
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{prefix}{name}.weight"] = norm_weight(generator, hidden)
    weights[prefix + "mlp.gate_proj.weight"] = matrix(generator, inner, hidden, 1.4)
    weights[prefix + "mlp.up_proj.weight"] = matrix(generator, inner, hidden, 1.4)
    weights[prefix + "mlp.down_proj.weight"] = matrix(generator, hidden, inner, 0.8)
    return weights


class Layer:
    """A head's decoder layer in float64, with the keys and values of what it has seen."""

    def __init__(self, weights, prefix, config):
        self.weights, self.prefix, self.config = weights, prefix, config

    def get(self, name):
        return self.weights[self.prefix + name + ".weight"].double()

    def norm(self, name, x, prefix=None):
        weight = self.weights[(self.prefix if prefix is None else prefix) + name + ".weight"].double()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def attention(self, x, keys, values, position):
        """Of the newest token, x the input of its projections; keys and values grow by it."""
        size, heads = self.config["head_dim"], self.config["num_attention_heads"]

        def project(part):
            out = self.get(f"self_attn.{part}_proj") @ x
            bias = self.weights.get(f"{self.prefix}self_attn.{part}_proj.bias")
            return (out if bias is None else out + bias.double()).view(-1, size)

        def rotate(v):
            half = size // 2
            angles = position * self.config["rope_theta"] ** (
                -torch.arange(half, dtype=torch.float64) / half)
            a, b = v[:, :half], v[:, half:]
            return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1)

        keys.append(rotate(project("k")))
        values.append(project("v"))
        group = heads // self.config["num_key_value_heads"]
        k = torch.stack(keys, 1).repeat_interleave(group, 0)
        v = torch.stack(values, 1).repeat_interleave(group, 0)
        scores = torch.einsum("hd,htd->ht", rotate(project("q")), k) * size ** -0.5
        mixed = torch.einsum("ht,htd->hd", scores.softmax(-1), v).reshape(-1)
        return self.get("self_attn.o_proj") @ mixed

    def mlp(self, x):
        gate = self.get("mlp.gate_proj") @ x
        return self.get("mlp.down_proj") @ (gate * torch.sigmoid(gate) * (self.get("mlp.up_proj") @ x))


class Eagle3:
    def __init__(self, weights, config, target_weights):
        self.weights, self.config = weights, config
        self.layer = Layer(weights, "midlayer." if "midlayer.hidden_norm.weight" in weights else "layers.0.", config)
        self.embedding = weights.get("embed_tokens.weight", target_weights["model.embed_tokens.weight"]).double()

    def first_input(self, hidden, position):
        layers = self.config.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
        count = len(hidden) - 1
        taps = torch.cat([hidden[i][position] for i in layers or (2, count // 2, count - 3)])
        return self.weights["fc.weight"].double() @ taps

    def step(self, x, token, keys, values, position):
        """The logits by target id, and the input of the next step."""
        normed = self.layer.norm("hidden_norm", x)
        embedded = self.layer.norm("input_layernorm", self.embedding[token])
        residual = normed if self.config.get("norm_before_residual") else x
        h = residual + self.layer.attention(torch.cat([embedded, normed]), keys, values, position)
        out = h + self.layer.mlp(self.layer.norm("post_attention_layernorm", h))
        logits = self.weights["lm_head.weight"].double() @ self.layer.norm("norm", out, prefix="")
        ids = torch.arange(len(logits)) + self.weights["d2t"]
        return logits, ids, out


class Mtp:
    def __init__(self, weights, config):
        self.weights, self.config = weights, config
        self.layer = Layer(weights, "model.mtp_layers.0.", config)

    def first_input(self, hidden, position):
        return hidden[-1][position]  # transformers gives it after the final norm.

    def step(self, x, token, keys, values, position):
        layer = self.layer
        embedded = self.weights["model.embed_tokens.weight"].double()[token]
        x = layer.get("input_proj") @ torch.cat([layer.norm("hidden_layernorm", x),
                                                 layer.norm("token_layernorm", embedded)])
        h = x + layer.attention(layer.norm("input_layernorm", x), keys, values, position)
        out = h + layer.mlp(layer.norm("post_attention_layernorm", h))
        out = layer.norm("final_layernorm", out)
        logits = self.weights["lm_head.weight"].double() @ out
        return logits, torch.arange(len(logits)), out


def drafts_of(head, tokens, hidden):
    """For each prefix of at least two tokens, its chain of drafts."""
    keys, values, chains = [], [], {}
    margin = math.inf
    for position in range(len(tokens) - 1):
        x, token = head.first_input(hidden, position), tokens[position + 1]
        chain_keys = chain_values = None
        chain = []
        for k in range(NUM_DRAFTS):
            if k == 0:
                logits, ids, x = head.step(x, token, keys, values, position)
                chain_keys, chain_values = list(keys), list(values)
            else:
                logits, ids, x = head.step(x, token, chain_keys, chain_values, position + k)
            best = logits.topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            token = ids[best.indices[0]].item()
            chain.append([token, logits.softmax(-1).max().item()])
        chains[position + 2] = chain
    return chains, margin


def write_case(name, head, target, weights, config, as_pytorch=False):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    if as_pytorch:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(3, target.config.vocab_size, (19,), generator=generator)
        with torch.no_grad():
            tokens = target.generate(prompt[None], max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY,
                                     do_sample=False, pad_token_id=0, eos_token_id=None)[0]
            hidden = [h[0] for h in target(tokens[None], output_hidden_states=True).hidden_states]
        chains, margin = drafts_of(head, tokens.tolist(), hidden)
        if margin >= MIN_MARGIN:
            break
    else:
        raise SystemExit(f"{name}: near ties under every seed")
    golden = {"prompt": prompt.tolist(), "greedy": tokens[len(prompt):].tolist(),
              "drafts": {str(n): chain for n, chain in chains.items() if n > len(prompt)}}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(name, "seed", seed, "margin", margin)


def make_eagle(seed, **changes):
    """Weights and configuration in the layout that most heads have, and the target."""
    generator = torch.Generator().manual_seed(seed)
    target = AutoModelForCausalLM.from_pretrained(TARGET, torch_dtype=torch.float64)
    target_config = json.loads((TARGET / "config.json").read_text())
    hidden, vocab = target_config["hidden_size"], target_config["vocab_size"]
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "vocab_size": vocab,
        "draft_vocab_size": 96, "hidden_size": hidden, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-3, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **changes}
    weights = layer_weights(generator, "midlayer.", config, 2 * hidden, False)
    weights["midlayer.hidden_norm.weight"] = norm_weight(generator, hidden)
    weights["fc.weight"] = matrix(generator, hidden, 3 * hidden, 1.0)
    weights["norm.weight"] = norm_weight(generator, hidden)
    weights["lm_head.weight"] = matrix(generator, config["draft_vocab_size"], hidden, 3.0)
    chosen = torch.randperm(vocab, generator=generator)[:config["draft_vocab_size"]].sort().values
    weights["d2t"] = chosen - torch.arange(len(chosen))
    weights["t2d"] = torch.zeros(vocab, dtype=torch.bool).index_fill(0, chosen, True)
    if "eagle_config" in config:  # And a table of its own.
        weights["embed_tokens.weight"] = matrix(generator, vocab, hidden, 2.0 * math.sqrt(hidden))
    return weights, config, target


def write_eagle(name, weights, config, target, file_config=None, as_pytorch=False):
    head = Eagle3(weights, config, load_file(TARGET / "model.safetensors"))
    write_case(name, head, target, weights, file_config or config, as_pytorch)


def make_authors(name, seed):
    """As github.com/SafeAILab/EAGLE publishes them: a file of PyTorch in f16, the configuration of a model."""
    weights, config, target = make_eagle(seed, architectures=["LlamaForCausalLM"], torch_dtype="float16")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    # Norms and the head of some are in f32, as training left them.
    for k in ("norm.weight", "midlayer.hidden_norm.weight", "lm_head.weight"):
        weights[k] = weights[k].float()
    write_eagle(name, weights, config, target, as_pytorch=True)


def make_speculator(name, seed):
    """As github.com/vllm-project/speculators writes them."""
    weights, config, target = make_eagle(seed, norm_before_residual=True)
    weights = {k.replace("midlayer.", "layers.0."): v for k, v in weights.items()}
    # The target's table, which it repeats.
    weights["embed_tokens.weight"] = load_file(TARGET / "model.safetensors")["model.embed_tokens.weight"].clone()
    own = ("architectures", "draft_vocab_size", "norm_before_residual", "torch_dtype")
    file_config = {
        "architectures": ["Eagle3DraftModel"], "auto_map": {"": "config.Eagle3SpeculatorConfig"},
        "draft_vocab_size": config["draft_vocab_size"], "dtype": "bfloat16",
        "eagle_aux_hidden_state_layer_ids": None, "norm_before_fc": False,
        "norm_before_residual": True, "speculators_config": {
            "algorithm": "eagle3", "default_proposal_method": "greedy",
            "proposal_methods": [{"accept_tolerance": 0.0, "proposal_type": "greedy",
                                  "speculative_tokens": NUM_DRAFTS, "verifier_accept_k": 1}],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "llama"}},
        "speculators_model_type": "eagle3", "speculators_version": "0.3.0", "target_hidden_size": None,
        "transformer_layer_config": {
            "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None,
            "use_cache": True, **{k: v for k, v in config.items() if k not in own}}}
    write_eagle(name, weights, config, target, file_config)


def make_mtp(name, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, vocab = 64, 256
    config = {
        "architectures": ["MiMoForCausalLM"], "model_type": "mimo", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-3,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "num_nextn_predict_layers": 1, "bos_token_id": 1, "eos_token_id": 2}
    weights = {"model.embed_tokens.weight": matrix(generator, vocab, hidden, 2.2 * math.sqrt(hidden)),
               "model.norm.weight": norm_weight(generator, hidden),
               "lm_head.weight": matrix(generator, vocab, hidden, 3.0)}
    for i in range(config["num_hidden_layers"]):
        weights |= layer_weights(generator, f"model.layers.{i}.", config, hidden, True)
    prefix = "model.mtp_layers.0."
    weights |= layer_weights(generator, prefix, config, hidden, True)
    for norm in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        weights[f"{prefix}{norm}.weight"] = norm_weight(generator, hidden)
    weights[prefix + "input_proj.weight"] = matrix(generator, hidden, 2 * hidden, 1.0)
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
            "tie_word_embeddings")
    target = Qwen2ForCausalLM(Qwen2Config(**{key: config[key] for key in keys})).double().eval()
    target.load_state_dict({k: v.double() for k, v in weights.items() if "mtp_layers" not in k})
    write_case(name, Mtp(weights, config), target, weights, config)


def main():
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    write_eagle("eagle3", *make_eagle(1))
    write_eagle("eagle3_own_embedding", *make_eagle(
        2, norm_before_residual=True, draft_vocab_size=320,
        eagle_config={"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}))
    make_authors("eagle3_authors", 4)
    make_speculator("eagle3_speculators", 5)
    make_mtp("mimo", 3)


if __name__ == "__main__":
    main()
