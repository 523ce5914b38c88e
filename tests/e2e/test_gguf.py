"""The program on GGUF files of the demo model."""

import os
import shutil
import subprocess
import sys

import pytest

import conftest

sys.path.insert(0, str(conftest.ROOT / "tools"))
from write_gguf import write_gguf  # noqa: E402

DEMO = conftest.ROOT / "models" / "demo"
PROMPTS = (
    "What is 4 + 5?",
    "Hi, my name is Nora. What is my name?",
    "Sort these numbers: 7, 2, 9.",
    "Write the word 'river' backwards.",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory that nobody may write to, with two models."""
    directory = tmp_path_factory.mktemp("models")
    for kind in ("bf16", "q8_0"):
        write_gguf(DEMO, directory / f"demo-{kind}.gguf", kind)
    directory.chmod(0o555)
    yield directory
    directory.chmod(0o755)


def generate(*args):
    return subprocess.run(
        [conftest.BINARY, "generate", "--temperature", "0", "-n", "24", *args],
        capture_output=True,
        text=True,
        timeout=120,
    )


def answers(client, model):
    texts = []
    for prompt in PROMPTS:
        chat = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=40,
        )
        texts.append((chat.choices[0].message.content, chat.usage.prompt_tokens))
    return texts


def test_bf16_answers_are_the_directorys(client, models):
    """The same numbers, tokenizer and template: the same answers."""
    served = conftest.Server("--model", str(models / "demo-bf16.gguf"))
    try:
        own = served.client()
        assert [model.id for model in own.models.list()] == ["demo-bf16"]
        assert answers(own, "demo-bf16") == answers(client, "demo")
    finally:
        assert served.stop() == 0


def test_q8_0_answers(models):
    served = conftest.Server("-m", str(models), "--gguf-file", "demo-q8_0.gguf")
    try:
        texts = answers(served.client(), models.name)
        assert "9" in texts[0][0]
        assert "Nora" in texts[1][0]
    finally:
        assert served.stop() == 0


def test_one_of_several_files_must_be_named(models):
    result = generate("-m", str(models), "--prompt", "a")
    assert result.returncode == 65
    assert "choose one with --gguf-file: demo-bf16.gguf, demo-q8_0.gguf" in result.stderr
    result = generate("-m", str(models), "--gguf-file", "demo-q4.gguf", "--prompt", "a")
    assert result.returncode == 65
    assert "demo-q4.gguf: no such file" in result.stderr


def test_generate_is_the_directorys(models):
    expected = generate("-m", str(DEMO), "--prompt", "Once upon a time")
    found = generate(
        "-m", str(models), "--gguf-file", "demo-bf16.gguf", "--prompt", "Once upon a time"
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == expected.stdout != ""


def test_damaged_files_say_what_is_wrong(models, tmp_path):
    whole = (models / "demo-bf16.gguf").read_bytes()
    for size in (0, 100_000, len(whole) - 1):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        result = generate("-m", str(path), "--prompt", "a")
        assert result.returncode == 65
        assert f"{path}: " in result.stderr and "truncated" in result.stderr
        assert result.stderr.count("\n") == 1


def test_safetensors_go_before_gguf(models, tmp_path):
    directory = tmp_path / "both"
    shutil.copytree(DEMO, directory)
    os.symlink(models / "demo-bf16.gguf", directory / "x.gguf")
    result = generate("-m", str(directory), "--prompt", "a")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", ("bf16", "q8_0"))
def test_a_file_without_a_tokenizer_can_be_measured(tmp_path, kind):
    directory, path = tmp_path / "tiny", tmp_path / "tiny.gguf"
    for command in (
        [conftest.BINARY, "bench", "model", "--preset", "tiny", "--save-model", directory],
        [conftest.ROOT / "tools" / "write_gguf.py", directory, path, "--type", kind],
        [conftest.BINARY, "bench", "-m", path, "-p", "8", "-n", "2", "-r", "1", "-t", "1"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert "tg2" in done.stdout
