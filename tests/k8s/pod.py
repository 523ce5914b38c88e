"""One container of a Playground, and what a kubelet does with it."""

import itertools
import json
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKEND = ROOT / "deploy" / "k8s" / "backendruntime.yaml"
MULTI_HOST = ROOT / "deploy" / "k8s" / "multi-host.yaml"
EXAMPLES = sorted((ROOT / "deploy" / "k8s" / "examples").glob("*.yaml"))


class Pod:
    """Runs a rendered command and asks what the BackendRuntime's probes ask.

    `popen` is called as subprocess.Popen. `port` None: the container's own port is
    taken by a free one.
    """

    def __init__(self, command, backend, popen=subprocess.Popen, port=None):
        self.spec = backend["spec"]
        self.popen = popen
        if port is None:
            # As any argument of a Playground does, the later one wins.
            command = [*command, "--port", "0"]
        self.started = time.monotonic()
        self.process = popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.port = port or self.read_port()

    def read_port(self):
        for line in self.process.stdout:
            found = re.search(r"address\s+http://0\.0\.0\.0:(\d+)", line)
            if found:
                return int(found[1])
        raise RuntimeError(self.process.communicate()[1])

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def probe(self, name):
        """The status that `name` (startupProbe, ...) gets; 0: no answer in time."""
        probe = self.spec[name]
        try:
            with urllib.request.urlopen(
                self.url(probe["httpGet"]["path"]), timeout=probe["timeoutSeconds"]
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_until_started(self):
        """Seconds from exec to the first success of the startup probe."""
        deadline = self.started + 60
        while self.probe("startupProbe") != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(self.process.communicate()[1])
            time.sleep(0.001)
        return time.monotonic() - self.started

    def get(self, path):
        with urllib.request.urlopen(self.url(path), timeout=60) as answer:
            return json.load(answer)

    def num_running(self):
        with urllib.request.urlopen(self.url("/metrics"), timeout=60) as answer:
            text = answer.read().decode()
        return float(re.search(r"^vllm:num_requests_running\S* (\S+)$", text, re.MULTILINE)[1])

    def open(self, path, body):
        request = urllib.request.Request(
            self.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=60)

    def ask(self, question):
        """The body of the answer to the request of llmaz's own end-to-end test.

        No /v1, no model, no number of tokens (llmaz: test/util/validation).
        """
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        with self.open("/completions", {"prompt": prompt, "stream": False}) as answer:
            return answer.read().decode()

    def pre_stop(self, *more):
        """Starts the preStop command, in the container; `more` arguments follow."""
        command = self.spec["lifecycle"]["preStop"]["exec"]["command"]
        command = [part.replace(":8080", f":{self.port}") for part in command]
        return self.popen([*command, *more], stderr=subprocess.PIPE, text=True)

    def terminate(self):
        """SIGTERM, as after preStop: the exit code and what stderr said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def check_serving(pod, name):
    """What every Playground must do; `name` is its OpenModel's.

    Serves the demo model. Ends the pod; returns what it wrote to stderr.
    """
    assert [pod.probe(p) for p in ("livenessProbe", "readinessProbe")] == [200, 200]
    assert [model["id"] for model in pod.get("/v1/models")["data"]] == [name]
    answer = pod.ask("What is 7 + 5?")
    assert "12" in answer and f'"model":"{name}"' in answer

    # Nothing but one ordinary token: every step has text to send.
    long = {"prompt": "Once", "max_tokens": 1800, "allowed_token_ids": [300], "stream": True}
    with pod.open("/v1/completions", {"model": name, **long}) as stream:
        stream.readline()
        assert pod.num_running() > 0
        drain = pod.pre_stop("--settle", "0")
        for _ in itertools.islice(stream, 0, None, 20):
            # In this order: what runs after the end of drain ran before it.
            if drain.poll() is not None:
                assert pod.num_running() == 0, "preStop returned while a request ran"
    assert drain.wait(timeout=30) == 0, drain.stderr.read()
    code, errors = pod.terminate()
    assert code == 0, errors
    return errors
