"""`quire bench` against the real server and against servers that fail."""

import csv
import http.server
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest

from conftest import BINARY, ROOT, Server

def bench(*args, **kwargs):
    return subprocess.run(
        [str(BINARY), "bench", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


SMALL = ["--num-prompts", 12, "--input-len", 24, "--output-len", 8, "--ignore-eos"]


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "vllm"])
def test_serve_counts_what_the_server_did(server, tmp_path, backend):
    done = bench(
        "serve", "--base-url", server.url, "--backend", backend, *SMALL,
        "--max-concurrency", 4, "--num-warmups", 2, "--save-detailed",
        "--result-dir", tmp_path, "--result-filename", "result.json",
        "--metadata", "commit=abc", "run=1", "--plot", tmp_path / "plot.svg",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "e2el:60000",
        "--ready-check-timeout-sec", 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "============ Serving Benchmark Result ============" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == 12 and result["failed"] == 0
    assert result["total_output_tokens"] == 12 * 8
    assert result["output_lens"] == [8] * 12
    assert result["model_id"] == "demo" and result["commit"] == "abc"
    assert result["request_rate"] == "inf" and result["max_concurrency"] == 4
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    # Prompts are as long as asked for, but for the tokens of the chat template.
    overhead = result["total_input_tokens"] - 12 * 24
    assert -12 <= overhead <= 12 * (30 if backend == "openai-chat" else 1)
    for i in range(12):
        latency = result["ttfts"][i] + sum(result["itls"][i])
        assert result["latencies"][i] == pytest.approx(latency, abs=1e-6)
    root = xml.etree.ElementTree.parse(tmp_path / "plot.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_files_that_cannot_be_written_are_found_before_the_load(server, tmp_path):
    (tmp_path / "file").write_text("")
    for args in (
        ["--plot", tmp_path / "missing" / "plot.svg"],
        ["--save-result", "--result-dir", tmp_path / "file" / "x"],
        ["--save-result", "--result-dir", tmp_path, "--result-filename", "no/r.json"],
    ):
        done = bench("serve", "--base-url", server.url, *SMALL, *args)
        assert done.returncode == 69 and "cannot write" in done.stderr
        assert done.stdout == ""  # No report: nothing was sent.
    for kind in ("throughput", "latency", "kernels", "startup"):
        done = bench(kind, "--output-json", tmp_path / "missing" / "r.json")
        assert done.returncode == 69 and "r.json: cannot write" in done.stderr
        assert done.stdout == ""


def test_what_is_no_benchmark_is_named():
    done = bench("foo")
    assert done.returncode == 64
    assert "'foo' is no benchmark: serve, throughput, latency" in done.stderr
    done = bench("serve", "--help")
    assert done.returncode == 0 and "Usage: quire bench serve" in done.stdout


def test_serve_takes_a_tokenizer_and_the_datasets(server, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "What is 7 + 5?"}\n{"prompt": "Say hello."}\n')
    conversation = {"conversations": [{"value": "Name some animals, please."}] * 2}
    sharegpt = tmp_path / "sharegpt.json"
    sharegpt.write_text(json.dumps([conversation] * 3))
    demo = ROOT / "models" / "demo"
    for args in (
        ["--dataset-name", "custom", "--dataset-path", lines],
        ["--dataset-name", "sharegpt", "--dataset-path", sharegpt],
        ["--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", 2],
        ["--dataset-name", "random", "--request-rate", 100, "--burstiness", 0.5],
        ["--skip-tokenizer-init", "--random-prefix-len", 8],
    ):
        done = bench(
            "serve", "--port", server.port, "--tokenizer", demo, *SMALL, *args
        )
        assert done.returncode == 0, done.stderr
        assert "Failed requests:                         0" in done.stdout


def test_a_malformed_line_is_a_request_that_failed(server, tmp_path):
    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"prompt": "fine"}\n{"prompt": \n{"prompt": "good"}\n')
    error = f"{lines}:2: not a JSON object"
    dataset = ["--dataset-name", "custom", "--dataset-path", lines, "--output-len", 4]
    done = bench(
        "serve", "--port", server.port, *dataset, "--num-prompts", 6, "--ignore-eos",
        "--save-detailed", "--result-dir", tmp_path, "--result-filename", "r.json",
        "--ready-check-timeout-sec", 20, "--num-warmups", 3,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"1 request failed: {error}" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["completed"] == 5 and result["failed"] == 1
    assert sorted(result["errors"]) == [""] * 5 + [error]
    assert sorted(result["output_lens"]) == [0] + [4] * 5

    done = bench(
        "throughput", *dataset, "--num-prompts", 6, "--output-json", tmp_path / "r.json"
    )
    assert done.returncode == 1, done.stderr
    assert f"1 request failed: {error}" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["num_requests"] == 5 and result["errors"] == [error]

    lines.write_text("{\n[]\n")
    for kind in (["serve", "--port", server.port], ["throughput"]):
        done = bench(*kind, *dataset)
        assert done.returncode == 64
        assert f"{lines}:1: not a JSON object; nothing in the file" in done.stderr


def test_serve_on_a_dead_url_and_a_wrong_path(server, tmp_path, unused_port):
    for url, code, error in (
        (f"http://127.0.0.1:{unused_port}", 69, "cannot connect"),
        (server.url + "/nowhere", 1, "HTTP 404"),
    ):
        path = tmp_path / f"{code}.json"
        done = bench(
            "serve", "--base-url", url, *SMALL, "--save-result",
            "--result-dir", tmp_path, "--result-filename", path.name,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        result = json.loads(path.read_text())
        assert result["failed"] == 12
        assert all(error in text for text in result["errors"])
    assert bench("serve", "--base-url", "ftp://x").returncode == 64
    assert bench("serve", "--goodput", "ttft").returncode == 64


@pytest.fixture
def unused_port():
    listener = http.server.HTTPServer(("127.0.0.1", 0), None)
    listener.server_close()
    return listener.server_port


class StreamHandler(http.server.BaseHTTPRequestHandler):
    """Three tokens for every completion."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/tokenize":
            return self.send_error(404)
        self.server.keys.add(self.headers["Authorization"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(chunk("a") + chunk("b") + chunk("c") + end())

    def log_message(self, *args):
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
def test_serve_over_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-keyout", key, "-out", certificate, "-subj", "/CN=127.0.0.1"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StreamHandler)
    server.keys = set()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    args = ["serve", "--base-url", f"https://127.0.0.1:{server.server_port}/v1", *SMALL]
    unverified = bench(*args, "--insecure", env={**os.environ, "OPENAI_API_KEY": "sk-1"})
    trusted = bench(
        *args, "--header", "Authorization=Bearer sk-2",
        env={**os.environ, "SSL_CERT_FILE": str(certificate)},
    )  # fmt: skip
    refused = bench(*args)
    server.shutdown()
    thread.join()
    for done in (unverified, trusted):
        assert done.returncode == 0, done.stderr
        assert "Total generated tokens:                  36" in done.stdout
    assert server.keys == {"Bearer sk-1", "Bearer sk-2"}
    assert refused.returncode == 69
    assert "self-signed certificate" in refused.stderr


def framed(data):
    event = f"data: {data}\n\n".encode()
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


def chunk(text):
    return framed(json.dumps({"choices": [{"text": text, "index": 0}]}))


def end():
    return framed("[DONE]") + b"0\r\n\r\n"


class FailingHandler(http.server.BaseHTTPRequestHandler):
    """Answers the first requests well, breaks one, then hangs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/tokenize":
            return self.send_error(404)
        number = next(self.server.numbers)
        if number >= 4:
            self.server.is_hanging.set()
            self.server.may_end.wait(60)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(chunk("a") + chunk("b"))
        if number == 3:
            self.close_connection = True
            return
        self.wfile.write(end())

    def log_message(self, *args):
        pass


def test_serve_keeps_what_it_has_when_interrupted(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FailingHandler)
    server.numbers = iter(range(100))
    server.is_hanging = threading.Event()
    server.may_end = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    process = subprocess.Popen(
        [str(BINARY), "bench", "serve", "--port", str(server.server_port)]
        + ["--num-prompts", "8", "--max-concurrency", "1", "--save-result"]
        + ["--result-dir", str(tmp_path), "--result-filename", "result.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.is_hanging.wait(60)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    server.may_end.set()
    server.shutdown()
    thread.join()
    assert process.returncode == 130, stderr
    assert "Successful requests:                     3" in stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["interrupted"] and result["completed"] == 3
    assert result["errors"][:3] == [""] * 3
    assert "middle" in result["errors"][3]
    assert result["errors"][4] == "cancelled"
    assert result["failed"] == 2 and result["not_started"] == 3
    assert "interrupted: 3 requests were not started" in stderr


class SlowTokenizer(StreamHandler):
    """Counts two prompts' tokens, then hangs."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/tokenize"
        if next(self.server.numbers) >= 3:
            self.server.is_hanging.set()
            self.server.may_end.wait(60)
            self.close_connection = True
            return
        body = json.dumps({"tokens": [1] * 24}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_serve_shows_and_ends_the_making_of_prompts(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowTokenizer)
    server.numbers = iter(range(100))
    server.is_hanging = threading.Event()
    server.may_end = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    terminal, stderr = os.openpty()
    process = subprocess.Popen(
        [str(BINARY), "bench", "serve", "--port", str(server.server_port)]
        + ["--num-prompts", "8", "--input-len", "24", "--save-result"]
        + ["--result-dir", str(tmp_path), "--result-filename", "result.json"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    os.close(stderr)
    assert server.is_hanging.wait(60)
    shown = os.read(terminal, 4096).decode()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    server.may_end.set()
    server.shutdown()
    thread.join()
    os.close(terminal)
    assert "prompts   0% [" in shown
    assert process.returncode == 130
    assert seconds < 10  # A request for tokens may take 30.
    assert "Failed requests:                         0" in stdout
    assert "Requests not started:                    8" in stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["interrupted"] and result["completed"] == 0
    assert result["failed"] == 0 and result["not_started"] == 8
    assert result["errors"] == ["cancelled before it started"] * 8


class MixedHandler(FailingHandler):
    """One good answer, one 500, one broken stream, one error event, and so on."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/tokenize":
            return self.send_error(404)
        kind = next(self.server.numbers) % 4
        if kind == 1:
            body = b'{"error": {"message": "out of luck"}}'
            self.send_response(500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(chunk("a") + chunk("b"))
        if kind == 2:
            self.close_connection = True
            return
        if kind == 3:
            event = b'data: {"error": {"message": "engine died"}}\n\n'
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.write(end())


def test_serve_reports_each_request_that_failed(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MixedHandler)
    server.numbers = iter(range(100))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    done = bench(
        "serve", "--port", server.server_port, "--num-prompts", 12,
        "--max-concurrency", 1, "--save-result", "--result-dir", tmp_path,
        "--result-filename", "result.json",
    )  # fmt: skip
    server.shutdown()
    thread.join()
    assert done.returncode == 1, done.stderr
    assert "Successful requests:                     3" in done.stdout
    assert "3 requests failed: HTTP 500: out of luck" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["interrupted"]
    assert result["completed"] == 3 and result["failed"] == 9
    assert result["total_output_tokens"] == 6
    for i, error in enumerate(result["errors"]):
        expected = ["", "HTTP 500: out of luck", "middle", "engine died"][i % 4]
        assert expected in error and bool(error) == bool(expected)


@pytest.fixture(scope="module")
def embedder():
    started = Server(str(ROOT / "tests" / "testdata" / "goldens" / "embed_qwen3"))
    yield started
    assert started.stop() == 0


def bench_embeddings(url, tmp_path, *args):
    done = bench(
        "serve", "--base-url", url, "--backend", "openai-embeddings", *args,
        "--save-detailed", "--result-dir", tmp_path, "--result-filename", "r.json",
    )  # fmt: skip
    return done, json.loads((tmp_path / "r.json").read_text())


def test_serve_loads_embeddings(embedder, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "What is 7 + 5?"}\n{"prompt": "Say hello."}\n[]\n')
    turns = [{"value": "Name some animals, please."}] * 2
    sharegpt = tmp_path / "sharegpt.json"
    sharegpt.write_text(json.dumps([{"conversations": turns}] * 3))
    sizes = ["--num-prompts", 12, "--input-len", 24]
    done, result = bench_embeddings(
        embedder.url, tmp_path, *sizes, "--max-concurrency", 3, "--num-warmups", 2,
        "--ready-check-timeout-sec", 20, "--goodput", "e2el:60000",
        "--probe-request-rate", 50, "--metric-percentiles", "50,99",
        "--plot", tmp_path / "plot.svg", "--plot-timeline",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Input throughput (inputs/s):" in done.stdout
    assert "P99 E2EL (ms):" in done.stdout and "TTFT" not in done.stdout
    assert result["backend"] == "openai-embeddings"
    assert result["completed"] == result["total_input_sequences"] == 12
    assert sum(result["input_lens"]) == result["total_input_tokens"]
    # Encoding may not hit a length; almost always it does.
    assert 12 * 23 <= result["total_input_tokens"] <= 12 * 25
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["p50_e2el_ms"] == pytest.approx(result["median_e2el_ms"])
    latencies = result["latencies"]
    assert len(latencies) == 12 and all(0 < x < 60 for x in latencies)
    assert result["mean_e2el_ms"] == pytest.approx(1e3 * sum(latencies) / 12)
    assert result["probe_failed"] == 0
    root = xml.etree.ElementTree.parse(tmp_path / "plot.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"

    done, result = bench_embeddings(
        embedder.url, tmp_path, *sizes, "--random-batch-size", 5
    )
    assert done.returncode == 0, done.stderr
    assert result["completed"] == 3 and result["total_input_sequences"] == 12

    done, result = bench_embeddings(
        embedder.url, tmp_path, "--num-prompts", 6, "--dataset-name", "sharegpt",
        "--dataset-path", sharegpt, "--extra-body", '{"encoding_format": "base64"}',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert result["completed"] == 6

    done, result = bench_embeddings(
        embedder.url, tmp_path, "--num-prompts", 6, "--dataset-name", "custom",
        "--dataset-path", lines,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"1 request failed: {lines}:3: not a JSON object" in done.stderr
    assert result["completed"] == 5 and result["failed"] == 1


def test_embeddings_from_who_makes_none(server, embedder, tmp_path, unused_port):
    sizes = ["--num-prompts", 4, "--input-len", 24]
    for args, code, error in (
        ([server.url, tmp_path], 1, "HTTP 4"),  # A model that writes.
        ([server.url, tmp_path, "--endpoint", "/v1/completions"], 1, "HTTP 4"),
        ([server.url, tmp_path, "--endpoint", "/health"], 1, "HTTP 405"),
        ([f"http://127.0.0.1:{unused_port}", tmp_path], 69, "cannot connect"),
        # More than the model has.
        ([embedder.url, tmp_path, "--extra-body", '{"dimensions": 65}'], 1, "HTTP 400"),
    ):
        done, result = bench_embeddings(*args, *sizes)
        assert done.returncode == code, (args, done.stderr)
        assert result["completed"] == 0 and result["failed"] == 4
        assert all(error in text for text in result["errors"]), result["errors"]
    # The other way round.
    done = bench("serve", "--base-url", embedder.url, *SMALL)
    assert done.returncode == 1 and "12 requests failed: HTTP 4" in done.stderr
    for args, error in (
        (["--temperature", 1], "--temperature: embeddings are not sampled"),
        (["--goodput", "ttft:5"], "--goodput: embeddings have no tokens"),
        (["--random-batch-size", 2, "--backend", "openai"], "--random-batch-size 2"),
        (["--random-batch-size", 2, "--dataset-name", "custom"], "--random-batch-size 2"),
        (["--backend", "openai-audio"], "openai-audio not in"),
    ):
        done = bench("serve", "--backend", "openai-embeddings", *args)
        assert done.returncode == 64 and error in done.stderr, done.stderr


def test_serve_names_a_dataset_that_is_not_there(server, tmp_path):
    missing = tmp_path / "none.json"
    not_json = tmp_path / "text.json"
    not_json.write_text("hello")
    for path in (missing, not_json):
        done = bench(
            "serve", "--port", server.port, "--dataset-name", "sharegpt",
            "--dataset-path", path,
        )  # fmt: skip
        assert done.returncode == 64
        assert str(path) in done.stderr


class SpeculatingHandler(StreamHandler):
    """Counts three drafts of four tokens for each answer on its /metrics."""

    def do_GET(self):
        if self.path != "/metrics":
            return self.send_error(404)
        n = self.server.num_answers
        lines = [
            f'vllm:spec_decode_num_drafts_total{{engine="0"}} {100 + 3 * n}',
            f'vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {400 + 12 * n}',
            f'vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {9 + 6 * n}',
            f'vllm:request_queue_time_seconds_sum{{engine="0"}} {0.5 * n}',
            f'vllm:request_queue_time_seconds_count{{engine="0"}} {n}',
        ]
        body = "\n".join(lines).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.server.num_answers += self.path != "/tokenize"
        super().do_POST()


def test_serve_reports_what_the_server_speculated(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SpeculatingHandler)
    server.keys, server.num_answers = set(), 7
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    done = bench(
        "serve", "--port", server.server_port, "--num-prompts", 5, "--num-warmups", 2,
        "--max-concurrency", 1, "--save-result", "--result-dir", tmp_path,
        "--result-filename", "result.json",
    )  # fmt: skip
    server.shutdown()
    thread.join()
    assert done.returncode == 0, done.stderr
    # Of the five requests alone: 15 drafts, 60 tokens, 30 accepted.
    assert "Acceptance rate (%):                     50.00" in done.stdout
    assert "Drafts:                                  15" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["spec_decode_acceptance_length"] == 3
    assert result["spec_decode_accepted_tokens"] == 30
    assert result["mean_queue_time_ms"] == 500


def test_throughput_and_latency(tmp_path):
    path = tmp_path / "out.json"
    done = bench(
        "throughput", "--num-prompts", 10, "--input-len", 20, "--output-len", 5,
        "--output-json", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Throughput: ")
    result = json.loads(path.read_text())
    assert list(result) == [
        "elapsed_time", "num_requests", "total_num_tokens",
        "requests_per_second", "tokens_per_second",
    ]  # fmt: skip
    assert result["num_requests"] == 10
    assert "Host per step" not in done.stdout  # Of a GPU.
    assert "Total num output tokens:  50" in done.stdout

    done = bench(
        "latency", "--batch-size", 2, "--input-len", 8, "--output-len", 4,
        "--num-iters", 3, "--num-iters-warmup", 1, "--output-json", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Avg latency: ")
    result = json.loads(path.read_text())
    assert len(result["latencies"]) == 3
    assert list(result["percentiles"]) == ["10", "25", "50", "75", "90", "99"]
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 3)


def test_model_rows():
    # As llama-bench is called, without a name of the benchmark.
    done = bench(
        "-p", 16, "-n", 4, "-pg", "8,2", "-d", "0,8", "--concurrency", 2, "-r", 2,
        "-o", "json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["test"] for row in rows] == [
        "pp16", "tg4", "pp8+tg2", "pp16 @ d8", "tg4 @ d8", "pp8+tg2 @ d8",
        "tg4 x 2 @ d128",
    ]  # fmt: skip
    for row in rows:
        assert len(row["samples_ts"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
    done = bench("model", "-p", 8, "-n", 0, "-r", 1, "--format", "csv")
    assert [r["test"] for r in csv.DictReader(io.StringIO(done.stdout))] == ["pp8"]
    done = bench("model", "-p", 8, "-n", 2, "-r", 1, "--format", "jsonl")
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 2
    done = bench("model", "-p", 8, "-n", 2, "-r", 1)
    assert done.stdout.startswith("| model | size | params | backend | test | t/s |")
    size, params = done.stdout.splitlines()[2].split(" | ")[1:3]
    assert float(size.removesuffix(" MiB")) > 0 and float(params.removesuffix(" M")) > 0
    done = bench("model", "-p", 8, "-n", 2, "-r", 1, "-o", "csv", "--ceilings")
    prefill, decode = csv.DictReader(io.StringIO(done.stdout))
    assert float(prefill["percent_of_bf16_peak"]) > 0
    assert float(decode["percent_of_read_bandwidth"]) > 0
    assert decode["percent_of_copy_bandwidth"] == '' == prefill["percent_of_copy_bandwidth"]
    # No line about the device: each row has it.
    assert done.stderr == ""
    for output, text in (("md", "1 thread) x 2 |"), ("jsonl", '"n_ranks":2,"n_threads":1,')):
        done = bench("model", "-p", 8, "-n", 0, "-r", 1, "-tp", 2, "-t", 1, "-o", output)
        assert text in done.stdout, done.stdout + done.stderr
    assert bench("model", "--preset", "gpt-5").returncode == 64
    done = bench("-m", ROOT / "models" / "demo", "--preset", "tiny")
    assert done.returncode == 64 and "--preset tiny contradicts --model" in done.stderr
    assert bench("model", "-p", 0, "-n", 0).returncode == 64


def test_a_saved_preset_needs_no_tokenizer_and_no_directory(tmp_path):
    model = tmp_path / "new" / "tiny"
    done = bench("model", "--preset", "tiny", "--save-model", model)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]
    done = bench("-m", model, "-p", 8, "-n", 2, "-r", 1, "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["test"] for line in done.stdout.splitlines()] == ["pp8", "tg2"]
    # Where prompts are texts, it does.
    done = bench("latency", "-m", model, "--num-iters", 1)
    assert done.returncode == 65 and "tokenizer" in done.stderr
    (tmp_path / "file").write_text("")
    done = bench("model", "--preset", "tiny", "--save-model", tmp_path / "file" / "x")
    assert done.returncode == 69 and "file/x: cannot be made" in done.stderr


def test_kernels(tmp_path):
    path = tmp_path / "kernels.json"
    done = bench(
        "kernels", "--preset", "qwen2.5-0.5b", "-r", 1, "--rows", 1,
        "--filter", "norm", "--threads", 1, "--output-json", path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["rows"]] == ["qwen2.5-0.5b norm 1x896"]
    assert result["ceilings"][0]["read_bytes_per_second"][0] > 1e8
    for option, value in (
        ("--preset", "gpt-5"), ("--quantization", "q9"), ("--cpu-cores", "x")
    ):  # fmt: skip
        done = bench("kernels", option, value)
        assert done.returncode == 64 and value in done.stderr
        assert done.stdout == ""  # Said before anything is measured.
    done = bench("kernels", "--preset", "tiny", "-r", 1, "--filter", "no such row")
    assert done.returncode == 64
    assert "--filter 'no such row' leaves no row" in done.stderr
    # What the threads of a pool, and ranks, wait for each other.
    done = bench(
        "kernels", "-r", 1, "--filter", "barrier", "--threads", 2, "--output-json", path
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["seconds"][0] for row in json.loads(path.read_text())["rows"]}
    for name in ("loop barrier, 1 thread", "rank barrier, 2 ranks"):
        assert 0 < rows[name] <= rows[name + ", p99"]
    cpu = min(os.sched_getaffinity(0))
    pinned = bench(
        "kernels", "--preset", "qwen2.5-0.5b", "-r", 1, "--rows", 1,
        "--filter", "norm", "--cpu-cores", cpu, "--numa", "off",
    )  # fmt: skip
    assert pinned.returncode == 0, pinned.stderr
    assert "1 thread)" in pinned.stdout


def test_quality(tmp_path):
    text, path = tmp_path / "text.txt", tmp_path / "quality.json"
    text.write_text("Once upon a time, a brave whale lived in the garden. " * 20)
    demo = ROOT / "models" / "demo"
    args = ["--reference", demo, "--text", text, "--context", 64, "-t", 1]
    divergences = []
    for format in ("q8_0", "q4_0"):
        done = bench("quality", "-m", demo, "-q", format, *args, "--output-json", path)
        assert done.returncode == 0, done.stderr
        assert "mean divergence" in done.stdout
        result = json.loads(path.read_text())
        # The second half of each chunk, but for what its last token predicts.
        assert result["num_positions"] % 31 == 0
        divergences.append(result["mean_divergence"])
    assert 0 < divergences[0] < divergences[1] < 1
    text.write_text("short")
    done = bench("quality", "-m", demo, *args)
    assert done.returncode == 64 and "less than one chunk" in done.stderr
    assert bench("quality", "-m", demo, "--text", text).returncode == 64
    for option in ("-tp", "-pp"):
        done = bench("quality", "-m", demo, *args, option, 2)
        assert done.returncode == 64, done.stderr
        assert "bench quality compares models in one process" in done.stderr


def test_drafter(tmp_path):
    model, head = tmp_path / "model", tmp_path / "head"
    model.mkdir()
    head.mkdir()
    done = bench("model", "--preset", "tiny", "--save-model", model, "--save-head", head)
    assert done.returncode == 0, done.stderr
    eagle = json.dumps({"method": "eagle3", "model": str(head), "num_speculative_tokens": 3})
    for acceptance, accepted, tokens in ((0, 0, 1), (1, 1, 31 / 8)):
        done = bench(
            "drafter", model, "--tokenizer", ROOT / "models" / "demo", "-t", 1, "-r", 2,
            "--speculative-config", eagle, "--acceptance", acceptance,
            "--output-len", 32, "--output-json", tmp_path / "result.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["acceptance"] == accepted
        assert result["tokens_per_step"] == pytest.approx(tokens)
        assert len(result["drafter_ms"]) == 2
        assert result["drafting_step_ms"] > 0
        assert "Cost of the drafter:" in done.stdout
    # A head is known by its configuration.
    done = bench(
        "drafter", model, "--tokenizer", ROOT / "models" / "demo", "-t", 1, "-r", 1,
        "--speculative-model", head, "--output-len", 8,
    )  # fmt: skip
    assert done.returncode == 0 and "eagle3" in done.stdout, done.stderr
    # Lookups and draft models, too; and nothing without one.
    for drafter in ("[ngram]", "demo-draft"):
        done = bench("drafter", "--speculative-model", drafter, "-t", 1, "-r", 1, "--output-len", 16)
        assert done.returncode == 0, done.stderr
    done = bench("drafter", "-t", 1)
    assert done.returncode == 64 and "--speculative-model" in done.stderr


def end_by_signal(process, number):
    """Its standard error; that it ends soon, and its children with it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=15)
    for child in children.split():
        assert not Path(f"/proc/{child}/exe").exists()
    return stdout, stderr


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_startup_ends_its_server_when_it_is_interrupted(number):
    process = subprocess.Popen(
        [str(BINARY), "bench", "startup", "-r", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
    _, stderr = end_by_signal(process, number)
    # Either all of the first start, or none of it.
    assert process.returncode == 130, stderr


def test_model_rows_end_within_a_repetition_when_interrupted():
    process = subprocess.Popen(
        [str(BINARY), "bench", "-p", "0", "-n", "32,100000", "-r", "2"]
        + ["-m", str(ROOT / "models" / "demo"), "-t", "1", "--format", "jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = process.stdout.readline()
    rest, stderr = end_by_signal(process, signal.SIGINT)
    assert process.returncode == 130, stderr
    assert json.loads(first)["test"] == "tg32"
    assert rest == ""


def test_startup(tmp_path):
    path = tmp_path / "startup.json"
    done = bench("startup", "-r", 2, "--output-json", path, "--", "--max-num-seqs", 2)
    assert done.returncode == 0, done.stderr
    # Nothing of what the servers say.
    assert done.stderr == ""
    result = json.loads(path.read_text())
    assert all(0 < t < 60 for t in result["ready_seconds"])
    for ready, first in zip(
        result["ready_seconds"], result["first_token_seconds"], strict=True
    ):
        assert ready < first
    assert "exec to first token" in done.stdout
    # As `quire serve` ends itself.
    done = bench("startup", "-r", 1, "--", "--log-format", "json", "--ops-port", 0)
    assert done.returncode == 0, done.stderr
    done = bench("startup", "-r", 1, "--", "/no/such/model")
    assert done.returncode == 65 and "/no/such/model" in done.stderr
    for args, error in (
        (["--uds", tmp_path / "s"], "bench startup reaches a server over plain TCP"),
        (["--no-such-option"], "--no-such-option"),
    ):
        done = bench("startup", "-r", 1, "--", *args)
        assert done.returncode == 64 and error in done.stderr
