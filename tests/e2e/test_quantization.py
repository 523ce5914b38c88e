"""`--quantization` on the demo model: what it answers, and what it says."""

import re
import subprocess

import pytest

import conftest

# What the demo model answers in any precision that is worth serving.
QUESTIONS = (
    ("What is 4 + 5?", "9"),
    ("Hi, my name is Nora. What is my name?", "Nora"),
)
UNITS = {"MiB": 1, "GiB": 1024}


def mebibytes(banner, row):
    size, unit = re.search(rf"{row}\s+([\d.]+) (MiB|GiB)", banner).groups()
    return float(size) * UNITS[unit]


@pytest.mark.parametrize(
    "option, name, max_part",
    [
        # Of bf16: 8.5 bits of 16, and 4.5 of 16 but 6.6 for the embedding.
        ("q8_0", "q8_0", 0.60),
        ("Q4_K", "q4_k", 0.45),
    ],
)
def test_serves(server, option, name, max_part):
    served = conftest.Server("-q", option)
    try:
        assert re.search(rf"dtype\s+{name} and bf16, KV cache bf16", served.banner)
        assert re.search(
            r"ready in\s+[\d.]+ s, of which weights [\d.]+ s \([\d.]+ GB/s\)",
            served.banner,
        )
        # RoPE tables and norms stay as they are.
        assert mebibytes(served.banner, "weights") <= max_part * mebibytes(
            server.banner, "weights"
        )
        # What is not a weight is what it was.
        for row in ("parameters", "workspace"):
            pattern = rf"  {row}\s+(.*)"
            assert (
                re.search(pattern, served.banner).group(1)
                == re.search(pattern, server.banner).group(1)
            )
        for question, answer in QUESTIONS:
            chat = served.client().chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=40,
            )
            assert answer in chat.choices[0].message.content
    finally:
        assert served.stop() == 0


def generate(*args):
    return subprocess.run(
        [conftest.BINARY, "generate", "--prompt", "a", "-n", "2", *args],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_bad_value_names_the_good_ones():
    result = generate("--quantization", "q9_0")
    assert result.returncode == 64
    assert result.stderr.count("\n") == 1
    assert "--quantization: 'q9_0' is none of q4_0, " in result.stderr
    for name in ("q8_0", "q4_k", "fp8", "int4", "gptq", "awq", "compressed-tensors"):
        assert name in result.stderr


def test_a_method_asks_for_a_checkpoint_that_has_it():
    result = generate("--quantization", "gptq")
    assert result.returncode == 65
    assert "--quantization gptq: " in result.stderr
    assert "is not quantized" in result.stderr
