"""An edge and its cloud as processes."""

import hashlib
import json
import re
import subprocess
import threading
import urllib.error
import urllib.request

import openai
import pytest
from conftest import BINARY, ROOT, Server, wait_until

KEY = "an-edge-key"
PROMPT = "Write a short story about a lighthouse."


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(server, name):
    for line in get(server.url + "/metrics")[1].splitlines():
        if line.startswith(name + "{"):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name}")


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return str(path)


def start_cloud(*args):
    return Server("--api-key", KEY, "--enable-verify-link", "-t", "1", *args)


def start_edge(cloud, key_file, *args):
    return Server(
        "--verify-url", cloud.url, "--verify-api-key-file", key_file,
        "-t", "1", *args,
    )  # fmt: skip


def ask(client, **options):
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=60,
        logprobs=True,
        top_logprobs=2,
        **options,
    )
    return [
        (
            choice.message.content,
            choice.finish_reason,
            [(t.token, t.logprob) for t in choice.logprobs.content],
        )
        for choice in answer.choices
    ]


def test_answers_are_those_of_the_cloud(key_file):
    # In f32 the cloud's logits do not depend on what is verified beside.
    cloud = start_cloud("--dtype", "float32")
    edge = start_edge(cloud, key_file)
    try:
        assert get(edge.url + "/health/ready") == (200, '{"status":"ok"}')
        alone, linked = cloud.client(KEY), edge.client()
        for options in (
            {"temperature": 0},
            {"temperature": 0.9, "seed": 5, "n": 3},
            {"temperature": 1, "seed": 6, "presence_penalty": 0.7},
            {"temperature": 0.8, "seed": 7, "stop": ["the"]},
        ):
            assert ask(linked, **options) == ask(alone, **options)
        assert metric(edge, "quire:verify_link_up") == 1
        assert metric(edge, "quire:verify_link_round_trip_seconds") > 0
        assert metric(edge, "quire:offline_requests_total") == 0
        # Drafts as a server with a draft model of its own counts them.
        names = ("drafts", "draft_tokens", "accepted_tokens")
        drafts, drafted, accepted = (
            metric(edge, f"vllm:spec_decode_num_{name}_total") for name in names
        )
        by_position = [
            float(line.rsplit(" ", 1)[1])
            for line in get(edge.url + "/metrics")[1].splitlines()
            if line.startswith("vllm:spec_decode_num_accepted_tokens_per_pos_total{")
        ]
        assert len(by_position) == 5 and sum(by_position) == accepted
        assert drafts <= drafted and accepted <= drafted
        assert drafted <= metric(edge, "quire:verify_link_draft_tokens_total")
        usage = alone.completions.create(
            model="demo", prompt="Once", max_tokens=1
        ).usage.completion_tokens_details
        assert usage.accepted_prediction_tokens == 0
        assert usage.rejected_prediction_tokens == 0
        # The cloud's side; drafts that came too late came, too.
        assert metric(cloud, "quire:verify_links") == 1
        assert metric(cloud, "quire:verify_links_opened_total") == 1
        assert metric(cloud, "quire:verify_links_requests_total") == 4
        assert metric(cloud, "quire:verify_links_cut_off_total") == 0
        assert metric(cloud, "quire:verify_links_draft_tokens_total") <= metric(
            edge, "quire:verify_link_draft_tokens_total"
        )
    finally:
        assert edge.stop() == 0
        assert cloud.stop() == 0


def test_an_edge_without_its_cloud(key_file):
    cloud = start_cloud()
    strict = start_edge(cloud, key_file)
    lenient = start_edge(cloud, key_file, "--offline", "draft")
    try:
        # A cloud that dies in the middle of answers.
        streams = {}

        def read(name, server):
            pieces, fingerprints, error = "", set(), None
            try:
                for chunk in server.client().completions.create(
                    model="demo",
                    prompt="Once",
                    max_tokens=1900,
                    stream=True,
                    seed=1,
                    extra_body={"ignore_eos": True},
                ):
                    pieces += chunk.choices[0].text
                    fingerprints.add(chunk.system_fingerprint)
                    if not started[name].is_set():
                        started[name].set()
            except openai.APIError as raised:
                error = raised
            streams[name] = (pieces, fingerprints, error)

        started = {"strict": threading.Event(), "lenient": threading.Event()}
        threads = [
            threading.Thread(target=read, args=("strict", strict)),
            threading.Thread(target=read, args=("lenient", lenient)),
        ]
        for thread in threads:
            thread.start()
        for event in started.values():
            assert event.wait(30)
        cloud.process.kill()
        for thread in threads:
            thread.join(60)
        pieces, fingerprints, error = streams["strict"]
        assert pieces and error is not None and "link" in str(error)
        assert fingerprints == {None}
        pieces, fingerprints, error = streams["lenient"]
        assert pieces and error is None
        assert fingerprints == {None, "draft-model-offline"}

        # New requests.
        assert get(strict.url + "/health/ready")[0] == 503
        assert get(strict.url + "/health/live")[0] == 200
        with pytest.raises(openai.InternalServerError) as refused:
            ask(strict.client())
        assert refused.value.status_code == 503
        status, body = get(lenient.url + "/health/ready")
        assert status == 200 and "offline" in json.loads(body)["status"]
        answer = lenient.client().completions.create(
            model="demo", prompt="Hello", max_tokens=4
        )
        assert answer.system_fingerprint == "draft-model-offline"
        assert metric(lenient, "quire:offline_requests_total") == 2
        assert metric(lenient, "quire:verify_link_breaks_total") == 1

        # The cloud comes back where it was, with another context.
        again = subprocess.Popen(
            [str(BINARY), "serve", "--port", str(cloud.port), "--api-key", KEY,
             "--enable-verify-link", "-t", "1", "--max-model-len", "1000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for edge in (strict, lenient):
                wait_until(
                    lambda: get(edge.url + "/health/ready")
                    == (200, '{"status":"ok"}'),
                    timeout=60,
                )
                assert ask(edge.client(), temperature=0)
                served = json.loads(get(edge.url + "/v1/models")[1])["data"][0]
                assert served["max_model_len"] == 1000
        finally:
            again.terminate()
            again.wait(60)
    finally:
        strict.stop()
        lenient.stop()
        cloud.process.communicate()


def test_limits_of_a_key_hold_over_a_link(key_file, tmp_path):
    keys = tmp_path / "keys.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(
        f"keys:\n- {{name: team, sha256: {digest}, max_concurrent_requests: 1, "
        "tokens_per_minute: 100}\n"
    )
    cloud = Server(
        "--api-key-file", str(keys), "--enable-verify-link", "-t", "1"
    )
    edge = start_edge(cloud, key_file)
    try:
        client = edge.client()

        def tell(max_tokens, stream=False):
            return client.completions.create(
                model="demo", prompt="Once", max_tokens=max_tokens,
                stream=stream, extra_body={"ignore_eos": True},
            )  # fmt: skip

        # Of two at once the second is refused, until the first has ended.
        first = tell(1500, stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as refused:
            tell(4)
        assert "1 requests at a time" in refused.value.message
        assert int(refused.value.response.headers["retry-after"]) >= 1
        for _ in first:
            pass
        # It took more tokens than a minute has.
        with pytest.raises(openai.RateLimitError) as refused:
            tell(4)
        assert "100 tokens" in refused.value.message
        # As the key's own clients are told.
        with pytest.raises(openai.RateLimitError) as direct:
            cloud.client(KEY).completions.create(
                model="demo", prompt="Once", max_tokens=4
            )
        waits = [
            int(error.value.response.headers["retry-after"])
            for error in (refused, direct)
        ]
        assert waits[0] > 1 and abs(waits[0] - waits[1]) <= 2
    finally:
        assert edge.stop() == 0
        assert cloud.stop() == 0


def run(*args):
    return subprocess.run(
        [str(BINARY), "serve", "--port", "0", "-t", "1", *args],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_is_refused(key_file, tmp_path):
    cloud = start_cloud()
    plain = Server("-t", "1")
    try:
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong\n")
        answer = run("--verify-url", cloud.url, "--verify-api-key-file", str(wrong))
        assert answer.returncode == 64 and "401" in answer.stderr
        # It ends: nothing is to be tried again.
        assert "again" not in answer.stderr
        answer = run("--verify-url", cloud.url)
        assert answer.returncode == 64 and "401" in answer.stderr
        # A server that accepts no links.
        answer = run("--verify-url", plain.url)
        assert answer.returncode == 65 and "--enable-verify-link" in answer.stderr
        # Options that do not fit.
        for options in (
            ["--verify-url", "cloud.example"],
            ["--verify-url", cloud.url, "--speculative-model", "[ngram]"],
            ["--verify-url", cloud.url, "--enable-verify-link"],
            ["--verify-ca", "x.pem"],
            ["--verify-url", cloud.url, "--verify-ca", "/nonexistent"],
            ["--verify-url", cloud.url, "--verify-api-key-file", "/nonexistent"],
            ["--verify-url", "https://127.0.0.1:1", "--verify-ca", key_file],
        ):
            answer = run(*options)
            assert answer.returncode == 64 and "--verify" in answer.stderr
        answer = run("--offline", "draft")
        assert answer.returncode == 64
        assert "--offline draft needs --verify-url" in answer.stderr
        # What drafts may not be larger than what verifies.
        for stages in ("1", "2"):
            small = Server(
                str(ROOT / "models" / "demo-draft"), "--enable-verify-link", "-t", "1",
                "--pipeline-parallel-size", stages,
            )  # fmt: skip
            try:
                answer = run("--verify-url", small.url)
                assert answer.returncode == 65
                assert "5246208 parameters, more than the 1115392" in answer.stderr
                assert "again" not in answer.stderr
            finally:
                assert small.stop() == 0
        # Whoever is no edge gets an answer.
        assert get(plain.url + "/v1/verify")[0] == 404
        assert get(cloud.url + "/v1/verify")[0] == 401
    finally:
        assert cloud.stop() == 0
        assert plain.stop() == 0


def first_notice(url):
    """What an edge says of a link that does not come up; it is ended then."""
    edge = subprocess.Popen(
        [str(BINARY), "serve", "--port", "0", "-t", "1", "--verify-url", url],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        return next(line for line in edge.stderr if "link is down" in line)
    finally:
        edge.terminate()
        edge.communicate(timeout=60)


def test_a_url_of_the_wrong_scheme_is_named():
    plain = start_cloud()
    try:
        url = plain.url.replace("http://", "https://")
        assert "begins with http://" in first_notice(url)
    finally:
        assert plain.stop() == 0


def test_a_certificate_that_is_not_trusted_ends_the_edge(tmp_path):
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        " -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
        f" -keyout {key} -out {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )
    cloud = subprocess.Popen(
        [str(BINARY), "serve", "--port", "0", "--enable-verify-link", "-t", "1",
         "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        banner = ""
        for line in cloud.stdout:
            banner += line
            if line.strip().startswith("ready in"):
                break
        port = re.search(r"https://127.0.0.1:(\d+)", banner).group(1)
        answer = run("--verify-url", f"https://127.0.0.1:{port}")
        assert answer.returncode == 64
        assert "certificate is not trusted" in answer.stderr
        assert "again" not in answer.stderr
        # The other way round nothing is refused, and the reason is guessed.
        assert "begins with https://" in first_notice(f"http://127.0.0.1:{port}")
    finally:
        cloud.terminate()
        cloud.communicate(timeout=60)
