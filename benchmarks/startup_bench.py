#!/usr/bin/env python3
"""Time from exec until `quire serve` answers /health/ready with 200.

Usage: benchmarks/startup_bench.py [RUNS [ARGUMENT OF serve ...]]
Prints minimum, median and maximum in milliseconds.
"""

import http.client
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

BINARY = pathlib.Path(__file__).resolve().parents[1] / "bazel-bin" / "cli" / "quire"


def start_once(arguments):
    start = time.monotonic()
    process = subprocess.Popen(
        [str(BINARY), "serve", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True
    )
    port = None
    for line in process.stdout:
        found = re.search(r"address\s+http://\S+:(\d+)", line)
        if found:
            port = int(found.group(1))
        if line.strip().startswith("ready in"):
            break
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health/ready")
    assert connection.getresponse().status == 200
    elapsed = time.monotonic() - start
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return elapsed * 1e3


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    times = [start_once(sys.argv[2:]) for _ in range(runs)]
    print(
        f"exec to ready: min {min(times):.1f} ms, median {statistics.median(times):.1f} ms, "
        f"max {max(times):.1f} ms ({runs} runs)"
    )


if __name__ == "__main__":
    main()
