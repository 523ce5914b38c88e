"""What quire sets itself against the peers, and whether a run of the suite met it."""

import re
import statistics

from paired import compare, describe, number


def values(by_round):
    return [by_round[n] for n in sorted(by_round, key=int)]


def paired(ours, theirs):
    """The values of both in the rounds that both have."""
    common = sorted(set(ours) & set(theirs), key=int)
    return [ours[n] for n in common], [theirs[n] for n in common]


# Rounds that a verdict needs: the median of five, and twenty for the lower bound of
# a decode to mean something.
ROUNDS = 5
DECODE_ROUNDS = 20


def met(is_met, rounds, needs=ROUNDS):
    if rounds < needs:
        return f"{rounds} round{'s' * (rounds != 1)}, needs {needs}"
    return "yes" if is_met else "no"


def ratio_row(report, figure, goal, uses_low=False, others=None):
    """quire's ratio to the best of the others; None if nobody else has the figure."""
    by_name = report["samples"].get(figure, {})
    ours = by_name.get("quire", {})
    peers = {
        name: by_round
        for name, by_round in by_name.items()
        if name != "quire" and (name in others if others else name != "in-process")
    }
    row = {
        "part": report["part"], "what": report["title"], "figure": figure,
        "quire": values(ours), "goal": goal,
    }  # fmt: skip
    if not ours:
        return None
    if not peers:
        return {**row, "met": ""}
    # Whoever was left out was behind somebody in the rounds that both had; a median
    # of these rounds may be above one of all rounds all the same.
    stayed = [name for name in peers if name not in report["dropped"]]
    best = max(
        stayed or peers, key=lambda name: statistics.median(peers[name].values())
    )
    result = compare(*paired(ours, peers[best]))
    row.update(
        peer=best, theirs=values(peers[best]), ratio=result["ratio"],
        low=result["low"], high=result["high"], rounds=result["rounds"],
        all_ratios={n: compare(*paired(ours, p))["ratio"] for n, p in peers.items()},
    )  # fmt: skip
    if goal is None:
        return {**row, "met": ""}
    if uses_low:
        is_above = result["low"] is not None and result["low"] >= goal
        row["met"] = met(is_above, result["rounds"], DECODE_ROUNDS)
        row["goal"] = f"lower bound ≥ {goal:g}"
    else:
        row["met"] = met(result["ratio"] >= goal, result["rounds"])
        row["goal"] = f"≥ {goal:g}×"
    return row


def value_row(report, figure, goal, is_met, needs=ROUNDS):
    """A figure of quire alone."""
    ours = report["samples"].get(figure, {}).get("quire")
    if not ours:
        return None
    return {
        "part": report["part"], "what": report["title"], "figure": figure,
        "quire": values(ours), "goal": goal,
        "met": met(is_met(statistics.median(ours.values())), len(ours), needs)
        if is_met else "",
    }  # fmt: skip


def model_rows(report):
    type_ = report["title"].split()[-1]
    for figure in sorted(report["samples"]):
        if figure.endswith("% of peak"):
            goal = 78 if type_ == "bf16" else None
            yield value_row(
                report, figure, f"≥ {goal} %" if goal else None,
                (lambda v: v >= 78) if goal else None,
            )  # fmt: skip
        elif figure.endswith("% of read"):
            if report["part"] == "one-thread":
                continue
            yield value_row(report, figure, "≥ 90 %", lambda v: v >= 90, DECODE_ROUNDS)
        elif report["part"] == "one-thread":
            yield ratio_row(report, figure, 1.2)
        elif figure.startswith("pp"):
            yield ratio_row(report, figure, 1.1 if type_ == "bf16" else 1.5)
        else:
            yield ratio_row(report, figure, 1.0, uses_low=True)


def batched_rows(report):
    goals = {8: 1.4, 16: 2.0, 32: 2.0}
    if report["title"].endswith("bf16"):
        goals = {16: 1.25, 32: 1.4}
    for figure in sorted(report["samples"], key=lambda f: int(f.split(" x ")[-1])):
        yield ratio_row(report, figure, goals.get(int(figure.split(" x ")[-1])))


def server_rows(report):
    for figure in report["samples"]:
        clients = int(re.match(r"\d+", figure).group())
        if figure.endswith("requests/s"):
            row = ratio_row(report, figure, 0.8, others=["in-process"])
            yield row
            yield ratio_row(report, figure, 2.0 if clients <= 16 else None)
        else:
            yield ratio_row(report, figure, None)
            ours = report["samples"][figure].get("quire")
            if clients == 1 and ours:
                yield {
                    "part": "server", "what": report["title"],
                    "figure": "1 client, median TTFT, ms",
                    "quire": [1e3 / v for v in values(ours)], "goal": "≤ 5 ms",
                    "met": met(1e3 / statistics.median(ours.values()) <= 5, len(ours)),
                }  # fmt: skip


def prefix_rows(report):
    both = [report["samples"].get(f, {}).get("quire") for f in
            ("first TTFT, s", "second TTFT, s")]  # fmt: skip
    if not all(both):
        return
    result = compare(*paired(*both))
    yield {
        "part": "prefix", "what": report["title"], "peer": "second request",
        "figure": "TTFT of the first, s", "quire": values(both[0]),
        "theirs": values(both[1]), "ratio": result["ratio"], "low": result["low"],
        "high": result["high"], "rounds": result["rounds"], "goal": "≥ 10×",
        "met": met(result["ratio"] >= 10, result["rounds"]),
    }  # fmt: skip


def load_rows(report):
    figure = "1 / seconds to ready"
    yield ratio_row(report, figure, None)
    if f"{figure}, first start" in report["samples"]:
        yield ratio_row(report, f"{figure}, first start", None)
    ours = report["samples"].get(figure, {}).get("quire")
    if ours:
        yield {
            "part": "load", "what": report["title"], "figure": "seconds to ready",
            "quire": [1 / v for v in values(ours)], "goal": "≤ 0.5 s",
            "met": met(1 / statistics.median(ours.values()) <= 0.5, len(ours)),
        }  # fmt: skip
    yield value_row(report, "resident % of the file", "≤ 115 %", lambda v: v <= 115)
    yield value_row(report, "peak % of the file", None, None)


def gemm_rows(report):
    for figure in report["samples"]:
        yield value_row(report, figure, "≥ 88 %", lambda v: v >= 88)


def quality_rows(report):
    """Less is better here. Means over the rounds; the ratio is of pairs."""
    for figure, by_name in report["samples"].items():
        means = {n: statistics.fmean(r.values()) for n, r in by_name.items() if r}
        ours = means.pop("quire", None)
        if ours is None or not means:
            continue
        best = min(means, key=means.get)
        result = compare(*paired(by_name["quire"], by_name[best]))
        row = {
            "part": "quality", "what": report["title"], "figure": figure + ", nats",
            "quire": [ours], "peer": best, "theirs": [means[best]],
            "ratio": result["ratio"], "low": result["low"], "high": result["high"],
            "rounds": result["rounds"], "goal": "≤ 1×",
        }  # fmt: skip
        row["met"] = met(row["ratio"] <= 1, result["rounds"])
        if row["met"] == "no" and row["low"] <= 1:
            row["met"] = "within error"
        yield row


ROWS = {
    "model": model_rows, "one-thread": model_rows, "batched": batched_rows,
    "server": server_rows, "prefix": prefix_rows, "load": load_rows,
    "gemm": gemm_rows, "quality": quality_rows,
}  # fmt: skip


def rows(reports):
    found = []
    for report in reports:
        found += [row for row in ROWS[report["part"]](report) if row]
    return found


def shown(samples):
    return describe(samples) if len(samples) > 1 else number(samples[0])


def markdown_row(row):
    ratio = ""
    if row.get("ratio") is not None:
        ratio = f"{row['ratio']:.3f}"
        if row.get("low") is not None:
            ratio += f" [{row['low']:.3f}, {row['high']:.3f}]"
    theirs = f"{shown(row['theirs'])} ({row['peer']})" if row.get("theirs") else ""
    cells = [row["what"], row["figure"], shown(row["quire"]), theirs, ratio]
    cells += [str(row.get("rounds", len(row["quire"]))), str(row["goal"] or "none")]
    cells += [row["met"]]
    return "| " + " | ".join(cells) + " |"


def markdown(report):
    """The tables of a suite's report."""
    lines = [
        f"{report['date']}, {report['version']}, {report['machine']}, "
        f"{report['threads']} threads, {report['minutes']:.1f} minutes; median [min, max] of the rounds, ratios "
        "with their 95 % interval.",
    ]
    if report["probes"]:
        reads = [p["read_bytes_per_second"] / 1e9 for p in report["probes"]]
        peaks = [p["bf16_flops"] / 1e12 for p in report["probes"]]
        loads = [p["load_average"] for p in report["probes"]]
        lines += [
            f"Read bandwidth {describe(reads)} GB/s, bf16 peak {describe(peaks)} "
            f"TFLOP/s, load average {describe(loads)}."
        ]
    part = None
    for row in report["rows"]:
        if row["part"] != part:
            part = row["part"]
            lines += ["", f"### {part}", ""]
            lines += ["| | figure | quire | best other | ratio | rounds | goal | met |"]
            lines += ["|---|---|---|---|---|---|---|---|"]
        lines.append(markdown_row(row))
    failures = [f for job in report["jobs"] for f in job["failures"]]
    if failures:
        lines += ["", "### failures", ""] + [f"- {f[:300]}" for f in failures]
    return "\n".join(lines) + "\n"
