#!/usr/bin/env python3
"""Sums the test cases of a `bazel test` run.

Reads test labels from standard input and their XML reports under
bazel-testlogs, one for each shard; prints "passed failed skipped". A target
without a report (it did not build, crashed or timed out) counts as one failed case.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count(report):
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main():
    logs = pathlib.Path("bazel-testlogs")
    totals = [0, 0, 0]
    for label in sys.stdin.read().split():
        folder = logs / label.lstrip("/").replace(":", "/")
        shards = sorted(folder.glob("shard_*_of_*")) or [folder]
        for shard in shards:
            try:
                counts = count(shard / "test.xml")
            except (OSError, ElementTree.ParseError):
                counts = (0, 1, 0)
            totals = [total + more for total, more in zip(totals, counts)]
    print(*totals)


if __name__ == "__main__":
    main()
