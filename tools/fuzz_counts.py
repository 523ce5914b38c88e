"""Reads the logs of tools/fuzz.sh: prints what each target did, and adds it to
the table of tests/fuzz/README.md."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "tests" / "fuzz" / "README.md"
ROW = re.compile(r"\| `(\w+)` \| ([\d ]+) \|.*")


def read_log(path):
    """(executions, edges covered, inputs in the corpus) of one run."""
    text = path.read_text(errors="replace")
    executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", text)
    status = re.findall(r"cov: (\d+) .*?corp: (\d+)/", text)
    edges, inputs = status[-1] if status else ("0", "0")
    return int(executed.group(1)) if executed else 0, edges, inputs


def main():
    directory, counts, targets = pathlib.Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3:]
    commit = subprocess.run(
        ["git", "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lines = README.read_text().splitlines()
    rows = {found.group(1): found.group(0) for line in lines if (found := ROW.fullmatch(line))}
    for target in targets:
        executed, edges, inputs = read_log(directory / f"{target}.log")
        print(f"{target}: {executed} executions, {edges} edges, {inputs} inputs")
        if not counts or executed == 0:
            continue
        before = int(ROW.fullmatch(rows[target]).group(2).replace(" ", "")) if target in rows else 0
        total = f"{before + executed:,}".replace(",", " ")
        rows[target] = f"| `{target}` | {total} | {commit or '-'} | {edges} | {inputs} |"
    text = [line for line in lines if not ROW.fullmatch(line)]
    head = next(i for i, line in enumerate(text) if line.startswith("|---"))
    text[head + 1 : head + 1] = [rows[target] for target in sorted(rows)]
    README.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
