"""How the released program is linked and compiled, read from its ELF headers."""

import re
import subprocess

import pytest
from conftest import BINARY


def readelf(*options):
    return subprocess.run(
        ["readelf", "-W", *options, str(BINARY)], capture_output=True, text=True, check=True
    ).stdout


def test_position_independent():
    assert re.search(r"Type:\s+DYN", readelf("-h"))
    assert re.search(r"FLAGS_1.*\bPIE\b", readelf("-d"))


def test_relocations_are_read_only_before_main():
    assert "BIND_NOW" in readelf("-d")
    assert "GNU_RELRO" in readelf("-l")


def test_no_memory_is_writable_and_executable():
    segments = re.findall(r"^\s+(\w+)\s+0x\S+ 0x\S+ 0x\S+ 0x\S+ 0x\S+ (.{3})", readelf("-l"), re.M)
    flags = {name: flag for name, flag in segments}
    assert "GNU_STACK" in flags and "LOAD" in flags
    assert not [name for name, flag in segments if "W" in flag and "E" in flag]
    assert "TEXTREL" not in readelf("-d")


def test_stacks_are_guarded():
    symbols = readelf("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert re.search(r"__\w+_chk\b", symbols.replace("__stack_chk_fail", ""))


def test_indirect_branches_have_landing_pads():
    """ENDBR64 at the beginning of functions; the start files alone have a few."""
    if "X86-64" not in readelf("-h"):
        pytest.skip("x86-64 only")
    assert BINARY.read_bytes().count(b"\xf3\x0f\x1e\xfa") > 1000


def test_libraries_come_from_beside_the_program_only():
    """No absolute path of the machine that built it."""
    dynamic = readelf("-d")
    assert re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic) in (["$ORIGIN/../lib"], [])
