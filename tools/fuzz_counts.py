"""The executions of fuzz targets, which tests/fuzz/README.md adds up.

    fuzz_counts.py order GOAL TARGET...   "TARGET REMAINING", the least executed
                                          first, without those that have GOAL
                                          executions; -1 remains if GOAL is 0
    fuzz_counts.py add DIRECTORY COUNTS TARGET
        prints what the runs of tools/fuzz.sh did whose logs lie in DIRECTORY and
        adds it to the table if COUNTS is 1; each log once
"""

import fcntl
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "tests" / "fuzz" / "README.md"
ROW = re.compile(r"\| `(\w+)` \| ([\d ]+) \| ([\d ]+) \| (\S+) \| (\d+) \| (\d+) \|")
MODES = ("fast", "sanitized")


def executions(path):
    """Of one run, also of one that was killed before its final statistics."""
    text = path.read_text(errors="replace")
    final = re.findall(r"stat::number_of_executed_units:\s+(\d+)", text)
    status = re.findall(r"^#(\d+)\t", text, re.MULTILINE)
    return int((final or status or ["0"])[-1])


def reach(path):
    """(edges covered, inputs in the corpus) at the end of a run."""
    if not path.exists():
        return None
    status = re.findall(r"cov: (\d+) .*?corp: (\d+)/", path.read_text(errors="replace"))
    return status[-1] if status else None


def spaced(number):
    return f"{number:,}".replace(",", " ")


class Table:
    def __init__(self):
        self.lines = README.read_text().splitlines()
        self.rows = {
            found.group(1): list(found.groups()[1:])
            for line in self.lines
            if (found := ROW.fullmatch(line))
        }
        for row in self.rows.values():
            row[:2] = (int(count.replace(" ", "")) for count in row[:2])

    def total(self, target):
        return sum(self.rows[target][:2]) if target in self.rows else 0

    def write(self):
        text = [line for line in self.lines if not ROW.fullmatch(line)]
        head = next(i for i, line in enumerate(text) if line.startswith("|---"))
        text[head + 1 : head + 1] = [
            f"| `{target}` | {spaced(row[0])} | {spaced(row[1])} | {row[2]} | {row[3]} | {row[4]} |"
            for target, row in sorted(self.rows.items())
        ]
        README.write_text("\n".join(text) + "\n")


def add(directory, counts, target):
    counted = {}
    for mode in MODES:
        # One of each process.
        for log in sorted(directory.glob(f"{target}.{mode}.[0-9]*.log")):
            counted[mode] = counted.get(mode, 0) + executions(log)
            log.rename(directory / f"{target}.{mode}.counted.log")
    if not any(counted.values()):
        return
    # Both of the sanitized build: the edges of the other are not the same.
    reached = reach(directory / f"{target}.replay.log") if "fast" in counted else None
    reached = reached or reach(directory / f"{target}.sanitized.counted.log")
    print(f"{target}: {counted}, edges and inputs: {reached}", flush=True)
    if not counts:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    table = Table()
    row = table.rows.setdefault(target, [0, 0, "-", "0", "0"])
    for i, mode in enumerate(MODES):
        row[i] += counted.get(mode, 0)
    row[2] = commit or "-"
    if reached:
        row[3:] = reached
    table.write()


def order(goal, targets):
    table = Table()
    for target in sorted(targets, key=table.total):
        remaining = goal - table.total(target)
        if goal == 0 or remaining > 0:
            print(target, remaining if goal else -1)


def main():
    if sys.argv[1] == "order":
        order(int(sys.argv[2]), sys.argv[3:])
        return
    # Runs that end at the same time.
    with open(pathlib.Path(sys.argv[2]) / "counts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        add(pathlib.Path(sys.argv[2]), sys.argv[3] == "1", sys.argv[4])


if __name__ == "__main__":
    main()
