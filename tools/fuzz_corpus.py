"""The corpus of a fuzz target in one text file, an input on each line.

    fuzz_corpus.py pack DIRECTORY TARGET     tests/fuzz/corpus/TARGET.txt becomes
                                             the files of DIRECTORY that are no
                                             seeds, the smallest first, while
                                             they are few bytes in all
    fuzz_corpus.py unpack DIRECTORY TARGET   a file of DIRECTORY for each line

Bytes that are not printable, and backslashes, are escaped as in C, in octal:
absl::CUnescape of tests/fuzz/replay_main.cc reads the same.
"""

import hashlib
import pathlib
import re
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1] / "tests" / "fuzz"
# 24 targets stay below 400 KB.
MAX_BYTES = 16 << 10
NAMED = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x5C: "\\\\"}


def escape(data):
    line = "".join(
        NAMED.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}")
        for byte in data
    )
    # Editors cut white space at the end of a line.
    return line[:-1] + "\\040" if line.endswith(" ") else line


def unescape(line):
    values = {ord(text[1]): byte for byte, text in NAMED.items()}

    def value(found):
        code = found.group(1)
        return bytes([int(code, 8) if len(code) == 3 else values[code[0]]])

    return re.sub(rb"\\([0-7]{3}|[nrt\\])", value, line.encode("ascii"))


def pack(directory, target):
    seeds = {path.read_bytes() for path in (TESTS / "seeds" / target).iterdir()}
    inputs = {path.read_bytes() for path in directory.iterdir()} - seeds - {b""}
    lines, size = [], 0
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        line = escape(data)
        assert unescape(line) == data
        size += len(line) + 1
        if size > MAX_BYTES:
            break
        lines.append(line)
    print(f"{target}: {len(lines)} of {len(inputs)} inputs beyond the seeds")
    if lines:
        path = TESTS / "corpus" / f"{target}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(sorted(lines)) + "\n")


def unpack(directory, target):
    path = TESTS / "corpus" / f"{target}.txt"
    for line in path.read_text().splitlines() if path.exists() else ():
        data = unescape(line)
        # As libFuzzer names them.
        (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](pathlib.Path(sys.argv[2]), sys.argv[3])
