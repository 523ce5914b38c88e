"""`benchmarks/compare.py`: what it reads from the peers' programs, what it concludes,
and whole runs of it with small programs in the peers' place."""

import json
import math
import random
import subprocess
import sys

import pytest

from conftest import ROOT

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]
import compare  # noqa: E402
import goals  # noqa: E402
import programs  # noqa: E402
import suite  # noqa: E402
import write_gguf  # noqa: E402


def test_compare_names_a_difference_only_if_it_is_one():
    source = random.Random(1)
    noise = [math.exp(source.gauss(0, 0.1)) for _ in range(20)]
    ours = [100 * n for n in noise]
    # What is common to a round cancels.
    faster = compare.compare(ours, [a / 1.5 * (1 + 0.01 * (i % 3)) for i, a in enumerate(ours)])
    assert faster["verdict"] == "quire is faster"
    assert faster["low"] < faster["ratio"] < faster["high"]
    assert faster["ratio"] == pytest.approx(1.5 / 1.01, rel=0.01)
    other = [100 * math.exp(source.gauss(0, 0.1)) for _ in range(20)]
    assert compare.compare(ours, other)["verdict"].startswith("not established")
    assert compare.compare([1, 2, 1, 2, 1], [2, 4, 2, 4.1, 2])["verdict"] == (
        "quire is slower"
    )
    few = compare.compare([2.0, 2.1, 2.2], [1, 1, 1])
    assert few["verdict"] == "not established: fewer than 5 rounds"
    assert compare.compare([2.0], [1.0])["low"] is None


# The interval of a normal sample covers its mean in 95 % of the cases.
def test_compare_interval_has_its_coverage():
    source = random.Random(2)
    covered = 0
    for _ in range(2000):
        ours = [math.exp(source.gauss(0.2, 0.3)) for _ in range(6)]
        result = compare.compare(ours, [1.0] * 6)
        covered += result["low"] < math.exp(0.2) < result["high"]
    # Deviation of the count: sqrt(2000 * 0.95 * 0.05) = 9.7.
    assert abs(covered - 1900) < 50


def test_compare_runs_both_sides(tmp_path):
    peer = tmp_path / "llama-bench"
    peer.write_text(
        "#!/bin/sh\n"
        'echo \'[{"n_prompt": 8, "n_gen": 0, "avg_ts": 1.5},'
        ' {"n_prompt": 0, "n_gen": 2, "avg_ts": 2.5}]\'\n'
    )
    peer.chmod(0o755)
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py")]
        + ["--model", str(ROOT / "models" / "demo"), "--threads", "1"]
        + ["--rounds", "5", "-p", "8", "-n", "2", "--peer", f"fake={peer}"]
        + ["--json", str(report)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "| pp8 |" in done.stdout and "fake (best)" in done.stdout
    results = {r["figure"]: r for r in json.loads(report.read_text())["results"]}
    assert results["tg2"]["peers"]["fake"]["samples"] == [2.5] * 5
    assert results["tg2"]["best_peer"] == "fake"
    assert len(json.loads(report.read_text())["probes"]) == 6
    peer.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--threads", "1"]
        + ["--model", str(ROOT / "models" / "demo"), "--peer", f"fake={peer}"]
        + ["-p", "8", "-n", "2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and "exit code 3" in done.stderr


# What the programs print: made up, in their formats.

TABLE = """
main: n_kv_max = 4096, n_batch = 2048

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    32 |     16 |    1 |     48 |    0.002 |  9000.00 |    0.001 |   100.50 |    0.003 | 14000.00 |
|    32 |     16 |    8 |    384 |    0.003 |  9000.00 |    0.002 |   700.25 |    0.005 | 20000.00 |

timings: |    16 tokens
"""


def test_batched_table_and_objects():
    assert programs.parse_batched(TABLE) == {"tg16": 100.5, "tg16 x 8": 700.25}
    line = '\x1b[0m{"pp": 32, "tg": 16, "pl": 8, "speed_pp": 9.0, "speed_tg": 7.5}'
    assert programs.parse_batched(f"log\n{line}\n") == {"tg16 x 8": 7.5}
    assert programs.parse_batched("no table here | at all |\n") == {}
    # Another column in front.
    moved = TABLE.replace("|    PP |", "|  X |    PP |").replace("|    32 |", "|  1 |    32 |")
    assert programs.parse_batched(moved) == {"tg16": 100.5, "tg16 x 8": 700.25}


def test_divergence():
    text = "===\nMean    KLD:   0.114996 ±   0.003023\nMaximum KLD:   1.3\n"
    assert programs.parse_divergence(text) == (0.114996, 0.003023)
    assert programs.parse_divergence("Mean PPL(Q) : 3 ± 1") is None


def test_run_says_what_failed():
    with pytest.raises(programs.ProgramError, match="exit code 3"):
        programs.run(["sh", "-c", "echo oops >&2; exit 3"])
    with pytest.raises(programs.ProgramError, match="nosuchprogram"):
        programs.run(["/nosuchprogram"])
    with pytest.raises(programs.ProgramError, match="no JSON"):
        programs.bench_rows(["echo", "hello"])


# Goals.


def job_report(part, title, samples, rounds=5):
    return {
        "part": part, "title": title, "rounds": rounds, "wanted": rounds,
        "samples": {
            figure: {
                name: dict(enumerate([v] * rounds)) for name, v in by_name.items()
            }
            for figure, by_name in samples.items()
        },
        "dropped": {}, "failures": [],
    }  # fmt: skip


def rows_of(*args, **kwargs):
    return {row["figure"]: row for row in goals.rows([job_report(*args, **kwargs)])}


def test_who_was_left_out_is_not_the_best():
    samples = {"tg32": {"quire": 120, "a": 100, "b": 110}}
    report = job_report("model", "x q8_0", samples, rounds=20)
    # b's rounds were the machine's fastest.
    report["samples"]["tg32"]["b"] = {0: 110, 1: 110}
    report["dropped"] = {"b": "below 0.8 of the best peer, 2 rounds"}
    (row,) = (row for row in goals.rows([report]) if row["figure"] == "tg32")
    assert row["peer"] == "a" and row["rounds"] == 20 and row["met"] == "yes"
    report["dropped"] = {}
    (row,) = (row for row in goals.rows([report]) if row["figure"] == "tg32")
    assert row["peer"] == "b"


def test_goals_of_a_model():
    samples = {
        "pp512": {"quire": 160, "a": 100, "b": 90},
        "pp512 % of peak": {"quire": 70},
        "tg32": {"quire": 10, "a": 10, "b": 12},
        "tg32 % of read": {"quire": 91},
    }
    rows = rows_of("model", "llama1b q8_0", samples, rounds=20)
    assert rows["pp512"]["peer"] == "a" and rows["pp512"]["met"] == "yes"
    assert rows["pp512"]["ratio"] == pytest.approx(1.6)
    assert rows["pp512"]["all_ratios"]["b"] == pytest.approx(160 / 90)
    # Slower than the better peer, however it compares with the other.
    assert rows["tg32"]["peer"] == "b" and rows["tg32"]["met"] == "no"
    assert rows["tg32 % of read"]["met"] == "yes"
    assert rows["pp512 % of peak"]["met"] == ""  # A goal of bf16 only.
    rows = rows_of("model", "llama1b bf16", samples)
    assert rows["pp512 % of peak"]["met"] == "no"


def test_a_verdict_needs_its_rounds():
    samples = {
        "pp512": {"quire": 160, "a": 100},
        "pp512 % of peak": {"quire": 80},
        "tg32": {"quire": 12, "a": 10},
        "tg32 % of read": {"quire": 91},
    }
    for rounds, prefill, decode in (
        (1, "1 round, needs 5", "1 round, needs 20"),
        (4, "4 rounds, needs 5", "4 rounds, needs 20"),
        (19, "yes", "19 rounds, needs 20"),
        (20, "yes", "yes"),
    ):
        rows = rows_of("model", "llama1b bf16", samples, rounds=rounds)
        assert rows["pp512"]["met"] == rows["pp512 % of peak"]["met"] == prefill
        assert rows["tg32"]["met"] == rows["tg32 % of read"]["met"] == decode
    for part, title, samples in (
        ("batched", "x q4_0", {"tg16 x 8": {"quire": 15, "a": 10}}),
        ("one-thread", "x q4_0", {"tg16": {"quire": 15, "a": 10}}),
        ("gemm", "g", {"llama % of peak": {"quire": 95}}),
        ("load", "l", {"resident % of the file": {"quire": 102}}),
    ):
        for rounds, expected in ((4, "4 rounds, needs 5"), (5, "yes")):
            (row,) = rows_of(part, title, samples, rounds=rounds).values()
            assert row["met"] == expected, part
    samples = {"1 / seconds to ready": {"quire": 4, "a": 1}}
    rows = rows_of("load", "l", samples, rounds=4)
    assert rows["seconds to ready"]["met"] == "4 rounds, needs 5"
    samples = {"first TTFT, s": {"quire": 2.0}, "second TTFT, s": {"quire": 0.1}}
    (row,) = goals.rows([job_report("prefix", "p", samples, rounds=2)])
    assert row["met"] == "2 rounds, needs 5"


def test_goals_of_batches_and_one_thread():
    rows = rows_of("batched", "x q4_0", {"tg16 x 8": {"quire": 15, "a": 10},
                                         "tg16 x 16": {"quire": 19, "a": 10}})  # fmt: skip
    assert rows["tg16 x 8"]["met"] == "yes" and rows["tg16 x 16"]["met"] == "no"
    rows = rows_of("batched", "x bf16", {"tg16 x 8": {"quire": 9, "a": 10},
                                         "tg16 x 16": {"quire": 13, "a": 10}})  # fmt: skip
    assert rows["tg16 x 8"]["met"] == "" and rows["tg16 x 16"]["met"] == "yes"
    rows = rows_of("one-thread", "x q4_0", {"tg32": {"quire": 13, "a": 10},
                                            "tg32 % of read": {"quire": 5}})  # fmt: skip
    assert rows["tg32"]["met"] == "yes" and "tg32 % of read" not in rows


def test_goals_of_servers_and_load():
    samples = {
        "1 clients, requests/s": {"quire": 90, "in-process": 100, "a": 40},
        "1 clients, 1 / median TTFT": {"quire": 1000, "a": 100},
        "32 clients, requests/s": {"quire": 70, "in-process": 100, "a": 40},
    }
    found = goals.rows([job_report("server", "http", samples)])
    by_goal = {(row["figure"], row.get("peer")): row["met"] for row in found}
    assert by_goal["1 clients, requests/s", "in-process"] == "yes"
    assert by_goal["1 clients, requests/s", "a"] == "yes"
    assert by_goal["1 client, median TTFT, ms", None] == "yes"
    assert by_goal["32 clients, requests/s", "in-process"] == "no"
    assert by_goal["32 clients, requests/s", "a"] == ""
    samples = {
        "first TTFT, s": {"quire": 2.0}, "second TTFT, s": {"quire": 0.1},
    }  # fmt: skip
    (row,) = goals.rows([job_report("prefix", "p", samples)])
    assert row["ratio"] == pytest.approx(20) and row["met"] == "yes"
    rows = rows_of("load", "l", {"1 / seconds to ready": {"quire": 4, "a": 1},
                                 "resident % of the file": {"quire": 120}})  # fmt: skip
    assert rows["seconds to ready"]["met"] == "yes"
    assert rows["resident % of the file"]["met"] == "no"


def test_goals_of_quality():
    # Texts differ by far more than the programs: rounds are pairs.
    texts = [1.0, 4.0, 2.0, 0.5, 3.0]
    noise = [1.1, 0.9, 1.05, 0.95, 1.1]
    for factors, expected in (
        ([1.0] * 5, "yes"), ([0.99] * 5, "yes"), (noise, "within error"),
        ([1.02] * 5, "no"), ([1.5], "1 round, needs 5"),
    ):  # fmt: skip
        rounds = len(factors)
        report = job_report("quality", "q", {"q4_0 divergence": {"b": 90}}, rounds)
        report["samples"]["q4_0 divergence"].update(
            a=dict(enumerate(texts[:rounds])),
            quire={i: t * f for i, (t, f) in enumerate(zip(texts, factors))},
        )
        (row,) = goals.rows([report])
        assert row["figure"] == "q4_0 divergence, nats" and row["peer"] == "a"
        assert row["met"] == expected, factors


# The suite.


def test_hopeless_peers_are_dropped():
    job = suite.Job("batched", "x q4_0", 6)
    rates = {"quire": 9, "good": 10, "near": 9, "far": 7}
    for name, rate in rates.items():
        job.contenders[name] = lambda n, rate=rate: {"tg16 x 8": rate}
    for _ in range(6):
        job.run_round()
    assert list(job.dropped) == ["far"]
    assert len(job.samples["tg16 x 8"]["far"]) == 2
    assert len(job.samples["tg16 x 8"]["near"]) == 6


def test_a_peer_that_fails_is_reported_and_left_out():
    def fails(_):
        raise programs.ProgramError("no such option")

    job = suite.Job("batched", "x q4_0", 3)
    job.contenders = {"quire": lambda n: {"tg16 x 8": 2.0}, "peer": fails}
    for _ in range(3):
        job.run_round()
    assert job.num_rounds == 3 and job.failures == ["x q4_0, peer: no such option"]
    (row,) = goals.rows([job.report()])
    assert row["quire"] == [2.0] * 3 and row["met"] == ""


def run_suite(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "suite", *args],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_suite_says_that_there_are_no_models(tmp_path):
    done = run_suite("--models", str(tmp_path / "nosuch"))
    assert done.returncode == 2 and "nosuch is no directory" in done.stderr
    for parts in ([], ["--parts", "model,gemm"]):
        done = run_suite("--models", str(tmp_path), *parts)
        assert done.returncode == 1, done.stderr
        assert f"no files in {tmp_path} for model" in done.stderr
        assert done.stdout == ""


PEER = """#!/bin/sh
case "$*" in
  *--help*) echo "  -rtr, --run-time-repack <0|1>";;
  *-rtr*) rate=40;;
  *) rate=20;;
esac
case "$0" in
  *batched*) printf '|PP|TG|B|S_TG t/s|\\n|32|16|8|%s|\\n|32|16|16|%s|\\n' $rate $rate;;
  *) echo "[{\\"n_prompt\\": 0, \\"n_gen\\": 2, \\"avg_ts\\": $rate}]";;
esac
"""


def test_suite_measures_both_ways_of_loading(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    write_gguf.write_gguf(ROOT / "models" / "demo", models / "demo-q8_0.gguf", "q8_0")
    peer = tmp_path / "peer"
    peer.mkdir()
    for name in ("llama-bench", "llama-batched-bench"):
        (peer / name).write_text(PEER)
        (peer / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "suite"]
        + ["--models", str(models), "--peer", f"fake={peer}", "--shapes", "demo"]
        + ["--types", "q8_0", "--parts", "model,batched", "--rounds", "2"]
        + ["--gen", "2", "--threads", "1", "--minutes", "5"]
        + ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    model, batched = report["jobs"]
    assert model["rounds"] == batched["rounds"] == 2
    assert not model["failures"] and not batched["failures"]
    assert model["samples"]["tg2"]["fake -rtr"] == {"0": 40, "1": 40}
    # Half as fast as the same program with -rtr after two rounds.
    assert list(model["dropped"]) == ["fake"]
    assert set(batched["samples"]) == {"tg16 x 8", "tg16 x 16", "tg16 x 32"}
    row = next(r for r in report["rows"] if r["figure"] == "tg2")
    assert row["peer"] == "fake -rtr"
    assert "### batched" in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.md").read_text().strip() in done.stdout
