"""Scores of prompts as evaluation harnesses ask for them, on the demo model."""

import itertools
import string

import openai
import pytest

from conftest import Server
from test_openai_client import post

TEXT = "The fox ran over the hill. It was happy."


def encode(client, text):
    return post(client, "/tokenize", {"prompt": text})["tokens"]


def next_logprobs(client, ids, num=20):
    """Id and log-probability of the likeliest tokens after `ids`."""
    answer = client.completions.create(
        model="demo",
        prompt=ids,
        max_tokens=1,
        temperature=0,
        logprobs=num,
        extra_body={"return_tokens_as_token_ids": True, "ignore_eos": True},
    )
    top = answer.choices[0].logprobs.top_logprobs[0]
    return {int(key.split(":")[1]): value for key, value in top.items()}


def score(client, prompt, **fields):
    fields = {"max_tokens": 1, "logprobs": 5, "extra_body": {"ignore_eos": True}, **fields}
    return client.completions.create(model="demo", prompt=prompt, echo=True, temperature=0, **fields)


def test_echo_scores_are_those_of_the_next_token(client):
    # What the model itself wrote is among its likeliest tokens.
    extra = {"ignore_eos": True, "return_token_ids": True}
    written = client.completions.create(
        model="demo", prompt=TEXT, max_tokens=20, temperature=0.7, seed=1, extra_body=extra
    )
    ids = encode(client, TEXT) + written.choices[0].token_ids
    logprobs = score(client, ids, logprobs=20).choices[0].logprobs
    assert len(logprobs.token_logprobs) == len(ids) + 1
    num_seen = 0
    for i in range(1, len(ids)):
        top = next_logprobs(client, ids[:i])
        assert max(logprobs.top_logprobs[i].values()) == max(top.values())
        if ids[i] in top:
            assert logprobs.token_logprobs[i] == top[ids[i]]
            num_seen += 1
    assert num_seen >= 15


def loglikelihood(answer, num_context):
    """What lm-evaluation-harness computes of an answer with one drawn token."""
    total = {}
    for choice in sorted(answer.choices, key=lambda c: c.index):
        logprobs = choice.logprobs
        scores = logprobs.token_logprobs[num_context[choice.index] : -1]
        tops = logprobs.top_logprobs[num_context[choice.index] : -1]
        is_greedy = all(s == max(t.values()) for s, t in zip(scores, tops))
        total[choice.index] = (sum(scores), is_greedy)
    return total


def test_requests_of_an_evaluation_harness(client):
    context = encode(client, "What is 7 + 5?")
    greedy = client.completions.create(
        model="demo", prompt=context, max_tokens=4, temperature=0,
        extra_body={"return_token_ids": True},
    )
    continuation = greedy.choices[0].token_ids[:3]
    other = encode(client, " zebra")
    prompts = [context + continuation, context + other]
    answer = score(client, prompts, logprobs=1, seed=1234)
    found = loglikelihood(answer, [len(context)] * 2)
    assert found[0][1] and not found[1][1]
    assert found[0][0] > found[1][0]
    for choice, prompt in zip(answer.choices, prompts):
        logprobs = choice.logprobs
        for values in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            assert len(values) == len(prompt) + 1
        assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
        assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    # Alone, with every number of alternatives, and without the drawn token.
    for num, max_tokens in itertools.product(range(6), (0, 1)):
        alone = score(client, prompts[0], logprobs=num, max_tokens=max_tokens).choices[0].logprobs
        end = len(prompts[0]) + max_tokens
        assert alone.token_logprobs == answer.choices[0].logprobs.token_logprobs[:end]
        assert all(max(num, 1) <= len(top) <= num + 1 for top in alone.top_logprobs[1:])


def test_echo_text_and_offsets(client):
    for prompt in (TEXT, "Grüße, 世界 😀!"):
        answer = score(client, prompt, max_tokens=6)
        choice = answer.choices[0]
        assert choice.text.startswith(prompt)
        offsets = choice.logprobs.text_offset
        assert offsets[0] == 0 and offsets == sorted(offsets)
        for token, begin, end in zip(
            choice.logprobs.tokens, offsets, offsets[1:] + [len(choice.text)]
        ):
            if end > begin and "\ufffd" not in token:
                assert choice.text[begin:end] == token
        assert answer.usage.completion_tokens == 6
        chunks = list(score(client, prompt, max_tokens=6, stream=True))
        assert "".join(c.choices[0].text for c in chunks) == choice.text
        assert chunks[0].choices[0].text.startswith(prompt)
        streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
        for name in ("tokens", "token_logprobs", "text_offset"):
            values = list(itertools.chain(*(getattr(part, name) for part in streamed)))
            assert values == getattr(choice.logprobs, name)


def test_echo_alone(client):
    answer = score(client, TEXT, max_tokens=0)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0
    plain = client.completions.create(model="demo", prompt=TEXT, echo=True, max_tokens=0)
    assert plain.choices[0].text == TEXT and plain.choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="demo", prompt=TEXT, max_tokens=0)
    assert error.value.param == "max_tokens"


def check_prompt_logprobs(entries, ids, num):
    assert entries[0] is None and len(entries) == len(ids)
    for entry, token_id in zip(entries[1:], ids[1:]):
        assert next(iter(entry)) == str(token_id)
        ranks = sorted(value["rank"] for value in entry.values())
        assert ranks[:num] == list(range(1, num + 1))
        assert num <= len(entry) <= num + 1 or num == 0
        by_rank = sorted(entry.values(), key=lambda value: value["rank"])
        values = [value["logprob"] for value in by_rank]
        assert values == sorted(values, reverse=True)
        assert all(isinstance(value["decoded_token"], str) for value in by_rank)


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_logprobs_and_token_ids(client, stream):
    ids = encode(client, TEXT)
    extra = {"prompt_logprobs": 3, "return_token_ids": True, "ignore_eos": True}
    fields = {"model": "demo", "max_tokens": 5, "temperature": 0, "extra_body": extra}
    fields["stream"] = stream
    answer = client.completions.create(prompt=TEXT, **fields)
    chunks = list(answer) if stream else [answer]
    first = chunks[0].choices[0]
    assert first.prompt_token_ids == ids
    check_prompt_logprobs(first.prompt_logprobs, ids, 3)
    token_ids = list(itertools.chain(*(c.choices[0].token_ids for c in chunks)))
    assert len(token_ids) == 5
    scored = score(client, TEXT, max_tokens=0).choices[0].logprobs.token_logprobs
    for token_id, entry, value in zip(ids[1:], first.prompt_logprobs[1:], scored[1:]):
        assert entry[str(token_id)]["logprob"] == value

    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "Hello!"}], **fields
    )
    chunks = list(answer) if stream else [answer]
    check_prompt_logprobs(chunks[0].prompt_logprobs, chunks[0].prompt_token_ids, 3)
    token_ids = list(itertools.chain(*(c.choices[0].token_ids for c in chunks)))
    assert len(token_ids) == 5


def test_cached_prompts_are_scored_alike(client):
    ids = encode(client, TEXT + string.ascii_letters)
    first = score(client, ids, max_tokens=0)
    again = score(client, ids, max_tokens=0)
    assert again.choices[0].logprobs == first.choices[0].logprobs
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    plain = client.completions.create(model="demo", prompt=ids, max_tokens=1)
    assert plain.usage.prompt_tokens_details.cached_tokens > 0


def test_best_of(client):
    fields = {"model": "demo", "prompt": TEXT, "max_tokens": 8, "seed": 3, "logprobs": 0}
    fields["extra_body"] = {"ignore_eos": True}
    drawn = client.completions.create(n=5, **fields)
    best = client.completions.create(n=2, best_of=5, **fields)

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    expected = sorted(drawn.choices, key=mean, reverse=True)[:2]
    assert [c.text for c in best.choices] == [c.text for c in expected]
    assert [c.index for c in best.choices] == [0, 1]
    assert best.usage.completion_tokens == drawn.usage.completion_tokens == 40
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(n=1, best_of=2, stream=True, **fields)
    assert error.value.param == "best_of"


def test_answers_have_a_limit(client):
    fields = {"model": "demo", "prompt": [[5] * 1700] * 128, "max_tokens": 1}
    for extra, param in (
        ({"prompt_logprobs": 20}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 20}, "logprobs"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**fields, extra_body=extra)
        assert error.value.param == param


def test_truncation(client):
    ids = encode(client, TEXT)
    for side, expected in ((None, ids[-4:]), ("left", ids[-4:]), ("right", ids[:4])):
        extra = {"truncate_prompt_tokens": 4, "return_token_ids": True}
        if side is not None:
            extra["truncation_side"] = side
        answer = client.completions.create(
            model="demo", prompt=ids, max_tokens=1, extra_body=extra
        )
        assert answer.choices[0].prompt_token_ids == expected
        assert answer.usage.prompt_tokens == 4


def test_priority_needs_its_policy(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="demo", prompt="a", extra_body={"priority": 1})
    assert error.value.param == "priority"
    server = Server("--scheduling-policy", "priority")
    try:
        answer = server.client().completions.create(
            model="demo", prompt="a", max_tokens=2, extra_body={"priority": -1}
        )
        assert answer.usage.completion_tokens >= 1
    finally:
        assert server.stop() == 0
