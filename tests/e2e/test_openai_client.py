"""The official Python client against the demo model."""

import json
import math
import re
import urllib.request

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is 7 + 5?"}]
LONG = [{"role": "user", "content": "Tell me a short story about a fox."}]


def post(client, path, body):
    """The JSON answer of a route outside the OpenAI API."""
    url = str(client.base_url).replace("/v1/", path)
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as answer:
        return json.load(answer)


def stream_text(stream):
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_chat_answers(client):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == "demo"
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert "12" in choice.message.content
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5 and usage.completion_tokens > 0


def test_chat_stream_equals_the_whole(client):
    whole = client.chat.completions.create(model="demo", messages=LONG, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=LONG,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert stream_text(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    *inner, finish, usage = chunks
    assert all(c.choices[0].finish_reason is None for c in inner)
    assert all(c.choices[0].delta.role is None for c in inner[1:])
    assert finish.choices[0].finish_reason == "stop"
    assert finish.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({c.id for c in chunks}) == 1
    assert all(c.object == "chat.completion.chunk" for c in chunks)


def test_system_message_and_turns(client):
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
    ]
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert answer.choices[0].message.content


def test_max_tokens(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="demo", messages=LONG, temperature=0, **{name: 5}
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 5


def test_stop_string(client):
    free = client.chat.completions.create(model="demo", messages=LONG, temperature=0)
    text = free.choices[0].message.content
    stop = text[10:14]
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="demo", messages=LONG, temperature=0, stop=[stop, "zzzz"], stream=stream
        )
        if stream:
            got = stream_text(answer)
        else:
            got = answer.choices[0].message.content
            assert answer.choices[0].finish_reason == "stop"
            assert answer.choices[0].stop_reason == stop
            assert answer.usage.completion_tokens < free.usage.completion_tokens
        assert got == text[: text.index(stop)]
    kept = client.chat.completions.create(
        model="demo",
        messages=LONG,
        temperature=0,
        stop=stop,
        extra_body={"include_stop_str_in_output": True},
    )
    assert kept.choices[0].message.content == text[: text.index(stop) + len(stop)]


def test_stop_token_ids(client):
    free = client.chat.completions.create(model="demo", messages=LONG, temperature=0)
    text = free.choices[0].message.content
    ids = post(client, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    assert len(ids) > 5
    answer = client.chat.completions.create(
        model="demo", messages=LONG, temperature=0, extra_body={"stop_token_ids": [ids[4]]}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == ids[4]
    assert text.startswith(answer.choices[0].message.content)
    assert answer.usage.completion_tokens <= 5


def test_seed_repeats_and_differs(client):
    def draw(seed):
        return (
            client.chat.completions.create(
                model="demo", messages=LONG, temperature=1.0, seed=seed, max_tokens=40
            )
            .choices[0]
            .message.content
        )

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def test_n_choices(client):
    answer = client.chat.completions.create(
        model="demo", messages=LONG, temperature=1.0, seed=11, n=4, max_tokens=30
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    texts = [c.message.content for c in answer.choices]
    assert len(set(texts)) > 1
    # The choices of a stream are those of the whole answer.
    parts = [""] * 4
    for chunk in client.chat.completions.create(
        model="demo", messages=LONG, temperature=1.0, seed=11, n=4, max_tokens=30, stream=True
    ):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == texts


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=5
    )
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        assert entry.logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 5
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        # Greedy: the token drawn is the most likely one.
        assert entry.token == entry.top_logprobs[0].token
        assert math.isclose(entry.logprob, values[0], abs_tol=1e-6)
        assert sum(math.exp(v) for v in values) <= 1.0001
    streamed = []
    for chunk in client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=5, stream=True
    ):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [e.token for e in streamed] == [e.token for e in content]


def test_completions(client):
    answer = client.completions.create(
        model="demo", prompt="Once upon a time", max_tokens=12, temperature=0, logprobs=3
    )
    choice = answer.choices[0]
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert choice.finish_reason in ("length", "stop")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    assert all(len(top) <= 3 for top in choice.logprobs.top_logprobs)
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens):
        assert choice.text[offset : offset + len(token)] == token
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="demo", prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
        )
    )
    assert text == choice.text


def test_completion_defaults_to_16_tokens(client):
    answer = client.completions.create(
        model="demo", prompt="Once upon a time", temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 16


def test_several_prompts(client):
    prompts = ["One, two, three,", "Red, green,"]
    alone = [
        client.completions.create(model="demo", prompt=p, temperature=0, max_tokens=8)
        .choices[0]
        .text
        for p in prompts
    ]
    both = client.completions.create(
        model="demo", prompt=prompts, temperature=0, max_tokens=8, n=2
    )
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert [c.text for c in both.choices] == [alone[0]] * 2 + [alone[1]] * 2


def test_prompt_of_token_ids(client):
    by_text = client.completions.create(model="demo", prompt="Hello", temperature=0, max_tokens=8)
    ids = post(client, "/tokenize", {"prompt": "Hello"})["tokens"]
    by_ids = client.completions.create(model="demo", prompt=ids, temperature=0, max_tokens=8)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage.prompt_tokens == len(ids)


def test_prefix_cache_is_counted_and_harmless(client):
    messages = [{"role": "user", "content": "Please repeat: " + "alpha beta gamma " * 20}]
    first = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    second = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens >= 16
    assert second.usage.prompt_tokens_details.cached_tokens % 16 == 0
    assert second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content
    salted = client.chat.completions.create(
        model="demo", messages=messages, temperature=0, extra_body={"cache_salt": "other"}
    )
    assert salted.usage.prompt_tokens_details.cached_tokens == 0


def test_logit_bias_and_allowed_ids(client):
    forced = client.completions.create(
        model="demo", prompt="Hello", temperature=0, max_tokens=3, logit_bias={"300": 100}
    )
    wanted = post(client, "/detokenize", {"tokens": [300, 300, 300]})["prompt"]
    assert forced.choices[0].text == wanted
    only = client.completions.create(
        model="demo", prompt="Hello", max_tokens=3, extra_body={"allowed_token_ids": [300]}
    )
    assert only.choices[0].text == forced.choices[0].text


def draws(client, **options):
    """Chosen token and its alternatives, most likely first, of each position."""
    extra_body = {"ignore_eos": True, **options.pop("extra_body", {})}
    answer = client.completions.create(
        model="demo",
        prompt="Once upon a time",
        max_tokens=60,
        logprobs=20,
        extra_body=extra_body,
        **options,
    )
    logprobs = answer.choices[0].logprobs
    return list(zip(logprobs.tokens, (list(top.items()) for top in logprobs.top_logprobs)))


def test_bad_words(client):
    def answer(*words):
        return (
            client.chat.completions.create(
                model="demo",
                messages=LONG,
                temperature=0,
                max_tokens=60,
                extra_body={"bad_words": list(words)},
            )
            .choices[0]
            .message.content
        )

    free = answer()
    words = [word for word in re.findall(r"[a-z]{3,}", free)]
    assert len(words) > 5
    for word in words[:6]:
        assert not re.search(rf"\b{word}\b", answer(word)), word
    # Of two words in a row only the second is banned, and only there.
    pair = re.search(r"\b[a-z]+ [a-z]+\b", free).group()
    changed = answer(pair)
    assert not re.search(rf"\b{pair}\b", changed)
    assert changed.startswith(free[: free.index(pair)])
    # What never comes changes nothing.
    assert answer("xyzzy quux") == free


def test_dry_ends_loops(client):
    """With a bias, one token follows itself until DRY outweighs the bias."""

    def num_repeats(**options):
        answer = client.completions.create(
            model="demo",
            prompt="Hello",
            temperature=0,
            max_tokens=10,
            logit_bias={"300": 100},
            extra_body={"ignore_eos": True, **options},
        )
        tokens = post(client, "/detokenize", {"tokens": [300] * 10})["prompt"]
        size = len(tokens) // 10
        text = answer.choices[0].text
        return next(n for n in range(10, -1, -1) if text.startswith(tokens[: n * size]))

    assert num_repeats() == 10
    # The sixth would follow a repeat of four.
    strong = {"dry_multiplier": 1000, "dry_allowed_length": 4}
    assert num_repeats(**strong) == 5
    assert num_repeats(**strong, dry_penalty_last_n=5) == 5
    # 1 * 3 ^ 4 is not enough against the bias, 3 ^ 5 is.
    growing = {"dry_multiplier": 1, "dry_base": 3, "dry_allowed_length": 1}
    assert num_repeats(**growing) == 7
    # Each of these turns it off.
    for off in (
        {"dry_multiplier": 0},
        {"dry_allowed_length": 9},
        {"dry_penalty_last_n": 0},
        {"dry_penalty_last_n": 4},
        {"dry_sequence_breakers": [post(client, "/detokenize", {"tokens": [300]})["prompt"]]},
    ):
        assert num_repeats(**{**strong, **off}) == 10, off


def test_xtc_excludes_top_choices(client):
    options = {"xtc_probability": 1, "xtc_threshold": 0.02}
    num_excluded = 0
    for seed in range(5):
        for chosen, top in draws(client, temperature=1, seed=seed, extra_body=options):
            likely = [token for token, logprob in top if math.exp(logprob) >= 0.02]
            # All but the last of the likely ones are gone.
            assert chosen not in likely[:-1]
            num_excluded += len(likely) > 1
    assert num_excluded > 10
    same = {"temperature": 1, "seed": 3}
    plain = draws(client, **same)
    assert draws(client, **same, extra_body={"xtc_probability": 0, "xtc_threshold": 0.02}) == plain
    # No two tokens can have more than half.
    assert draws(client, **same, extra_body={"xtc_probability": 1, "xtc_threshold": 0.51}) == plain
    # Greedy takes the likeliest whatever the filters are.
    greedy = [chosen for chosen, _ in draws(client, temperature=0)]
    assert [c for c, _ in draws(client, temperature=0, extra_body=options)] == greedy


@pytest.mark.parametrize(
    "options", [{"top_n_sigma": 0.0001}, {"top_n_sigma": 0.0001, "dynatemp_range": 0.5}]
)
def test_top_n_sigma_of_almost_nothing_is_greedy(client, options):
    greedy = [chosen for chosen, _ in draws(client, temperature=0)]
    wild = draws(client, temperature=2, seed=5)
    assert [chosen for chosen, _ in wild] != greedy
    tame = draws(client, temperature=2, seed=5, extra_body=options)
    assert [chosen for chosen, _ in tame] == greedy
    assert draws(client, temperature=2, seed=5, extra_body={"top_n_sigma": -1}) == wild


def test_typical_p_and_dynatemp(client):
    wild = draws(client, temperature=1.5, seed=6)
    assert draws(client, temperature=1.5, seed=6, extra_body={"typical_p": 1.0}) == wild
    assert draws(client, temperature=1.5, seed=6, extra_body={"typical_p": 0.2}) != wild
    assert draws(client, temperature=1.5, seed=6, extra_body={"dynatemp_range": 1.5}) != wild


def test_special_tokens_in_text_stay_text(client):
    """A user who writes the end marker does not end his message."""
    message = "Repeat exactly: <|im_end|>"
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": message}], temperature=0, max_tokens=30
    )
    tokens = post(
        client,
        "/tokenize",
        {"messages": [{"role": "user", "content": message}], "return_token_strs": True},
    )
    assert tokens["count"] == answer.usage.prompt_tokens
    assert tokens["token_strs"].count("<|im_end|>") == 1


@pytest.mark.parametrize(
    "change, parameter",
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"extra_body": {"bad_words": [" "]}}, "bad_words"),
        ({"extra_body": {"dry_base": 0.5}}, "dry_base"),
        ({"extra_body": {"xtc_probability": 2}}, "xtc_probability"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"top_logprobs": 3}, "top_logprobs"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "messages"),
    ],
)
def test_bad_requests_name_the_parameter(client, change, parameter):
    arguments = {"model": "demo", "messages": QUESTION, **change}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**arguments)
    assert error.value.status_code == 400
    assert error.value.body["param"] == parameter
    assert error.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["", [], [[]], [10**6]])
def test_bad_prompts(client, prompt):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="demo", prompt=prompt)
    assert error.value.body["param"] == "prompt"


def test_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    assert error.value.body["code"] == "model_not_found"


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["demo"]
    assert models[0].max_model_len >= 1024
