#!/usr/bin/env python3
"""Makes the quantized checkpoints of tests/quantized_checkpoint_test.cc.

    .venv/bin/python tools/goldens/make_quantized_goldens.py

Each gets tests/testdata/quantized/<name>/ with config.json, model.safetensors,
dequantized.safetensors (some of its matrices in float32) and golden.json: what
transformers computes in float64 from the dequantized matrices, and how far (KL
divergence) that is from the model before quantization.

Matrices are packed and unpacked by the packages that define the layouts where
they run without a GPU: autoawq (also for GPTQ's layout, to which it converts)
and compressed-tensors. Codes and scales come from plain rounding here: how good
they are does not matter.
"""

import argparse
import copy
import importlib.util
import json
import pathlib
import shutil

import torch
from compressed_tensors.compressors.pack_quantized import helpers as ct_pack
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import make_model_goldens as models

GROUP = 32
# Not through the package, which wants a GPU's libraries.
spec = importlib.util.find_spec("awq")
awq_file = pathlib.Path(spec.submodule_search_locations[0],
                        "utils", "packing_utils.py")
spec = importlib.util.spec_from_file_location("awq_packing", awq_file)
awq_packing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(awq_packing)


def integers(weight, bits, group, symmetric, groups_of_columns=None):
    """Codes [rows, cols], scales and zeros [rows, groups] in float16 numbers."""
    rows, cols = weight.shape
    if groups_of_columns is None:
        groups_of_columns = torch.arange(cols) // group
    num_groups = (cols + group - 1) // group
    top = 2**bits - 1
    scales = torch.zeros(rows, num_groups)
    zeros = torch.full((rows, num_groups), 2.0**(bits - 1))
    for g in range(num_groups):
        part = weight[:, groups_of_columns == g]
        if symmetric:
            scales[:, g] = part.abs().amax(1) / (2**(bits - 1) - 1)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, g] = (high - low) / top
            zeros[:, g] = (-low / scales[:, g]).round().clamp(0, top)
    scales = scales.half().float()
    by_column = groups_of_columns.long()
    codes = (weight / scales[:, by_column]).round() + zeros[:, by_column]
    codes = codes.clamp(0, top)
    dequantized = scales[:, by_column] * (codes - zeros[:, by_column])
    return codes.int(), scales.half(), zeros.int(), dequantized


def gptq(weight, generator, bits=4, symmetric=True, act_order=False, v2=False):
    rows, cols = weight.shape
    g_idx = torch.arange(cols) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(cols, generator=generator)]
    codes, scales, zeros, dequantized = integers(weight, bits, GROUP, symmetric,
                                                 g_idx)
    stored = zeros if v2 else (zeros - 1).clamp(min=0)
    # What is stored is at least 0.
    assert v2 or (zeros >= 1).all(), "pick another seed"
    # GPTQ's layout, by autoawq's converter for ExLlama.
    qweight, qzeros = awq_packing.pack_exllama(
        codes.t().contiguous(), stored.t().contiguous(), bits)
    return {
        "qweight": qweight,
        "qzeros": qzeros,
        "scales": scales.t().contiguous(),
        "g_idx": g_idx.int(),
    }, dequantized


def awq(weight, generator):
    codes, scales, zeros, dequantized = integers(weight, 4, GROUP, False)

    def pack(values):  # AutoAWQ's WQLinear_GEMM.from_linear.
        values = values.view(values.shape[0], -1, 8)
        word = torch.zeros(values.shape[:2], dtype=torch.int32)
        for i, row in enumerate(awq_packing.AWQ_ORDER):
            word |= values[:, :, row] << (4 * i)
        return word

    tensors = {"qweight": pack(codes.t().contiguous()),
               "qzeros": pack(zeros.t().contiguous()),
               "scales": scales.t().contiguous()}
    oracle = awq_packing.dequantize_gemm(
        tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4,
        GROUP).t()
    assert torch.equal(oracle, dequantized)
    return tensors, dequantized


def packed(weight, generator, symmetric=True, act_order=False):
    rows, cols = weight.shape
    g_idx = torch.arange(cols) // GROUP
    if act_order:
        g_idx = g_idx[torch.randperm(cols, generator=generator)]
    codes, scales, zeros, dequantized = integers(weight, 4, GROUP, symmetric,
                                                 g_idx)
    scales = scales.to(torch.float32)
    tensors = {
        "weight_packed": ct_pack.pack_to_int32((codes - 8).to(torch.int8), 4),
        "weight_scale": scales,
        "weight_shape": torch.tensor([rows, cols]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = ct_pack.pack_to_int32(
            (zeros - 8).to(torch.int8), 4, packed_dim=0).contiguous()
    if act_order:
        tensors["weight_g_idx"] = g_idx.int()
    back = ct_pack.unpack_from_int32(tensors["weight_packed"], 4,
                                     torch.Size([rows, cols]))
    assert torch.equal(back.int() + 8, codes)
    return tensors, dequantized


def fp8(weight, generator, scales="tensor", suffix="weight_scale",
        input_scale=None, block=GROUP):
    rows, cols = weight.shape
    if scales == "tensor":
        stored = (weight.abs().amax() / 448).reshape(1)
        by_element = stored.expand(rows, cols)
    elif scales == "channel":
        stored = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
        by_element = stored.float().expand(rows, cols)
    else:
        bands, squares = -(-rows // block), -(-cols // block)
        stored = torch.zeros(bands, squares)
        for i in range(bands):
            for j in range(squares):
                stored[i, j] = weight[i * block:(i + 1) * block,
                                      j * block:(j + 1) * block].abs().max()
        stored /= 448
        by_element = stored.repeat_interleave(block, 0).repeat_interleave(
            block, 1)[:rows, :cols]
    codes = (weight / by_element).clamp(-448, 448).to(torch.float8_e4m3fn)
    tensors = {"weight": codes, suffix: stored}
    if input_scale is not None:
        tensors["input_scale"] = torch.tensor(input_scale)
    return tensors, codes.float() * by_element


def int8(weight, generator):
    scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return ({"weight": codes, "weight_scale": scales},
            codes.float() * scales.float())


def compressed(fmt, weights, **changes):
    return {"quant_method": "compressed-tensors", "format": fmt,
            "ignore": ["lm_head"], "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"],
                                          "weights": weights}}, **changes}


def gptq_config(**changes):
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True,
            "desc_act": False, "checkpoint_format": "gptq", **changes}


TINY = dict(vocab_size=128, rope_theta=10000.0, torch_dtype="float16")
MODELS = {
    "gptq": dict(quantize=gptq, config=gptq_config()),
    "gptq_act_order": dict(
        quantize=lambda w, g: gptq(w, g, symmetric=False, act_order=True),
        config=gptq_config(sym=False, desc_act=True)),
    "gptq_v2_8bit": dict(
        quantize=lambda w, g: gptq(w, g, bits=8, symmetric=False, v2=True),
        config=gptq_config(bits=8, sym=False, checkpoint_format="gptq_v2")),
    "gptq_phi3": dict(
        model=models.phi3(vocab_size=128, torch_dtype="float16"),
        quantize=lambda w, g: gptq(w, g, symmetric=False, act_order=True),
        config=gptq_config(sym=False, desc_act=True)),
    "awq": dict(quantize=awq, config={
        "quant_method": "awq", "bits": 4, "group_size": GROUP,
        "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None}),
    "fp8_tensor": dict(
        quantize=lambda w, g: fp8(w, g, input_scale=0.03125),
        dense=["model.layers.0.mlp.down_proj"],
        config={"quant_method": "fp8", "activation_scheme": "static",
                "ignored_layers": ["lm_head", "model.layers.0.mlp.down_proj"]}),
    "fp8_block": dict(
        quantize=lambda w, g: fp8(w, g, "block", "weight_scale_inv"),
        config={"quant_method": "fp8", "activation_scheme": "dynamic",
                "fmt": "e4m3", "weight_block_size": [GROUP, GROUP],
                "modules_to_not_convert": ["lm_head"]}),
    "compressed_fp8": dict(
        quantize=lambda w, g: fp8(w, g, "channel"),
        config=compressed("float-quantized", {
            "num_bits": 8, "type": "float", "strategy": "channel",
            "symmetric": True})),
    "compressed_int4": dict(
        quantize=packed,
        config=compressed("pack-quantized", {
            "num_bits": 4, "type": "int", "strategy": "group",
            "group_size": GROUP, "symmetric": True})),
    "compressed_int4_act_order": dict(
        quantize=lambda w, g: packed(w, g, symmetric=False, act_order=True),
        config=compressed("pack-quantized", {
            "num_bits": 4, "type": "int", "strategy": "group",
            "group_size": GROUP, "symmetric": False, "actorder": "group"})),
    "compressed_int8": dict(
        quantize=int8,
        config=compressed("int-quantized", {
            "num_bits": 8, "type": "int", "strategy": "channel",
            "symmetric": True})),
}
KEPT = ("layers.1.mlp.down_proj", "layers.1.self_attn.q_proj",
        "layers.1.self_attn.qkv_proj")


def oracle_of(config, weights):
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**copy.deepcopy(config)),
        attn_implementation="eager").double().eval()
    missing = model.load_state_dict(
        {n: t.double() for n, t in weights.items()}, strict=True)
    assert not missing.missing_keys
    return model


def quantize_model(config, entry, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = models.DTYPES[config["torch_dtype"]]
    make = models.fill_weights if "model" in entry else models.make_weights
    weights = {n: t.to(dtype) for n, t in make(config, generator).items()}
    stored, dequantized, kept = {}, dict(weights), {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if not name.endswith("_proj.weight") or module in entry.get("dense", ()):
            stored[name] = weight
            continue
        tensors, values = entry["quantize"](weight.float(), generator)
        stored.update({f"{module}.{suffix}": t.contiguous()
                       for suffix, t in tensors.items()})
        dequantized[name] = values
        if module.endswith(KEPT):
            kept[name] = values.contiguous()
    return weights, stored, dequantized, kept, generator


def make_model(root, name, entry):
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = entry.get("model") or models.llama(**TINY)
    for seed in range(1000):
        try:
            weights, stored, dequantized, kept, generator = quantize_model(
                config, entry, seed)
            break
        except AssertionError as error:
            if "seed" not in str(error):
                raise
    else:
        raise SystemExit(f"{name}: no seed without a zero point of 0")
    written = {**config, "quantization_config": entry["config"]}
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    save_file(kept, directory / "dequantized.safetensors")
    model, original = oracle_of(config, dequantized), oracle_of(config, weights)
    prompt = torch.randint(3, config["vocab_size"], (70,),
                           generator=generator).tolist()
    exact, _ = models.log_probs(model, prompt)
    before, _ = models.log_probs(original, prompt)
    divergence = (before.exp() * (before - exact)).sum(-1).mean().item()
    golden = {"prompt": prompt, "kl_divergence": round(divergence, 6),
              "logprobs": [{"position": p, "original": [
                                round(x, 6) for x in before[p].tolist()],
                            "values": [round(x, 6) for x in exact[p].tolist()]}
                           for p in (0, 31, 69)]}
    (directory / "golden.json").write_text(
        json.dumps(golden, separators=(",", ":")) + "\n")
    size = sum(f.stat().st_size for f in directory.iterdir())
    print(f"{name}: seed {seed}, {size / 1e3:.0f} kB, KL divergence "
          f"{divergence:.5f}")


@torch.no_grad()
def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path,
                        default=here / "tests" / "testdata" / "quantized")
    parser.add_argument("names", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in args.names:
        make_model(args.out, name, MODELS[name])


if __name__ == "__main__":
    main()
