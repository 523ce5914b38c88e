"""Starts the built program once and hands tests its address and clients."""

import os
import pathlib
import re
import signal
import subprocess
import time

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "bazel-bin" / "cli" / "quire"


class Server:
    """A `quire serve` process on a free port; waits until it is ready."""

    def __init__(self, *args, env=None, binary=BINARY):
        self.process = subprocess.Popen(
            [str(binary), "serve", "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.banner = ""
        self.port = None
        # The start-up table is printed once the model serves.
        for line in self.process.stdout:
            self.banner += line
            found = re.search(r"\baddress\W+http://[^\s\"]+:(\d+)", line)
            if found:
                self.port = int(found.group(1))
            # With --log-format json the table is one line.
            if line.strip().startswith("ready in") or '"ready_in":' in line:
                break
        if self.port is None:
            raise RuntimeError(self.process.communicate()[1])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, api_key="none"):
        return openai.OpenAI(
            base_url=self.url + "/v1", api_key=api_key, max_retries=0, timeout=60
        )

    def stop(self):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


def wait_until(condition, timeout=30):
    """Polls until `condition()` is true; fails the test on timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def server():
    started = Server()
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="session")
def client(server):
    return server.client()
