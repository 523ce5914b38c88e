"""The chat page in a real browser: chat, stop, settings, storage, status, errors."""

import contextlib
import http.client
import json
import queue
import re
import time
import urllib.error
import urllib.request

import pytest
from browser import SHIFT, Browser
from conftest import Server, wait_until
from scripted_server import DONE, ScriptedServer, event

STORY = "Tell me a short story about a fox."
READY = "document.querySelector('#model').options.length > 0"
BUSY = "document.querySelector('.busy') !== null"
HOSTILE = (
    "<img src=x onerror=window.pwned=1><script>window.pwned=2</script>"
    "<svg onload=window.pwned=3></svg><a href='javascript:window.pwned=4'>x</a>"
)


def answers(count):
    """True in the page once it shows `count` complete answers and no other."""
    return f"document.querySelectorAll('.assistant .stats').length === {count} && !({BUSY})"


@pytest.fixture(scope="module")
def browser():
    started = Browser()
    yield started
    started.close()


@pytest.fixture
def new_page(browser):
    """Opens pages; in the end none of them may have had a problem."""
    pages = []

    def create(url=None, **kwargs):
        page = browser.new_page(**kwargs)
        pages.append(page)
        if url is not None:
            page.open(url)
        return page

    yield create
    for page in reversed(pages):
        assert page.problems == []
        # Nothing is loaded from anywhere else.
        assert all(request["url"].startswith(("http://127.0.0.1:", "data:", "blob:")) for request in page.requests)
        page.close()


@pytest.fixture
def page(server, new_page):
    opened = new_page(server.url + "/")
    opened.wait(READY)
    return opened


def ask(page, text):
    page.click("#draft")
    page.type(text)
    page.press("Enter")


def set_field(page, name, value):
    """In the settings, which it opens."""
    if page.js("document.querySelector('#settings').hidden"):
        page.click("#settings-button")
    page.fill("#" + name, str(value))


def chat_requests(page):
    return [json.loads(r["postData"]) for r in page.requests if r["method"] == "POST"]


def failure(words):
    """True in the page once it shows a failure with these words."""
    return f"[...document.querySelectorAll('#log .failed')].some((e) => e.innerText.includes({json.dumps(words)}))"


def figures(server):
    """/metrics as {series: value}."""
    with urllib.request.urlopen(server.url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def figure(server, name):
    return sum(value for series, value in figures(server).items() if series.split("{")[0] == name)


def quantile(server, name, q):
    """As Prometheus' histogram_quantile."""
    buckets = sorted(
        (float(re.search(r'le="([^"]+)"', series).group(1)), count)
        for series, count in figures(server).items()
        if series.startswith(name + "_bucket{")
    )
    rank = q * buckets[-1][1]
    low = below = 0
    for bound, count in buckets:
        if count >= rank:
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count


# ---- Chat ----


def test_a_message_gets_an_answer(page):
    set_field(page, "temperature", 0)
    ask(page, STORY)
    page.wait(answers(1))
    text = page.text(".assistant .body")
    assert len(text) > 100
    stats = page.text(".assistant .stats")
    assert re.match(r"\d+ tokens · ([\d.]+ tokens/s · )?first token after [\d.]+ m?s · prompt \d+", stats), stats
    assert page.js("document.activeElement.id") == "draft"
    assert page.text("#announcer") == "Answer: " + text.replace("\n", " ")
    assert page.js("document.title").startswith(STORY)

    ask(page, "What is 7 + 5?")
    page.wait(answers(2))
    assert "12" in page.texts(".assistant .body")[1]
    # The second request carries the conversation.
    assert [m["role"] for m in chat_requests(page)[1]["messages"]] == ["user", "assistant", "user"]


def test_figures_of_an_answer_are_the_servers(server, page):
    before = figure(server, "vllm:generation_tokens_total")
    set_field(page, "max_tokens", 7)
    ask(page, STORY)
    page.wait(answers(1))
    stats = page.text(".assistant .stats")
    assert stats.startswith("7 tokens · ") and "cut off at the length limit" in stats
    assert figure(server, "vllm:generation_tokens_total") == before + 7


def test_shift_enter_makes_a_line_and_enter_sends(page):
    page.click("#draft")
    page.type("What is")
    page.press("Enter", SHIFT)
    page.type("7 + 5?")
    assert page.js("document.querySelector('#draft').value") == "What is\n7 + 5?"
    page.press("Enter")
    page.wait(answers(1))
    assert chat_requests(page)[0]["messages"] == [{"role": "user", "content": "What is\n7 + 5?"}]
    assert page.js("document.querySelector('#draft').value") == ""


@pytest.mark.parametrize("by_key", [False, True])
def test_stop_ends_the_request_on_the_server(server, new_page, by_key):
    page = new_page(server.url + "/")
    page.wait(READY)
    # Text without an end token: the longest answer there is.
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="demo"}'
    before = figures(server)[aborted]
    page.js(
        """(() => { const send = window.fetch; window.fetch = (url, options) => {
          if (options && options.body) options.body = JSON.stringify({...JSON.parse(options.body), ignore_eos: true, n: 32});
          return send(url, options); }; })()"""
    )
    ask(page, STORY)
    page.wait("document.querySelector('.busy .body').textContent.length > 0")
    assert figure(server, "vllm:num_requests_running") > 0
    if by_key:
        page.press("Escape")
    else:
        page.click("#stop")
    page.wait(answers(1))
    assert "stopped" in page.text(".assistant .stats")
    wait_until(lambda: figure(server, "vllm:num_requests_running") == 0)
    wait_until(lambda: figures(server)[aborted] == before + 1)
    assert figure(server, "vllm:kv_cache_usage_perc") == 0
    # What was written of it stays, and the chat goes on.
    assert page.text(".assistant .body")
    page.wait("!document.querySelector('#send').hidden && document.querySelector('#stop').hidden")


def test_settings_reach_the_request_and_survive_a_reload(page):
    settings = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 5, "seed": 1234,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
    }  # fmt: skip
    for name, value in settings.items():
        set_field(page, name, value)
    set_field(page, "system", "Be brief.")
    set_field(page, "stop-strings", "END\n\\n")
    page.reload()
    page.wait(READY)
    for expected_seed in (1234, 1234, None):
        if expected_seed is None:
            set_field(page, "seed", "")
            set_field(page, "top_p", 7)  # Invalid: not sent.
        ask(page, STORY)
        page.wait(f"!({BUSY}) && document.querySelectorAll('.assistant .stats').length")
        body = chat_requests(page)[-1]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body["model"] == "demo" and body["stream"] is True
        assert body["stop"] == ["END", "\\n"]
        sent = {name: body.get(name) for name in settings}
        if expected_seed is None:
            assert sent == {**settings, "seed": None, "top_p": None}
        else:
            assert sent == settings
        page.click("#new")
    # The same seed drew the same answer.
    stored = page.js("Object.entries(localStorage).filter(([k]) => k.startsWith('quire.conversation.')).map(([, v]) => v)")
    texts = [c["messages"][1]["content"] for c in map(json.loads, stored) if len(c["messages"]) == 2]
    assert len(texts) == 3 and len(set(texts)) <= 2
    page.click("#settings-button")
    page.click("#settings-button")
    page.click("#reset")
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    assert set(chat_requests(page)[-1]) == {"model", "messages", "stream", "stream_options"}


# ---- Conversations ----


def test_reload_keeps_the_conversation(page):
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    before = page.texts(".message")
    page.reload()
    page.wait(answers(1))
    assert page.texts(".message") == before
    assert page.texts("#conversations .open") == ["What is 7 + 5?"]


def test_conversations_are_renamed_and_deleted(page):
    for question in ("What is 7 + 5?", "What is 2 + 2?"):
        page.click("#new")
        ask(page, question)
        page.wait(answers(1))
    assert page.texts("#conversations .open") == ["What is 2 + 2?", "What is 7 + 5?"]
    page.click("#conversations [aria-label='Rename What is 7 + 5?']")
    assert page.js("document.activeElement.id") == "title"
    page.type("Sums")
    page.press("Enter")
    page.wait("document.querySelector('#conversations .open').innerText === 'Sums'")
    assert page.text(".user .body") == "What is 7 + 5?"
    page.reload()
    assert page.texts("#conversations .open") == ["Sums", "What is 2 + 2?"]
    page.click("#conversations [aria-label='Delete Sums']")
    page.click("#delete-cancel")
    assert len(page.texts("#conversations .open")) == 2
    page.click("#conversations [aria-label='Delete Sums']")
    page.click("#delete-confirm")
    page.wait("document.querySelectorAll('#conversations .open').length === 1")
    assert page.text(".user .body") == "What is 2 + 2?"
    page.reload()
    assert page.texts("#conversations .open") == ["What is 2 + 2?"]


def test_two_tabs_keep_both_conversations(server, page, new_page):
    other = new_page(server.url + "/", context=page.context)
    other.wait(READY)
    page.call("Page.bringToFront")
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    other.wait("[...document.querySelectorAll('.open')].some((e) => e.innerText === 'What is 7 + 5?')")
    other.call("Page.bringToFront")
    ask(other, "What is 2 + 2?")
    other.wait(answers(1))
    page.call("Page.bringToFront")
    page.reload()
    assert sorted(page.texts("#conversations .open")) == ["What is 2 + 2?", "What is 7 + 5?"]


def test_export_and_import(page, server, new_page, tmp_path):
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    page.js(
        """URL.createObjectURL = ((create) => (blob) => {
          blob.text().then((text) => { window.exported = text; });
          return create.call(URL, blob); })(URL.createObjectURL)"""
    )
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#export")
    saved = tmp_path / "quire-conversations.json"
    wait_until(lambda: saved.exists() and page.js("window.exported") == saved.read_text())
    data = json.loads(saved.read_text())
    assert data["conversations"][0]["messages"][0] == {"role": "user", "content": "What is 7 + 5?"}

    other = new_page(server.url + "/")
    other.wait(READY)

    def import_file(path):
        node = other.call("DOM.getDocument")["root"]["nodeId"]
        node = other.call("DOM.querySelector", nodeId=node, selector="#import-file")["nodeId"]
        other.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    import_file(saved)
    other.wait("document.querySelector('#announcer').innerText === 'Imported 1 conversations.'")
    import_file(saved)  # Known already.
    other.wait("document.querySelector('#announcer').innerText === 'Imported 0 conversations.'")
    other.click("#conversations [aria-label='Rename What is 7 + 5?']")
    assert other.texts(".message .body") == page.texts(".message .body")
    for number, text in enumerate(
        ("no JSON", "[]", "null", '{"format": "quire-conversations", "conversations": [{"messages": [{"role": "system"}]}]}')
    ):
        bad = tmp_path / f"bad{number}.json"
        bad.write_text(text)
        import_file(bad)
        other.wait(f"document.querySelector('#banner').innerText.startsWith('“bad{number}.json” was not imported')")


def test_edit_and_regenerate(page):
    set_field(page, "temperature", 0)
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    ask(page, "What is 2 + 2?")
    page.wait(answers(2))
    page.click(".message.assistant:nth-of-type(4) .regenerate")
    page.wait(f"{answers(2)} && document.querySelectorAll('.message').length === 4")
    assert len(chat_requests(page)) == 3 and chat_requests(page)[2] == chat_requests(page)[1]
    # Editing the first question drops what followed.
    page.click(".message.user .edit")
    page.fill(".message.user textarea", "What is 4 + 5?")
    page.press("Enter")
    page.wait(f"{answers(1)} && document.querySelectorAll('.message').length === 2")
    assert page.text(".user .body") == "What is 4 + 5?" and "9" in page.text(".assistant .body")
    # An answer's text can be put right; nothing is asked then.
    page.click(".message.assistant .edit")
    page.fill(".message.assistant textarea", "It is **nine**.")
    page.click(".message.assistant .primary")
    page.wait("document.querySelector('.assistant strong') !== null")
    assert page.text(".assistant .body") == "It is nine."
    assert len(chat_requests(page)) == 4
    page.click(".message.user .edit")
    page.press("Escape")
    page.wait("document.querySelector('.message.user .body') !== null")
    assert len(chat_requests(page)) == 4


# ---- Status ----


def test_status_view_shows_the_metrics(server, page):
    set_field(page, "max_tokens", 40)
    ask(page, STORY)
    page.wait(answers(1))
    wait_until(lambda: figure(server, "vllm:num_requests_running") == 0)
    polls = lambda: sum(r["url"].endswith("/metrics") for r in page.requests)  # noqa: E731
    assert polls() == 0
    page.click("#status-link")
    page.wait("document.querySelector('#tile-running') !== null")

    def shown(selector):
        return float(page.js(f"document.querySelector({json.dumps(selector)}).dataset.value"))

    assert shown("#tile-running") == shown("#tile-waiting") == shown("#tile-kv") == 0
    assert shown("#tile-tokens") == figure(server, "vllm:generation_tokens_total")
    for view, name in (
        ("ttft", "vllm:time_to_first_token_seconds"),
        ("itl", "vllm:inter_token_latency_seconds"),
    ):
        for position, q in enumerate((0.5, 0.9, 0.99), 1):
            drawn = shown(f"#{view}-figures span:nth-child({position})")
            assert drawn == pytest.approx(quantile(server, name, q), rel=1e-9)
        assert shown(f"#{view}-figures .hint") == figure(server, name + "_count")
        heights = page.js(f"[...document.querySelectorAll('#{view}-chart rect')].map((e) => e.height.baseVal.value)")
        assert max(heights) == 100 and len(heights) > 1

    # While 64 sequences run (for seconds) the view must show them, in figures and lines.
    body = {"messages": [{"role": "user", "content": STORY}], "ignore_eos": True, "n": 64}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        page.wait("Number(document.querySelector('#tile-running').dataset.value) === 64")
        assert shown("#tile-kv") > 0
        drawn = page.js("document.querySelector('#requests-chart .one').points.getItem("
                        "document.querySelector('#requests-chart .one').points.length - 1).y")
        assert drawn == pytest.approx(120 - 110)  # The axis ends at the peak.
        assert page.js("document.querySelector('#requests-chart').getAttribute('aria-label')") == "running 64, waiting 0"
    page.wait("Number(document.querySelector('#tile-running').dataset.value) === 0")
    assert "the last" in page.text("#status-note")

    # Hidden, it asks for nothing; a request of the page after that shows the order.
    page.click("#status-link")
    page.wait("document.querySelector('#status').hidden")
    count = polls()
    ask(page, "What is 7 + 5?")
    page.wait(answers(2))
    page.js("new Promise((resolve) => setTimeout(resolve, 1200))")  # Longer than a period.
    assert polls() <= count + 1  # One may have been on its way.


# ---- Keys, errors, hostile text ----


def test_api_key_is_asked_for_and_kept_for_the_tab(new_page):
    server = Server("--api-key", "open sesame")
    try:
        page = new_page(server.url + "/")
        page.wait("document.querySelector('#key-dialog').open")
        assert page.js("document.activeElement.id") == "key"
        page.type("wrong")
        page.press("Enter")
        page.wait("!document.querySelector('#key-problem').hidden")
        page.click("#key")
        page.type("open sesame")
        page.press("Enter")
        page.wait(f"!document.querySelector('#key-dialog').open && {READY}")
        ask(page, "What is 7 + 5?")
        page.wait(answers(1))
        assert "12" in page.text(".assistant .body")
        page.reload()
        page.wait(READY)
        assert "open sesame" not in page.js("JSON.stringify(localStorage)")
        # Another tab does not have it; without one the page says so.
        other = new_page(server.url + "/")
        other.wait("document.querySelector('#key-dialog').open")
        other.press("Escape")
        other.wait("document.querySelector('#banner').innerText.includes('API key')")
        ask(other, "What is 7 + 5?")
        other.wait("document.querySelector('#key-dialog').open")
        other.type("open sesame")
        other.press("Enter")
        other.wait(f"{answers(1)} && {READY}")
    finally:
        assert server.stop() == 0


@pytest.fixture
def scripted(server):
    started = ScriptedServer(server, model=HOSTILE)
    yield started
    started.close()


def error_body(message):
    return json.dumps({"error": {"message": message}})


def test_text_is_shown_as_it_comes(scripted, new_page):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    next_piece = queue.Queue()
    scripted.reply_stream(*[next_piece] * 4)
    ask(page, "Hello")
    page.wait(BUSY)
    shown = ""
    for piece in ("One ", "two ", "three."):
        next_piece.put(event(piece))
        shown += piece
        page.wait(f"document.querySelector('.busy .body').textContent.trim() === {json.dumps(shown.strip())}")
    next_piece.put(DONE)
    page.wait(f"!({BUSY})")
    assert page.text(".assistant .body") == shown


def test_rate_and_time_to_first_token_are_those_of_the_clock(scripted, new_page):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    next_piece = queue.Queue()
    scripted.reply_stream(*[next_piece] * 3)
    begin = time.monotonic()
    ask(page, "Hello")
    page.wait(BUSY)
    page.js("new Promise((resolve) => setTimeout(resolve, 100))")
    next_piece.put(event("One", 3))
    page.wait("document.querySelector('.busy .body').textContent.trim() === 'One'")
    first = time.monotonic()
    page.js("new Promise((resolve) => setTimeout(resolve, 100))")
    next_piece.put(event(" two", 23))
    next_piece.put(DONE)
    page.wait(f"!({BUSY})")
    end = time.monotonic()
    stats = page.text(".assistant .stats")
    found = re.fullmatch(r"23 tokens · ([\d.]+) tokens/s · first token after ([\d.]+) ms · prompt 5", stats)
    assert found, stats
    # 20 tokens after the first piece, over at least the pause and at most all the time.
    assert 20 / (end - begin - 0.1) * 0.99 <= float(found.group(1)) <= 20 / 0.1
    assert 99 <= float(found.group(2)) <= (first - begin) * 1010


def test_reload_in_the_middle_keeps_what_was_written(scripted, new_page):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    never = queue.Queue()
    scripted.reply_stream(event("The beginning"), never)
    ask(page, "Hello")
    page.wait("document.querySelector('.busy .body').textContent.trim() === 'The beginning'")
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2")
    assert page.texts(".message .body") == ["Hello", "The beginning"]
    never.put("")


def test_waits_for_the_model_and_shows_how_far_it_is(scripted, new_page):
    scripted.models = [(503, error_body("the model is being loaded"))]
    scripted.ready = (503, error_body("loading: 37 %"))
    page = new_page(scripted.url + "/")
    page.wait("document.querySelector('#banner').innerText.includes('being loaded: 37 %')")
    scripted.models.append((200, json.dumps({"data": [{"id": "m"}]})))
    page.wait(READY)
    assert page.js("document.querySelector('#banner').hidden")


def test_errors_are_told_in_words_and_can_be_tried_again(scripted, new_page):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    ask_first = lambda: ask(page, "Hello")  # noqa: E731
    again = lambda: page.click("#log .failed button")  # noqa: E731
    for act, status, message, param, words in (
        (ask_first, 503, "the server is overloaded", None, "queue is full"),
        (again, 503, "the model is being loaded", None, "still being loaded"),
        (again, 503, "the server is shutting down", None, "shutting down"),
        (again, 400, "'top_k' is " + HOSTILE, "top_k", HOSTILE),
        (again, 404, "The model `x` does not exist.", None, "does not know this model"),
        (again, 413, "request body too large", None, "too large"),
        (again, 500, "internal error", None, "failed (500): internal error"),
    ):
        scripted.reply_error(status, message, param)
        act()
        page.wait(failure(words))
        assert page.js("document.querySelector('#log .failed').getAttribute('role')") == "alert"
        assert page.texts(".message .body") == ["Hello"]
    # An error within the stream, and a stream that is cut off, keep what there was.
    scripted.reply_stream(event("part"), "data: " + error_body("the server is shutting down") + "\n\n", DONE)
    again()
    page.wait(failure("shutting down"))
    assert page.texts(".message .body") == ["Hello", "part"]
    scripted.reply_stream(event("piece"))
    again()
    page.wait(failure("broke off"))
    assert page.texts(".message .body") == ["Hello", "piece"]
    # Characters and events may be split anywhere.
    stream = (": ping\n\n" + event("naïve 😀") + event(" end").replace("\n\n", "\r\n\r\n") + DONE).encode()
    scripted.reply_stream(*(bytes([byte]) for byte in stream))
    again()
    page.wait("document.querySelector('.assistant .body').innerText === 'naïve 😀 end'")
    scripted.close()
    ask(page, "And now?")
    page.wait(failure("cannot be reached"))


def test_hostile_text_stays_text(scripted, new_page, tmp_path):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    answer = "\n".join(
        (
            HOSTILE, "", "# " + HOSTILE, "- " + HOSTILE, "  1. " + HOSTILE, "> " + HOSTILE, "",
            f"**{HOSTILE}** *{HOSTILE}* `{HOSTILE}`", "", f"[x](javascript:window.pwned=5) ![x]({HOSTILE})", "",
            "```" + HOSTILE.replace("`", ""), HOSTILE, "```",
        )
    )  # fmt: skip
    # One character at a time, so that every prefix of it is drawn as well.
    scripted.reply_stream(*(event(character) for character in answer), DONE)
    ask(page, HOSTILE)
    page.wait("document.querySelector('.assistant .actions button') !== null")
    page.reload()
    page.wait(READY)
    page.wait("document.querySelector('.assistant .actions button') !== null")
    assert page.js("window.pwned") is None
    assert page.js("document.querySelectorAll('main img, main script, main a, nav img, select img').length") == 0
    assert page.js("document.querySelectorAll('#log svg, #log [onerror], #log [href]').length") == 0
    assert page.text(".user .body") == HOSTILE
    # 5 blocks, 3 inline places, the image's address, the code's language and text.
    assert page.js("document.querySelector('.assistant .body').textContent").count(HOSTILE) == 11
    assert page.js("document.querySelector('#model').value") == HOSTILE
    assert page.js("document.querySelector('#title').value").startswith(HOSTILE[:30])


def test_the_policy_stops_what_would_get_in(scripted, browser):
    """The net under all of the above: even put into the page, scripts do not run."""
    page = browser.new_page()
    page.open(scripted.url + "/")
    page.wait(READY)
    for attempt in (
        "document.body.innerHTML = '<img src=x onerror=\"window.pwned = 1\">'",
        "document.querySelector('header').setAttribute('onclick', 'window.pwned = 2')",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.pwned = 3'}))",
    ):
        assert page.js(f"(() => {{ try {{ {attempt}; return 'done'; }} catch (e) {{ return e.name; }} }})()") == "TypeError"
    # The console may evaluate; the page may not.
    page.js("setTimeout(() => { try { eval('window.pwned = 4'); } catch { window.isRefused = true; } })")
    page.wait("window.isRefused")
    page.js("fetch('http://127.0.0.1:1/').catch(() => { window.isBlocked = true; })")
    page.wait("window.isBlocked")
    assert any("connect-src" in problem for problem in page.problems)
    page.click("header h1")
    assert page.js("window.pwned") is None
    page.close()


def test_markdown(scripted, new_page):
    page = new_page(scripted.url + "/")
    page.wait(READY)
    text = """# Title

Some **bold**, *leaning* and `a < b` text: 2 * 3 * 4.

1. one
2. two
   - inner
3. three

```python
def f(x):
    return x  # **not bold**
```

> quoted

after"""
    scripted.reply_stream(*(event(text[i : i + 3]) for i in range(0, len(text), 3)), DONE)
    ask(page, "markdown")
    page.wait("document.querySelector('.assistant .actions button') !== null")
    shape = page.js(
        """(() => { const outline = (e) => e.tagName.toLowerCase() + (e.children.length ? '(' + [...e.children].map(outline).join(' ') + ')' : '');
        return [...document.querySelector('.assistant .body').children].map(outline).join(' '); })()"""
    )
    assert shape == (
        "h3 p(strong em code) ol(li li(ul(li)) li) div(div(button) pre(code)) blockquote p"
    )
    assert page.text(".assistant pre") == "def f(x):\n    return x  # **not bold**"
    assert page.text(".assistant p") == "Some bold, leaning and a < b text: 2 * 3 * 4."
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.click(".code .copy")
    page.wait("document.querySelector('.code .copy').innerText === 'Copied'")
    assert page.js("navigator.clipboard.readText()") == "def f(x):\n    return x  # **not bold**"
    page.click(".assistant > .actions .copy")
    page.wait("document.querySelector('.assistant > .actions .copy').innerText === 'Copied'")
    assert page.js("navigator.clipboard.readText()") == text


# ---- Looks, access, absence ----


def test_phone_width(server, new_page):
    page = new_page(server.url + "/", width=360, height=640)
    page.wait(READY)
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    fits = "document.documentElement.scrollWidth <= 360 && document.querySelector('header').scrollWidth <= 360"
    assert page.js(fits)
    for panel in ("nav", "settings"):
        page.click(f"#{panel}-button")
        page.wait(f"!document.querySelector('#{panel}').hidden")
        assert page.js(fits)
        assert page.js(f"document.querySelector('#{panel}').contains(document.activeElement)")
        page.press("Escape")
        page.wait(f"document.querySelector('#{panel}').hidden")
        assert page.js("document.activeElement.id") == panel + "-button"
    # A tap beside a panel puts it away, too.
    page.click("#nav-button")
    page.click_at(350, 400)
    page.wait("document.querySelector('#nav').hidden")
    page.click("#status-link")
    page.wait("document.querySelector('#tile-running') !== null")
    assert page.js(fits)


def test_light_and_dark_have_enough_contrast(server, new_page):
    """WCAG 2.1, 1.4.3: 4.5 to 1 for text."""
    luminance = """(color) => { const [r, g, b] = color.match(/\\d+/g).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
    backs = []
    for dark in (False, True):
        page = new_page(server.url + "/", dark=dark)
        page.wait(READY)
        ask(page, "What is 7 + 5?")
        page.wait(answers(1))
        worst = page.js(
            f"""(() => {{ const luminance = {luminance};
              const backOf = (e) => {{ for (; e; e = e.parentElement) {{ const c = getComputedStyle(e).backgroundColor;
                if (c !== 'rgba(0, 0, 0, 0)') return c; }} }};
              return [...document.querySelectorAll('button, select, p, .body, .stats, h1, a')].filter((e) => e.offsetParent)
                .map((e) => {{ const a = luminance(getComputedStyle(e).color), b = luminance(backOf(e));
                  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)]; }})
                .sort((a, b) => a[0] - b[0])[0]; }})()"""
        )
        assert worst[0] >= 4.5, worst
        backs.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert backs[0] != backs[1]


def test_everything_has_a_name_and_the_keyboard_reaches_it(server, page):
    ask(page, "What is 7 + 5?")
    page.wait(answers(1))
    page.click("#settings-button")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    checked = 0
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in ("button", "textbox", "combobox", "spinbutton", "link", "dialog") and not node["ignored"]:
            checked += 1
            assert node["name"]["value"].strip(), node
    assert checked > 20
    page.click("#draft")
    reached = []
    for _ in range(60):
        page.press("Tab")
        reached.append(page.js("document.activeElement.id || document.activeElement.innerText"))
    for name in ("nav-button", "title", "model", "status-link", "settings-button", "new", "export", "log",
                 "Copy", "Edit", "Regenerate", "temperature", "stop-strings", "reset"):  # fmt: skip
        assert name in reached, (name, reached)


def test_page_is_small_cached_and_optional(server):
    with urllib.request.urlopen(server.url + "/") as answer:
        body = answer.read()
        assert len(body) <= 60 << 10
        etag = answer.headers["ETag"]
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(urllib.request.Request(server.url + "/", headers={"If-None-Match": etag}))
    assert unchanged.value.code == 304
    with urllib.request.urlopen(urllib.request.Request(server.url + "/", method="HEAD")) as answer:
        assert int(answer.headers["Content-Length"]) == len(body) and answer.read() == b""
    without = Server("--no-ui")
    try:
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(without.url + "/")
        assert missing.value.code == 404
        with urllib.request.urlopen(without.url + "/v1/models") as answer:
            assert answer.status == 200
    finally:
        assert without.stop() == 0
