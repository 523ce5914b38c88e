"""The server as its operator sees it: probes, keys, metrics, shutdown, CLI."""

import concurrent.futures
import http.client
import json
import signal
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest
from conftest import BINARY, Server, wait_until

CHAT = "/v1/chat/completions"
LONG = {
    "messages": [{"role": "user", "content": "Tell me a short story about a fox."}],
    "ignore_eos": True,
    "temperature": 0,
}


def get(server, path):
    """(status, body)"""
    try:
        with urllib.request.urlopen(server.url + path) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server, name):
    for line in get(server, "/metrics")[1].splitlines():
        if line.startswith((name + "{", name + " ")):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name}")


def open_stream(server, body):
    """A raw connection whose streamed answer has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", CHAT, json.dumps({**body, "stream": True}))
    answer = connection.getresponse()
    assert answer.status == 200
    return connection, answer


def test_probes_and_version(server):
    for path in ("/health", "/health/live", "/health/ready", "/version"):
        assert get(server, path)[0] == 200
    assert get(server, "/nowhere")[0] == 404
    assert get(server, CHAT)[0] == 405


def test_metrics_count(server, client):
    before = {
        name: metric(server, name)
        for name in (
            "vllm:generation_tokens_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:e2e_request_latency_seconds_count",
        )
    }
    client.chat.completions.create(
        model="demo", messages=LONG["messages"], max_tokens=7, extra_body={"ignore_eos": True}
    )
    wait_until(
        lambda: metric(server, "vllm:e2e_request_latency_seconds_count")
        == before["vllm:e2e_request_latency_seconds_count"] + 1
    )
    assert metric(server, "vllm:generation_tokens_total") == before["vllm:generation_tokens_total"] + 7
    assert (
        metric(server, "vllm:time_to_first_token_seconds_count")
        == before["vllm:time_to_first_token_seconds_count"] + 1
    )
    wait_until(lambda: metric(server, "vllm:num_requests_running") == 0)
    assert metric(server, "vllm:num_requests_waiting") == 0
    assert metric(server, "vllm:kv_cache_usage_perc") == 0


def test_metrics_count_http_requests(server):
    def count(handler, status, method="GET"):
        labels = f'{{handler="{handler}",method="{method}",status="{status}"}} '
        lines = get(server, "/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("http_requests_total" + labels))

    before = [count("/version", 200), count("other", 404), count(CHAT, 405)]
    for path in ("/version", "/nowhere", "/another", CHAT):
        get(server, path)
    assert [count("/version", 200), count("other", 404), count(CHAT, 405)] == [
        before[0] + 1, before[1] + 2, before[2] + 1,
    ]  # fmt: skip
    assert "/nowhere" not in get(server, "/metrics")[1]


def test_metrics_tell_the_true_start_of_the_process():
    begin = time.time()
    server = Server()
    ready = time.time()
    try:
        # To a tick of the kernel's, 10 ms, and what the clocks differ by.
        assert begin - 0.05 <= metric(server, "process_start_time_seconds") <= ready + 0.05
        # Not the time of the scrape, nor that of loading.
        assert metric(server, "process_start_time_seconds") == metric(server, "process_start_time_seconds")
    finally:
        assert server.stop() == 0


def test_tokenize_round_trip(server):
    for text in ("Hello, world!", "naïve café 😀 漢字", " two  spaces\n\n\ttab"):
        request = urllib.request.Request(
            server.url + "/tokenize",
            data=json.dumps({"prompt": text, "add_special_tokens": False}).encode(),
        )
        tokens = json.load(urllib.request.urlopen(request))
        assert tokens["count"] == len(tokens["tokens"])
        request = urllib.request.Request(
            server.url + "/detokenize", data=json.dumps({"tokens": tokens["tokens"]}).encode()
        )
        assert json.load(urllib.request.urlopen(request))["prompt"] == text


def test_closed_connection_frees_everything(server):
    for stream in (True, False):
        aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="demo"}'
        before = _exact(server, aborted)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            body = json.dumps({**LONG, "stream": stream, "n": 8}).encode()
            raw.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (CHAT.encode(), len(body), body)
            )
            wait_until(lambda: metric(server, "vllm:num_requests_running") > 0)
        wait_until(lambda: metric(server, "vllm:num_requests_running") == 0)
        wait_until(lambda: _exact(server, aborted) == before + 1)
        assert metric(server, "vllm:kv_cache_usage_perc") == 0


def _exact(server, series):
    for line in get(server, "/metrics")[1].splitlines():
        if line.startswith(series):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(series)


def test_many_clients_get_what_one_gets(server, client):
    """Greedy answers under load equal those given alone."""
    questions = [f"What is {a} + {b}?" for a in range(2, 8) for b in range(3, 7)]

    def ask(question):
        return (
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=40,
            )
            .choices[0]
            .message.content
        )

    alone = [ask(q) for q in questions]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, questions))
    assert together == alone


def test_bad_json_and_odd_bodies(server):
    for body in (b"", b"{", b"[]", b"\xff", b"null", b'{"messages": 1}'):
        request = urllib.request.Request(server.url + CHAT, data=body)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code == 400
        assert "message" in json.load(error.value)["error"]


def test_model_may_be_left_out_and_the_short_path_works(server):
    request = urllib.request.Request(
        server.url + "/completions", data=json.dumps({"prompt": "Hello", "max_tokens": 3}).encode()
    )
    answer = json.load(urllib.request.urlopen(request))
    assert answer["model"] == "demo" and answer["choices"][0]["text"] is not None


def test_unknown_fields_are_named_in_a_header(server):
    request = urllib.request.Request(
        server.url + "/v1/completions",
        data=json.dumps({"prompt": "Hello", "max_tokens": 1, "temprature": 1}).encode(),
        headers={"X-Request-Id": "my-id-7"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["X-Quire-Ignored-Fields"] == "temprature"
        assert answer.headers["X-Request-Id"] == "my-id-7"


def test_api_key():
    server = Server("--api-key", "one", "--api-key", "two", "--served-model-name", "m")
    try:
        for key in ("one", "two"):
            assert server.client(key).models.list().data[0].id == "m"
            assert server.client(key).models.retrieve("m").id == "m"
        for key in ("three", "on", "onee"):
            with pytest.raises(openai.AuthenticationError):
                server.client(key).models.list()
            with pytest.raises(openai.AuthenticationError):
                server.client(key).models.retrieve("m")
        assert get(server, "/v1/models")[0] == 401
        assert get(server, "/tokenize")[0] in (401, 405)
        assert get(server, "/health")[0] == 200
        assert get(server, "/metrics")[0] == 200
    finally:
        assert server.stop() == 0


def test_models_by_name():
    """Also those whose names have slashes, however a client writes them."""
    names = ["m", "org/m", "a b é"]
    server = Server("--served-model-name", *names)
    try:
        client = server.client()
        listed = client.models.list().data
        assert [model.id for model in listed] == names
        assert [client.models.retrieve(name) for name in names] == listed
        assert json.loads(get(server, "/v1/models/org/m")[1])["id"] == "org/m"
        for name in ("n", "org", "m/", "M"):
            with pytest.raises(openai.NotFoundError, match=f"The model `{name}` does not exist"):
                client.models.retrieve(name)
    finally:
        assert server.stop() == 0


def test_sigterm_lets_running_requests_finish():
    server = Server()
    connection, answer = open_stream(server, {**LONG, "max_tokens": 1500})
    first = answer.readline()
    assert first
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: get(server, "/health/ready")[0] == 503)
    assert get(server, "/health/live")[0] == 200
    request = urllib.request.Request(server.url + CHAT, data=json.dumps(LONG).encode())
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 503 and error.value.headers["Retry-After"]
    rest = answer.read().decode()
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in rest
    connection.close()
    assert server.process.wait(timeout=30) == 0
    server.process.communicate()


def server_started_with(hangup):
    """A server that inherits `hangup`, SIGHUP's handler, whatever these tests themselves inherited."""
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        return Server()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_lets_running_requests_finish():
    server = server_started_with(signal.SIG_DFL)
    connection, answer = open_stream(server, {**LONG, "max_tokens": 1500})
    assert answer.readline()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: get(server, "/health/ready")[0] == 503)
    server.process.send_signal(signal.SIGHUP)
    rest = answer.read().decode()
    assert rest.rstrip().endswith("data: [DONE]") and '"finish_reason":"length"' in rest
    connection.close()
    assert server.process.wait(timeout=30) == 0
    server.process.communicate()


def test_nohup():
    server = server_started_with(signal.SIG_IGN)
    server.process.send_signal(signal.SIGHUP)
    assert get(server, "/health/ready")[0] == 200
    assert server.stop() == 0


def test_sigterm_is_seen_at_once():
    """Not at the next poll of anything: an idle server has nothing to wait for."""
    delays = []
    for _ in range(5):
        server = Server()
        begin = time.monotonic()
        assert server.stop() == 0
        delays.append(time.monotonic() - begin)
    assert statistics.median(delays) < 0.1, delays


def test_second_sigterm_ends_streams_with_an_error():
    server = Server("--max-model-len", "2048")
    connection, answer = open_stream(server, {**LONG, "n": 32})
    answer.readline()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: get(server, "/health/ready")[0] == 503)
    server.process.send_signal(signal.SIGTERM)
    rest = answer.read().decode()
    assert '"error"' in rest and rest.rstrip().endswith("data: [DONE]")
    connection.close()
    assert server.process.wait(timeout=30) == 75
    server.process.communicate()


def run(*args, **kwargs):
    return subprocess.run(
        [str(BINARY), *args], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_generate_command():
    plain = run("generate", "--chat", "--prompt", "What is 7 + 5?", "--temperature", "0")
    assert plain.returncode == 0 and "12" in plain.stdout
    result = run(
        "generate", "--chat", "--prompt", "What is 7 + 5?", "--temperature", "0",
        "--json", "--logprobs", "2",
    )
    answer = json.loads(result.stdout)
    assert answer["text"] == plain.stdout.rstrip("\n")
    assert answer["finish_reason"] == "stop"
    assert len(answer["token_ids"]) == len(answer["logprobs"]) == len(answer["top_logprobs"])
    assert all(len(top) == 2 for top in answer["top_logprobs"])
    assert answer["prompt_token_ids"]


def test_chat_command_against_a_server_and_in_process(server):
    for arguments in (["--url", server.url], []):
        result = run(
            "chat", "--temperature", "0", *arguments, input="What is 7 + 5?\nWhat is 2 + 2?\n"
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) == 2 and "12" in lines[0] and "4" in lines[1]


def test_chat_command_forgets_what_the_context_cannot_hold(server):
    story = "Tell me a short story about a fox."
    result = run(
        "chat", "--url", server.url, "--temperature", "0",
        input=f"{story}\n" * 30 + "What is 7 + 5?\n",
    )
    assert result.returncode == 0, result.stderr
    assert "outgrown" in result.stderr
    assert "12" in result.stdout.splitlines()[-1]


def test_chat_command_says_what_the_caller_did_wrong(server):
    result = run(
        "chat", "--url", server.url, "--served-model-name", "nobody", input="Hello\n"
    )
    assert result.returncode == 64 and "nobody" in result.stderr


def test_chat_command_without_a_server():
    result = run("chat", "--url", "http://127.0.0.1:1", input="Hello\n")
    assert result.returncode == 69 and "127.0.0.1:1" in result.stderr


def test_drain_command(server):
    wait_until(lambda: metric(server, "vllm:num_requests_running") == 0)
    assert run("drain", "--url", server.url, "--timeout", "10").returncode == 0
    assert run("drain", "--url", "http://127.0.0.1:1", "--timeout", "1").returncode == 69
    connection, answer = open_stream(server, LONG)
    answer.readline()
    assert run("drain", "--url", server.url, "--timeout", "0").returncode == 75
    connection.close()


def test_version_and_usage_errors():
    version = run("--version")
    assert version.returncode == 0 and "llama" in version.stdout and "cpu" in version.stdout
    for arguments, word in (
        ([], "subcommand"),
        (["fly"], "fly"),
        (["serve", "--nope"], "--nope"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--dtype", "int3"], "--dtype"),
        (["serve", "--kv-cache-dtype", "fp4"], "--kv-cache-dtype"),
        (["serve", "--max-model-len", "-5"], "--max-model-len"),
        (["serve", "--max-body-size", "0"], "--max-body-size"),
        (["serve", "--max-body-size", "999999999GiB"], "--max-body-size"),
        (["serve", "--api-key", ""], "--api-key"),
        (["serve", "--api-key-file", ""], "--api-key-file"),
    ):
        result = run(*arguments)
        assert result.returncode == 64 and word in result.stderr, result.stderr


def test_the_token_budget_covers_the_sequences_unless_it_is_given():
    server = Server("--max-num-seqs", "700")
    assert "700 sequences, 700 tokens a step" in server.banner
    assert server.stop() == 0
    result = run("serve", "--port", "0", "--max-num-seqs", "700", "--max-num-batched-tokens", "9")
    assert result.returncode == 64 and "max_num_batched_tokens" in result.stderr


def test_too_little_memory_exits_69_with_the_figures():
    for size in ("1000", "1048576GiB"):
        result = run("serve", "--port", "0", "--kv-cache-memory-bytes", size)
        assert result.returncode == 69, result.stderr
        figure = {"1000": "1000", "1048576GiB": str(1 << 50)}[size]
        assert figure in result.stderr


def test_model_faults_exit_65(tmp_path, server):
    def fault(change):
        import pathlib
        import shutil

        source = next(
            line.split(None, 1)[1] for line in server.banner.splitlines() if line.strip().startswith("model ")
        )
        target = tmp_path / "model"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        target.chmod(0o755)
        for path in target.iterdir():
            path.chmod(0o644)
        change(pathlib.Path(target))
        return run("serve", str(target), "--port", "0")

    def truncate(model):
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])

    def unknown_type(model):
        config = json.loads((model / "config.json").read_text())
        config["model_type"] = "wizard"
        (model / "config.json").write_text(json.dumps(config))

    def broken_tokenizer(model):
        (model / "tokenizer.json").write_text("{")

    def broken_template(model):
        config = json.loads((model / "tokenizer_config.json").read_text())
        config["chat_template"] = "{% for %}"
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        (model / "chat_template.jinja").unlink(missing_ok=True)

    for change, words in (
        (truncate, ["model.safetensors"]),
        (unknown_type, ["config.json", "wizard"]),
        (broken_tokenizer, ["tokenizer.json"]),
        (broken_template, ["tokenizer_config.json", "chat_template", "line 1"]),
    ):
        result = fault(change)
        assert result.returncode == 65, (change, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        for word in words:
            assert word in result.stderr
    assert run("serve", str(tmp_path / "missing"), "--port", "0").returncode == 65


def test_port_in_use_exits_69(server):
    result = run("serve", "--port", str(server.port))
    assert result.returncode == 69 and str(server.port) in result.stderr
