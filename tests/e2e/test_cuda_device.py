"""`--device cuda` over HTTP: on this machine's GPU, else on the emulation of one
(bazel-bin/tests/gpu/quire_emulated); skipped where neither is there."""

import pathlib

import pytest

from conftest import BINARY, ROOT, Server

EMULATED = ROOT / "bazel-bin" / "tests" / "gpu" / "quire_emulated"
PROMPTS = ["What is 7 + 5?", "What is 30 - 4?"]


@pytest.fixture(scope="module")
def gpu_server():
    if pathlib.Path("/dev/nvidia0").exists():
        binary = BINARY
    elif EMULATED.exists():
        binary = EMULATED
    else:
        pytest.skip("neither a GPU nor //tests/gpu:quire_emulated")
    started = Server(
        "--device", "cuda", "--max-num-seqs", "8", "--max-model-len", "256",
        "--max-num-batched-tokens", "128", binary=binary,
    )
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def client():
    """Of the CPU: a server's own choice may be the GPU."""
    started = Server("--device", "cpu")
    yield started.client()
    assert started.stop() == 0


def ask(client, prompt, **options):
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=24,
        **options,
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_answers_as_the_cpu(gpu_server, client, prompt):
    found = ask(gpu_server.client(), prompt)
    expected = ask(client, prompt)
    assert (
        found.choices[0].message.content == expected.choices[0].message.content
    )
    assert found.usage == expected.usage


def test_a_stream_is_the_whole_answer(gpu_server):
    client = gpu_server.client()
    whole = ask(client, PROMPTS[0]).choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in ask(client, PROMPTS[0], stream=True)
        if chunk.choices
    ]
    assert len(pieces) > 2
    assert "".join(pieces) == whole


def test_log_probabilities_are_near_the_cpus(gpu_server, client):
    found, expected = (
        ask(c, PROMPTS[1], logprobs=True, top_logprobs=5).choices[0].logprobs
        for c in (gpu_server.client(), client)
    )
    assert len(found.content) == len(expected.content)
    for a, b in zip(found.content, expected.content):
        assert a.token == b.token
        # bf16 in both; f32 sums in other orders.
        assert abs(a.logprob - b.logprob) < 0.1
