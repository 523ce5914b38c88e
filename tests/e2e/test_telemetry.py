"""Logs, traces, per-request metrics, and what is built on the metrics' names."""

import http.client
import http.server
import json
import pathlib
import re
import shutil
import signal
import threading
import urllib.error
import urllib.request

import yaml
from conftest import Server, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "quire.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
HI = {"messages": [{"role": "user", "content": "a secret of mine"}], "max_tokens": 4}


def post(server, path, body, headers=None):
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers=headers or {}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.headers, json.load(answer)


def metrics_of(server):
    with urllib.request.urlopen(server.url + "/metrics") as answer:
        return answer.read().decode()


def finish(server):
    """SIGTERM; the exit code and what is left on stdout and stderr."""
    server.process.send_signal(signal.SIGTERM)
    out, err = server.process.communicate(timeout=60)
    return server.process.returncode, out, err


class JsonServer(Server):
    """Its log is on stdout, so the banner is the first line of it."""

    def __init__(self, *args, env=None):
        super().__init__("--log-format", "json", *args, env=env)


def test_a_json_line_for_each_request_and_nothing_else():
    server = JsonServer("--device", "cpu", "--api-key", "k", "--served-model-name", "m")
    key = {"Authorization": "Bearer k"}
    headers, _ = post(
        server, "/v1/chat/completions", HI,
        {**key, "X-Request-Id": "mine-1", "traceparent": TRACEPARENT},
    )
    assert headers["X-Request-Id"] == "mine-1"
    assert headers["traceresponse"].startswith(f"00-{TRACE}-")
    for path in ("/health", "/metrics", "/health/live", "/version"):
        urllib.request.urlopen(server.url + path).read()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", '/no"where\\{}?secret', headers={"X-Request-Id": "bad id"})
    refused = connection.getresponse()
    refused.read()
    given = refused.headers["X-Request-Id"]
    assert refused.status == 404 and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given)
    code, out, err = finish(server)
    assert code == 0 and err == ""
    lines = [json.loads(line) for line in (server.banner + out).splitlines()]
    assert all(line["level"] in ("INFO", "WARNING") for line in lines)
    (ready,) = [line for line in lines if line["message"].endswith(" is ready")]
    assert ready["address"] == server.url and ready["kv_cache"] and ready["ready_in"]
    # Written when an answer has ended, which may be after the next one's.
    chat, nowhere = sorted(
        (line for line in lines if line["message"] == "request"),
        key=lambda line: line["request_id"] != "mine-1",
    )
    assert chat["request_id"] == "mine-1" and chat["trace_id"] == TRACE
    assert chat["route"] == "/v1/chat/completions" and chat["status"] == 200
    assert chat["owner"] == "key-1" and chat["model"] == "m"
    assert chat["prompt_tokens"] > 0 and chat["completion_tokens"] <= 4
    assert 0 <= chat["queue_ms"] <= chat["ttft_ms"] <= chat["total_ms"]
    assert chat["finish_reason"] in ("stop", "length")
    assert nowhere["request_id"] == given and nowhere["status"] == 404
    assert nowhere["path"] == '/no"where\\{}' and nowhere["reason"] == "no such path"
    assert "secret" not in out


def test_what_loading_says_is_a_line_of_the_log(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "models" / "demo", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "field_of_tomorrow": 1}))
    server = JsonServer("--device", "cpu", str(model))
    code, out, err = finish(server)
    assert code == 0 and err == ""
    lines = [json.loads(line) for line in (server.banner + out).splitlines()]
    (warning,) = [line for line in lines if line["level"] == "WARNING"]
    assert "field_of_tomorrow" in warning["message"]
    server = Server("--device", "cpu", str(model))
    code, _, err = finish(server)
    assert code == 0 and re.search("^quire: warning: .*field_of_tomorrow", err)


def test_prompts_are_logged_only_when_asked():
    server = JsonServer("--enable-log-requests", "--max-log-len", "60")
    post(server, "/v1/chat/completions", HI)
    _, out, _ = finish(server)
    (line,) = [json.loads(line) for line in out.splitlines() if '"request"' in line]
    assert line["body"] == json.dumps(HI)[:60] and "secret" in line["body"]


def test_text_lines_and_levels():
    server = Server("--device", "cpu", "--log-level", "warning")
    post(server, "/v1/chat/completions", HI)
    code, out, err = finish(server)
    assert (code, out, err) == (0, "", "")
    server = Server("--device", "cpu")
    post(server, "/v1/chat/completions", HI)
    code, out, err = finish(server)
    assert code == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO quire: draining\n", err)
    (line,) = out.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z INFO request request_id=\S+ method=POST ", line)


def test_nobody_reads_the_log():
    """What fills the pipe and the queue behind it is dropped and counted."""
    server = JsonServer()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    dropped = "quire:log_lines_dropped_total{"

    def num_dropped():
        (line,) = [x for x in metrics_of(server).splitlines() if x.startswith(dropped)]
        return float(line.rsplit(" ", 1)[1])

    def ask():
        for _ in range(1000):
            # Control characters take six bytes of a line each.
            connection.request("GET", "/" + "x" * 900)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 404
        return num_dropped() > 0

    wait_until(ask, timeout=120)
    _, answer = post(server, "/v1/chat/completions", HI)
    assert answer["choices"]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    server.process.stdout.close()
    server.process.stderr.close()


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP, as opentelemetry-collector does on port 4318."""

    taken = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_ours = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/json"
        if is_ours:
            self.taken.append((dict(self.headers), json.loads(body)))
        self.send_response(200 if is_ours else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"partialSuccess":{}}')

    def log_message(self, *args):
        pass


def test_spans_reach_a_collector():
    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    Collector.taken.clear()
    server = JsonServer(
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-token=a%20b",
            "OTEL_SERVICE_NAME": "fox",
        }
    )
    post(server, "/v1/chat/completions", HI, {"traceparent": TRACEPARENT, "tracestate": "a=1"})
    post(server, "/v1/completions", {"prompt": "b", "max_tokens": 2, "temperature": 0})
    # The caller decided against this one.
    post(server, "/v1/completions", {"prompt": "c", "max_tokens": 1},
         {"traceparent": TRACEPARENT[:-1] + "0"})
    urllib.request.urlopen(server.url + "/health").read()
    code, out, _ = finish(server)
    assert code == 0
    collector.shutdown()
    collector.server_close()
    spans = []
    for headers, body in Collector.taken:
        assert headers["x-token"] == "a b"
        for resource in body["resourceSpans"]:
            attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            assert attributes["service.name"] == {"stringValue": "fox"}
            for scope in resource["scopeSpans"]:
                spans += scope["spans"]
    chat, completion = spans
    assert chat["traceId"] == TRACE and chat["parentSpanId"] == TRACEPARENT[36:52]
    assert chat["traceState"] == "a=1" and chat["name"] == "llm_request" and chat["kind"] == 2
    assert int(chat["startTimeUnixNano"]) < int(chat["endTimeUnixNano"])
    assert "parentSpanId" not in completion and re.fullmatch("[0-9a-f]{32}", completion["traceId"])
    attributes = {a["key"]: a["value"] for a in completion["attributes"]}
    assert attributes["gen_ai.usage.completion_tokens"] == {"intValue": "2"}
    assert attributes["gen_ai.request.temperature"]["doubleValue"] == 0
    assert attributes["gen_ai.latency.e2e"]["doubleValue"] > 0
    # The same identifiers stand in the log.
    logged = [json.loads(line) for line in out.splitlines() if '"request_id"' in line]
    assert [line["trace_id"] for line in logged] == [TRACE, completion["traceId"], TRACE]
    assert [line["span_id"] for line in logged][:2] == [chat["spanId"], completion["spanId"]]


def test_a_bad_endpoint_is_refused_at_the_start():
    server = None
    try:
        server = Server("--otlp-traces-endpoint", "collector:4318")
    except RuntimeError as error:
        assert "collector:4318" in str(error)
    assert server is None


def test_answers_carry_the_times_of_their_request():
    server = Server("--enable-per-request-metrics")
    _, answer = post(server, "/v1/chat/completions", HI)
    assert set(answer["metrics"]) == {
        "time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms",
        "tokens_per_second",
    }
    assert server.stop() == 0


def names_in(expression):
    """The metrics of a PromQL expression: words that no bracket calls and that
    are neither labels nor keywords."""
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expression)
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", text)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b", text)
    return {w for w in words if w not in ("and", "or", "unless", "bool") and not
            re.search(re.escape(w) + r"\s*\(", text)}


def expressions():
    """(where, PromQL) of everything in deploy/ that reads the metrics."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{DASHBOARD.name}: {panel['title']}", target["expr"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"{RULES.name}: {rule['alert']}", rule["expr"]


def test_every_metric_of_dashboard_and_alerts_is_there():
    server = Server("--speculative-model", "[ngram]")
    post(server, "/v1/chat/completions", HI)
    text = metrics_of(server)
    assert server.stop() == 0
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, labels = line.rsplit(" ", 1)[0].partition("{")
            samples.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    num_checked = 0
    for where, expression in expressions():
        assert expression.count("(") == expression.count(")"), where
        found = names_in(expression)
        assert found, where
        for name in found:
            assert name in samples, f"{where}: no metric {name}"
            num_checked += 1
        # Labels that are ours; the scrape adds the others.
        for name, selector in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                assert label in samples[name] | {"instance", "job"}, f"{where}: {name} {label}"
    assert num_checked > 50


def test_alerts_and_dashboard_are_well_formed():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 8
    for rule in alerts:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].endswith(".")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in cells, panel["title"]
                cells.add((x, y))
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used - variables <= {"__rate_interval", "__all"}
