"""Keys and limits of --api-key-file."""

import hashlib
import os

import openai
import pytest
from conftest import Server, wait_until


def entry(name, key, **limits):
    fields = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}
    return "- {" + ", ".join(f"{k}: {v}" for k, v in fields.items()) + "}\n"


def write(path, *entries):
    new = path.with_suffix(".new")
    new.write_text("keys:\n" + "".join(entries))
    os.replace(new, path)


@pytest.fixture
def keyed(tmp_path):
    path = tmp_path / "keys.yaml"
    write(
        path,
        entry("a", "key-of-a", max_concurrent_requests=1),
        entry("b", "key-of-b", tokens_per_minute=60),
        entry("c", "key-of-c", requests_per_minute=1),
    )
    server = Server("--api-key-file", str(path))
    yield server, path
    assert server.stop() == 0


def ask(server, key, max_tokens=2, **more):
    return server.client(api_key=key).completions.create(
        model="", prompt="once", max_tokens=max_tokens,
        extra_body={"ignore_eos": True}, **more
    )


def test_limits_of_keys(keyed):
    server, path = keyed
    with pytest.raises(openai.AuthenticationError):
        ask(server, "key-of-nobody")

    stream = ask(server, "key-of-a", max_tokens=1500, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as error:
        ask(server, "key-of-a")
    assert error.value.response.headers["retry-after"] == "1"
    assert error.value.code == "rate_limit_exceeded"
    assert "1 requests at a time" in error.value.message
    stream.close()

    def is_free_again():
        try:
            return ask(server, "key-of-a").usage.completion_tokens == 2
        except openai.RateLimitError:
            return False

    # A client that has gone no longer counts.
    wait_until(is_free_again)

    assert ask(server, "key-of-b", max_tokens=100).usage.completion_tokens == 100
    with pytest.raises(openai.RateLimitError) as error:
        ask(server, "key-of-b")
    assert 30 < int(error.value.response.headers["retry-after"]) < 60

    ask(server, "key-of-c")
    with pytest.raises(openai.RateLimitError):
        ask(server, "key-of-c")


def test_changed_file_counts_without_a_restart(keyed):
    server, path = keyed
    with pytest.raises(openai.AuthenticationError):
        ask(server, "key-of-d")
    write(path, entry("d", "key-of-d"))

    def is_in_force():
        try:
            ask(server, "key-of-d")
            return True
        except openai.AuthenticationError:
            return False

    wait_until(is_in_force)
    with pytest.raises(openai.AuthenticationError):
        ask(server, "key-of-a")
