"""Paired measurements: what a ratio is worth."""

import math
import statistics

MIN_ROUNDS = 5
# Two-sided 95 % of Student's t by degrees of freedom; the last for more.
T_95 = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201,
    2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074,
    2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
]  # fmt: skip


def compare(ours, theirs):
    """Ratio of paired measurements (more is better) with its 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    result = {"rounds": len(logs), "ratio": math.exp(mean), "low": None, "high": None}
    if len(logs) >= 2:
        t = T_95[min(len(logs) - 1, len(T_95)) - 1]
        half = t * statistics.stdev(logs) / math.sqrt(len(logs))
        result["low"], result["high"] = math.exp(mean - half), math.exp(mean + half)
    if len(logs) < MIN_ROUNDS:
        result["verdict"] = f"not established: fewer than {MIN_ROUNDS} rounds"
    elif result["low"] > 1:
        result["verdict"] = "quire is faster"
    elif result["high"] < 1:
        result["verdict"] = "quire is slower"
    else:
        result["verdict"] = "not established: the interval contains 1"
    return result


def number(value):
    """Four digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe(values, unit=""):
    """Median [min, max]."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{number(middle)} [{number(low)}, {number(high)}]{unit}"
