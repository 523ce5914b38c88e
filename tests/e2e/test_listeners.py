"""The ways in beside plain HTTP on one port."""

import http.client
import os
import re
import socket
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request

import pytest
from conftest import BINARY, Server


def get(url, context=None):
    with urllib.request.urlopen(url, timeout=30, context=context) as answer:
        return answer.status, answer.read().decode()


def start(*args):
    """A server whose address is not http://HOST:PORT, and its banner."""
    process = subprocess.Popen(
        [str(BINARY), "serve", "--port", "0", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    banner = ""
    for line in process.stdout:
        banner += line
        if line.strip().startswith("ready in"):
            return process, banner
    raise RuntimeError(process.communicate()[1])


def run(*args, input=""):
    return subprocess.run(
        [str(BINARY), *map(str, args)], input=input, capture_output=True, text=True, timeout=120
    )


def stop(process):
    process.terminate()
    process.communicate(timeout=60)
    return process.returncode


def test_operations_port_has_probes_and_metrics_only():
    server = Server("--ops-port", "0", "--api-key", "secret")
    try:
        ops = int(
            re.search(r"operations http://127.0.0.1:(\d+)", server.banner).group(1)
        )
        assert ops != server.port
        base = f"http://127.0.0.1:{ops}"
        assert get(base + "/health")[0] == 200
        assert get(base + "/health/live")[0] == 200
        assert "vllm:num_requests_running" in get(base + "/metrics")[1]
        for path in ("/v1/models", "/"):
            with pytest.raises(urllib.error.HTTPError) as error:
                get(base + path)
            assert error.value.code == 404
        # llmaz and gateways look at the main port.
        assert get(server.url + "/health")[0] == 200
        assert get(server.url + "/metrics")[0] == 200
    finally:
        assert server.stop() == 0


def test_unix_socket():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "quire.sock")
        process, banner = start("--uds", path)
        try:
            assert f"unix:{path}" in banner
            connection = http.client.HTTPConnection("localhost", timeout=30)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(path)
            connection.request(
                "POST",
                "/v1/completions",
                '{"prompt": "hello", "max_tokens": 3}',
                {"Content-Type": "application/json"},
            )
            assert connection.getresponse().status == 200
            connection.close()
            for url in (f"unix:{path}", f"unix://{path}"):
                assert run("drain", "--url", url, "--timeout", "60").returncode == 0
            chat = run(
                "chat", "--url", f"unix:{path}", "--temperature", "0",
                input="What is 7 + 5?\n",
            )
            assert chat.returncode == 0 and "12" in chat.stdout, chat.stderr
        finally:
            assert stop(process) == 0
        assert not os.path.exists(path)
        gone = run("drain", "--url", f"unix:{path}")
        assert gone.returncode == 69 and path in gone.stderr
        assert run("drain", "--url", "unix:").returncode == 64


def test_tls():
    with tempfile.TemporaryDirectory() as directory:
        certificate = os.path.join(directory, "server.pem")
        key = os.path.join(directory, "server.key")
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
            " -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
            f" -keyout {key} -out {certificate}",
            shell=True,
            check=True,
            capture_output=True,
        )
        process, banner = start("--ssl-certfile", certificate, "--ssl-keyfile", key)
        try:
            port = int(re.search(r"https://127.0.0.1:(\d+)", banner).group(1))
            context = ssl.create_default_context(cafile=certificate)
            context.set_alpn_protocols(["h2", "http/1.1"])
            status, text = get(f"https://127.0.0.1:{port}/v1/models", context)
            assert status == 200 and '"data"' in text
            with pytest.raises(OSError):
                get(f"http://127.0.0.1:{port}/health")
            url = f"https://127.0.0.1:{port}"
            own = ["--url", url, "--ca-file", certificate]
            assert run("drain", *own).returncode == 0
            chat = run("chat", *own, "--temperature", "0", input="What is 7 + 5?\n")
            assert chat.returncode == 0 and "12" in chat.stdout, chat.stderr
            stranger = run("drain", "--url", url)
            assert stranger.returncode == 69
            assert "the system's certificates" in stranger.stderr
            for wrong in (key, "/nowhere.pem"):
                result = run("drain", "--url", url, "--ca-file", wrong)
                assert result.returncode == 64 and wrong in result.stderr
        finally:
            assert stop(process) == 0


def test_files_of_tls_that_are_none_say_why(tmp_path):
    text = tmp_path / "text.pem"
    text.write_text("no certificate\n")
    for path, why in (("/nowhere.pem", "No such file"), (text, "holds none in PEM")):
        result = run("serve", "--port", "0", "--ssl-certfile", path, "--ssl-keyfile", path)
        assert result.returncode == 64
        assert f"TLS certificate {path}: " in result.stderr and why in result.stderr
        assert "error:" not in result.stderr


def test_certificate_without_key_is_a_usage_error():
    result = subprocess.run(
        [str(BINARY), "serve", "--port", "0", "--ssl-certfile", "/nowhere.pem"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 64
    assert "--ssl-certfile needs the key of the certificate" in result.stderr
