#!/usr/bin/env python3
"""Makes the files of torch.save that the tests read.

    .venv/bin/python tools/goldens/make_pytorch_goldens.py

engine/weights/testdata/pytorch/*.bin: small files of every kind that the reader
knows or must refuse. tests/testdata/pytorch_model/: the checkpoint of
tests/testdata/goldens/llama_linear in two files with an index.
"""

import collections
import json
import os
import pathlib
import shutil
import zipfile

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parents[2]
SMALL = HERE / "engine" / "weights" / "testdata" / "pytorch"
MODEL = HERE / "tests" / "testdata" / "pytorch_model"


class Evil:
    def __reduce__(self):
        return os.system, ("false",)


def small_files():
    SMALL.mkdir(parents=True, exist_ok=True)
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict()
    state["f32"] = base.reshape(4, 6)
    state["rows_2_3"] = base.reshape(4, 6)[2:]  # Shares the storage.
    state["f16"] = torch.arange(6).reshape(2, 3).half()
    state["bf16"] = torch.arange(6).reshape(2, 3).bfloat16()
    state["f64"] = torch.arange(3, dtype=torch.float64)
    state["i64"] = torch.tensor([1, -2, 3])
    state["i32"] = torch.tensor([[1, -2, 3]], dtype=torch.int32)
    state["i8"] = torch.tensor([1, -2, 3], dtype=torch.int8)
    state["u8"] = torch.tensor([1, 2, 255], dtype=torch.uint8)
    state["bool"] = torch.tensor([True, False])
    state["fp8"] = torch.tensor([1.0, -2.0, 448.0]).to(torch.float8_e4m3fn)
    state["parameter"] = torch.nn.Parameter(torch.ones(2, 2) * 7)
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.zeros(0, 3)
    state["expanded"] = torch.arange(3.0).reshape(1, 3)
    state["an_integer"] = 12345678901
    state["a_list"] = [1, None, True, 2.5, "text", {"a": (1, 2)}]
    state["a_dtype"] = torch.float16
    state["a_size"] = torch.Size([1, 2])
    state._metadata = collections.OrderedDict([("", {"version": 1})])
    torch.save(state, SMALL / "small.bin")
    torch.save({"epoch": 3, "state_dict": {"w": base}}, SMALL / "nested.bin")
    torch.save(state, SMALL / "protocol4.bin", pickle_protocol=4)
    torch.save(torch.nn.Linear(2, 2).state_dict(), SMALL / "module.bin")
    torch.save({"w": base}, SMALL / "legacy.bin",
               _use_new_zipfile_serialization=False)
    torch.save({"w": base, "x": Evil()}, SMALL / "evil.bin")
    torch.save({"w": base.reshape(4, 6).t()}, SMALL / "transposed.bin")
    torch.save(base, SMALL / "tensor.bin")
    with zipfile.ZipFile(SMALL / "small.bin") as source, zipfile.ZipFile(
            SMALL / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name),
                            zipfile.ZIP_DEFLATED)


def model():
    source = HERE / "tests" / "testdata" / "goldens" / "llama_linear"
    shutil.rmtree(MODEL, ignore_errors=True)
    MODEL.mkdir(parents=True)
    for name in ("config.json", "golden.json"):
        shutil.copy(source / name, MODEL / name)
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    weight_map = {}
    for shard in range(2):
        file = f"pytorch_model-{shard + 1:05}-of-00002.bin"
        part = {name: weights[name] for name in names[shard::2]}
        torch.save(part, MODEL / file)
        weight_map.update({name: file for name in part})
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (MODEL / "pytorch_model.bin.index.json").write_text(
        json.dumps(index, indent=1) + "\n")


small_files()
model()
