"""The official Python client against embedding models."""

import json
import math
import urllib.request

import openai
import pytest
from conftest import ROOT, Server

GOLDENS = ROOT / "tests" / "testdata" / "goldens"
# f32 all through, as the goldens are; see tests/golden_embeddings_test.cc.
OPTIONS = ("--dtype", "float32", "--kv-cache-dtype", "f32", "--threads", "2")
MAX_ERROR = 1e-5


@pytest.fixture(scope="module")
def embedder():
    started = Server(str(GOLDENS / "embed_qwen3"), *OPTIONS)
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def embeddings(embedder):
    return embedder.client().embeddings


@pytest.fixture(scope="module")
def golden():
    cases = json.loads((GOLDENS / "embed_qwen3" / "golden.json").read_text())["cases"]
    return [case for case in cases if "text" in case]


def error_of(call):
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    return caught.value


def assert_near(found, expected, tolerance=MAX_ERROR):
    assert len(found) == len(expected)
    assert max(abs(a - b) for a, b in zip(found, expected)) <= tolerance


def test_texts_are_what_transformers_says(embedder, embeddings, golden):
    assert "64 dimensions, last token, normalized" in embedder.banner
    texts = [case["text"] for case in golden]
    answer = embeddings.create(model="embed_qwen3", input=texts, encoding_format="float")
    assert answer.object == "list" and answer.model == "embed_qwen3"
    assert [item.index for item in answer.data] == list(range(len(texts)))
    for item, case in zip(answer.data, golden):
        assert item.object == "embedding"
        assert_near(item.embedding, case["embedding"])
    num_tokens = sum(len(case["prompt"]) for case in golden)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens


def test_base64_is_the_same(embeddings, golden):
    # Without encoding_format the client asks for base64 and decodes it.
    text = golden[1]["text"]
    packed = embeddings.create(model="embed_qwen3", input=text).data[0].embedding
    plain = embeddings.create(model="embed_qwen3", input=text, encoding_format="float")
    assert_near(packed, plain.data[0].embedding, 1e-8)
    raw = embeddings.with_raw_response.create(
        model="embed_qwen3", input=text, encoding_format="base64"
    )
    assert isinstance(json.loads(raw.text)["data"][0]["embedding"], str)


def test_token_ids(embeddings, golden):
    ids = [case["prompt"] for case in golden]
    answer = embeddings.create(model="embed_qwen3", input=ids)
    for item, case in zip(answer.data, golden):
        assert_near(item.embedding, case["embedding"])
    one = embeddings.create(model="embed_qwen3", input=ids[0])
    assert len(one.data) == 1
    assert_near(one.data[0].embedding, golden[0]["embedding"])


def test_dimensions_cut_and_normalize(embeddings, golden):
    case = golden[0]
    short = embeddings.create(model="embed_qwen3", input=case["text"], dimensions=16)
    expected = case["embedding"][:16]
    length = math.sqrt(sum(x * x for x in expected))
    assert_near(short.data[0].embedding, [x / length for x in expected])
    plain = embeddings.create(
        model="embed_qwen3", input=case["text"], dimensions=16, extra_body={"normalize": False}
    )
    scale = plain.data[0].embedding[0] / case["embedding"][0]
    assert scale > 1.5
    assert_near([x / scale for x in plain.data[0].embedding], expected)


def test_truncation_keeps_the_end_token(embeddings):
    def embed(text, **extra):
        return embeddings.create(model="embed_qwen3", input=text, extra_body=extra)

    cut = embed("abcdefgh", truncate_prompt_tokens=4)
    assert cut.usage.prompt_tokens == 4
    assert_near(cut.data[0].embedding, embed("abc").data[0].embedding)
    left = embed("abcdefgh", truncate_prompt_tokens=4, truncation_side="left")
    assert_near(left.data[0].embedding, embed("fgh").data[0].embedding)
    whole = embed("a" * 600, truncate_prompt_tokens=-1)
    assert whole.usage.prompt_tokens == 512


def test_errors_name_the_parameter(embeddings):
    def create(**fields):
        return error_of(lambda: embeddings.create(model="embed_qwen3", **fields))

    assert create(input="").param == "input"
    assert create(input=[]).param == "input"
    assert create(input=[[1], [288]]).param == "input"
    assert create(input="a", dimensions=65).param == "dimensions"
    assert create(input="a", encoding_format="int8").param == "encoding_format"
    too_long = create(input="a b " * 600)
    assert too_long.param == "input" and too_long.code == "context_length_exceeded"
    assert create(input=["a"] * 2049).param == "input"
    with pytest.raises(openai.NotFoundError):
        embeddings.create(model="other", input="a")


def test_thousands_of_inputs(embedder, embeddings):
    """More than the queue takes; what they say does not depend on the company."""
    texts = [f"text number {i}" for i in range(2048)]
    answer = embeddings.create(model="embed_qwen3", input=texts, encoding_format="float")
    assert [item.index for item in answer.data] == list(range(2048))
    for i in (0, 700, 2047):
        alone = embeddings.create(model="embed_qwen3", input=texts[i], encoding_format="float")
        assert alone.data[0].embedding == answer.data[i].embedding
    with urllib.request.urlopen(embedder.url + "/metrics") as metrics:
        lines = metrics.read().decode().splitlines()
    (ended,) = [
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("vllm:request_success_total") and '"stop"' in line
    ]
    assert ended >= 2048


def test_an_embedding_model_does_not_chat(embedder):
    client = embedder.client()
    message = [{"role": "user", "content": "hi"}]
    chat = error_of(lambda: client.chat.completions.create(model="embed_qwen3", messages=message))
    assert chat.param == "model" and "Chat Completions" in chat.message
    text = error_of(lambda: client.completions.create(model="embed_qwen3", prompt="hi"))
    assert text.param == "model" and "/v1/embeddings" in text.message


def test_a_chat_model_does_not_embed_unless_asked(client):
    error = error_of(lambda: client.embeddings.create(model="demo", input="hi"))
    assert error.param == "model" and "--runner pooling" in error.message
    asked = Server("--runner", "pooling", "--pooling", "mean", "--threads", "2")
    try:
        assert "mean" in asked.banner
        # A prefix that was cached must not change a mean of every token.
        text = "The fox jumps over the lazy dog and then rests for a while. " * 3
        embed = asked.client().embeddings.create
        first = embed(model="demo", input=text + "Then it sleeps.")
        again = embed(model="demo", input=text + "Then it sleeps.")
        assert first.data[0].embedding == again.data[0].embedding
        assert sum(x * x for x in first.data[0].embedding) == pytest.approx(1, abs=1e-5)
    finally:
        assert asked.stop() == 0
