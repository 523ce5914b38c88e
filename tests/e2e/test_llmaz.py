"""Playgrounds of llmaz against the program: rendered, started, probed, drained."""

import http.server
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import BINARY, ROOT

sys.path.insert(0, str(ROOT / "tests" / "k8s"))
import llmaz  # noqa: E402
from pod import BACKEND, EXAMPLES, Pod, check_serving  # noqa: E402

DOCUMENTS = llmaz.load_documents(BACKEND, *EXAMPLES)
RUNTIME = DOCUMENTS[0]
PLAYGROUNDS = {d["metadata"]["name"]: d for d in DOCUMENTS if d["kind"] == "Playground"}
DEMO = ROOT / "models" / "demo"
DRAFT = ROOT / "models" / "demo-draft"


def run(command):
    return subprocess.run(
        [str(BINARY), *command[1:]], capture_output=True, text=True, timeout=60
    )


def popen(command, **arguments):
    """The container's PATH would find the program."""
    assert command[0] == "quire"
    return subprocess.Popen([str(BINARY), *command[1:]], **arguments)


def start(command):
    return Pod(command, RUNTIME, popen)


def load_model(source, path):
    """`source` as llmaz's loader leaves a model at `path`: flat, then read-only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, path)
    (path / ".cache" / "huggingface").mkdir(parents=True)
    for entry in path.rglob("*"):
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    path.chmod(0o555)


def local(command, folder):
    """`command` with paths of the pod replaced by ones below `folder`."""
    demo = "/usr/share/quire/models/demo"
    return [
        str(DEMO) if part == demo else part.replace(llmaz.MODEL_VOLUME, str(folder), 1)
        for part in command
    ]


def option(command, name):
    return command[command.index(name) + 1]


def rendered(name, folder):
    """The Playground's command with its models in place."""
    command = local(llmaz.render(PLAYGROUNDS[name], DOCUMENTS), folder)
    for flag, source in (("--model", DEMO), ("--speculative-model", DRAFT)):
        if flag in command and option(command, flag).startswith(str(folder)):
            load_model(source, pathlib.Path(option(command, flag)))
    return command


def contents(folder):
    return {p.relative_to(folder): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("name", PLAYGROUNDS)
def test_playground_serves_and_drains(name, tmp_path):
    command = rendered(name, tmp_path)
    before = contents(tmp_path)
    pod = start(command)
    pod.wait_until_started()
    errors = check_serving(pod, name)
    assert contents(tmp_path) == before
    lines = [line for line in errors.splitlines() if "--speculative-model" in line]
    assert lines == []


def test_playground_arguments_win(tmp_path):
    command = rendered("qwen3-8b", tmp_path)
    pod = start([*command, "--max_model_len=128", "--served-model-name", "other"])
    pod.wait_until_started()
    (model,) = pod.get("/v1/models")["data"]
    assert (model["id"], model["max_model_len"]) == ("other", 128)
    assert pod.terminate()[0] == 0


def test_hugging_face_cache_layout(tmp_path):
    """refs/main names a snapshot, whose files are links to blobs."""
    cache = tmp_path / "models--org--demo"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123")
    (cache / "snapshots" / "abc123").mkdir(parents=True)
    (cache / "snapshots" / "older").mkdir()
    for number, file in enumerate(sorted(DEMO.iterdir())):
        shutil.copy(file, cache / "blobs" / str(number))
        (cache / "snapshots" / "abc123" / file.name).symlink_to(f"../../blobs/{number}")
    pod = start(["quire", "serve", "--host", "0.0.0.0", "--model", str(cache)])
    pod.wait_until_started()
    check_serving(pod, "org/demo")


def assert_ends(command, code, *words):
    """The command exits with `code` and one line that has all of `words`."""
    result = run(command)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def first_example(tmp_path):
    """The command of llmaz's published first example, with `limits`."""
    model = {
        "kind": "OpenModel",
        "metadata": {"name": "opt-125m"},
        "spec": {"source": {"modelHub": {"modelID": "deepseek-ai/DeepSeek-R1"}}},
    }
    playground = {
        "kind": "Playground",
        "metadata": {"name": "opt-125m"},
        "spec": {
            "modelClaim": {"modelName": "opt-125m"},
            "backendRuntimeConfig": {"backendName": "quire"},
        },
    }
    command = llmaz.render(playground, [RUNTIME, model])
    assert option(command, "--model") == "/workspace/models/models--deepseek-ai--DeepSeek-R1"
    assert option(command, "--served-model-name") == "opt-125m"
    return local(command, tmp_path)


def test_first_example_is_of_an_unsupported_type(tmp_path):
    command = first_example(tmp_path)
    model = pathlib.Path(option(command, "--model"))
    model.mkdir()
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "vocab_size": 129280,
    }
    (model / "config.json").write_text(json.dumps(config))
    words = [str(model), '"deepseek_v3" is not supported', "supported: ", "llama"]
    assert_ends(command, 65, *words)
    # With its tokenizer and weights, too: the type is looked at first.
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors.index.json").write_text("{}")
    assert_ends(command, 65, *words)


def write_huge_model(model):
    """The demo model with as many layers as make its weights 0.9 TiB: a sparse file."""
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, model)
    config = json.loads((DEMO / "config.json").read_text())
    hidden, heads, kv_heads = 16384, 128, 8
    config |= {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "num_hidden_layers": 128,
    }
    (model / "config.json").write_text(json.dumps(config))
    shapes = {
        "model.embed_tokens.weight": [config["vocab_size"], hidden],
        "model.norm.weight": [hidden],
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": [hidden],
            prefix + "post_attention_layernorm.weight": [hidden],
            prefix + "self_attn.q_proj.weight": [heads * 128, hidden],
            prefix + "self_attn.k_proj.weight": [kv_heads * 128, hidden],
            prefix + "self_attn.v_proj.weight": [kv_heads * 128, hidden],
            prefix + "self_attn.o_proj.weight": [hidden, heads * 128],
            prefix + "mlp.gate_proj.weight": [4 * hidden, hidden],
            prefix + "mlp.up_proj.weight": [4 * hidden, hidden],
            prefix + "mlp.down_proj.weight": [hidden, 4 * hidden],
        }
    header, offset = {}, 0
    for name, shape in shapes.items():
        num_bytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + num_bytes],
        }
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(model / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return offset


def test_first_example_is_too_big(tmp_path):
    command = first_example(tmp_path)
    model = pathlib.Path(option(command, "--model"))
    num_bytes = write_huge_model(model)
    needed = f"the weights need {num_bytes / 2**30:.1f} GiB of memory"
    assert_ends(command, 69, str(model), needed, "GiB are available")


def test_paths_that_are_no_model(tmp_path):
    (tmp_path / "m-q5_k_m.gguf").write_bytes(b"GGUF")
    split = tmp_path / "models--org--gguf"
    split.mkdir()
    (split / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    pickle = tmp_path / "models--org--pickle"
    pickle.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, pickle)
    (pickle / "pytorch_model.bin").write_bytes(b"PK")
    for path, words in (
        (tmp_path / "m-q5_k_m.gguf", ["truncated", "the header"]),
        (split, ["m-00001-of-00002.gguf", "truncated"]),
        (pickle, ["pytorch_model.bin", "not a zip"]),
        (tmp_path / "nothing", ["no such model directory"]),
        ("Qwen/Qwen3-8B", ["no such model directory", "downloads nothing"]),
        ("s3://bucket/models/Qwen3-8B", ["no such model directory", "downloads nothing"]),
    ):
        assert_ends(["quire", "serve", "--model", str(path)], 65, str(path), *words)


def test_draft_models_that_do_not_fit(tmp_path):
    draft = tmp_path / "draft"
    shutil.copytree(DRAFT, draft)
    command = ["quire", "serve", "--model", str(DEMO), "--speculative_model", str(draft)]
    tokenizer = (DRAFT / "tokenizer.json").read_text()
    (draft / "tokenizer.json").write_text(tokenizer.replace("<|im_end|>", "<|other|>"))
    assert_ends(command, 65, str(draft), "<|other|>", "<|im_end|>")
    (draft / "tokenizer.json").unlink()
    assert_ends(command, 65, str(draft), "neither tokenizer.json nor tokenizer.model")
    shutil.rmtree(draft)
    assert_ends(command, 65, str(draft), "no such model directory")
    larger = ["quire", "serve", "--device", "cpu", "--model", str(DRAFT)]
    larger += ["--speculative-model", str(DEMO)]
    assert_ends(larger, 65, str(DEMO), "5246208 parameters", "more than the model's 1115392")
    assert_ends([*command, "--speculative-config={}"], 64, "exclude each other")


class Metrics(http.server.BaseHTTPRequestHandler):
    """Answers /metrics with the next (running, waiting) of `server.figures`.

    None: the server still loads its model.
    """

    def do_GET(self):
        self.server.num_polls += 1
        figures = self.server.figures
        figure = figures.pop(0) if len(figures) > 1 else figures[0]
        self.send_response(200 if figure else 503)
        self.end_headers()
        if figure is None:
            self.wfile.write(b'{"error": {"message": "loading"}}')
            return
        running, waiting = figure
        self.wfile.write(
            f'vllm:num_requests_running{{model_name="m"}} {running}\n'
            f'vllm:num_requests_waiting{{model_name="m"}} {waiting}\n'.encode()
        )

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(
    "figures, options, code, least_polls, least_seconds",
    [
        ([(0, 0)], [], 0, 1, 0),
        ([None], ["--settle", "60"], 0, 1, 0),
        ([(2, 0), (0, 3), (1, 1), (0, 0)], [], 0, 4, 0),
        ([(0, 0)], ["--settle", "0.3"], 0, 1, 0.3),
        ([(1, 0)], ["--timeout", "0.3"], 75, 1, 0.3),
        # The timeout includes the time to settle.
        ([(0, 0)], ["--settle", "60", "--timeout", "0.3"], 64, 0, 0),
    ],
)
def test_drain_waits_for_what_runs_and_waits(
    figures, options, code, least_polls, least_seconds
):
    server = http.server.HTTPServer(("127.0.0.1", 0), Metrics)
    server.figures, server.num_polls = list(figures), 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    start = time.monotonic()
    try:
        result = run(
            ["quire", "drain", "--url", f"http://127.0.0.1:{server.server_port}", *options]
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert result.returncode == code, result.stderr
    assert server.num_polls >= least_polls
    assert least_seconds <= time.monotonic() - start < 60


def test_drain_is_over_when_the_server_has_gone():
    server = http.server.HTTPServer(("127.0.0.1", 0), Metrics)
    server.figures, server.num_polls = [(1, 0)] * 2, 0
    url = f"http://127.0.0.1:{server.server_port}"
    process = popen(["quire", "drain", "--url", url], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(2):
            server.handle_request()
        server.server_close()
        assert process.wait(timeout=60) == 0
        assert "the server has ended" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
