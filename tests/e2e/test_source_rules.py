"""The dependency rules between folders (engine/DESIGN.md), by reading includes."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "cli", "engine", "kernels", "server", "tests", "tokenizer")
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)

# What the files under a path may include: prefixes, beside system headers.
ALLOWED = {
    "engine/base": ("engine/base/",),
    "kernels": ("kernels/", "engine/base/"),
    "tokenizer": ("tokenizer/", "engine/base/"),
    "engine": ("engine/", "kernels/"),
    "server": ("server/", "engine/", "tokenizer/"),
    "cli": ("cli/", "server/", "engine/", "tokenizer/", "kernels/", "benchmarks/"),
}
# Folders that run and are tested without a device.
WITHOUT_KERNELS = ("engine/scheduler", "engine/kv_cache", "engine/sequence.", "engine/engine")
# Folders that must not know a concrete backend.
CONCRETE = ("kernels/cpu/", "kernels/reference")


def sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cc", ".inc", ".cu", ".cuh"):
                yield path.relative_to(ROOT).as_posix(), path.read_text()


def is_test(path):
    return path.endswith(("_test.cc", "_fixture.h", "_fixture.cc"))


def own_includes(text):
    return [i for i in INCLUDE.findall(text) if i.split("/")[0] in FOLDERS]


def test_folders_include_only_what_they_may():
    checked = 0
    for path, text in sources():
        if is_test(path):
            continue
        rule = max((r for r in ALLOWED if path.startswith(r + "/")), key=len, default=None)
        if rule is None:
            continue
        for include in own_includes(text):
            checked += 1
            assert include.startswith(ALLOWED[rule]), f"{path} includes {include}"
    assert checked > 100


def test_scheduler_and_cache_know_no_kernels():
    checked = 0
    for path, text in sources():
        if path.startswith(WITHOUT_KERNELS) and not is_test(path):
            checked += 1
            for include in own_includes(text):
                assert not include.startswith("kernels/"), f"{path} includes {include}"
    assert checked > 5


def test_only_the_factory_names_a_backend():
    for path, text in sources():
        if is_test(path) or path.startswith(("kernels/", "tests/", "benchmarks/")):
            continue
        for include in own_includes(text):
            # --version tells the instruction sets.
            if (path, include) == ("cli/version.cc", "kernels/cpu/isa.h"):
                continue
            assert not include.startswith(CONCRETE), f"{path} includes {include}"


def test_no_regular_expressions_on_request_data():
    """std::regex recurses per character: a long input overflows the stack."""
    for path, text in sources():
        if path.startswith(("server/", "tokenizer/")) and not is_test(path):
            assert "std::regex" not in text, path


COMMENT = re.compile(r"//.*")
ANONYMOUS = re.compile(r"^namespace \{\n.*?^\}  // namespace$", re.S | re.M)
NAMESPACE = re.compile(r"^namespace ([\w:]+) \{", re.M)
TYPE = re.compile(
    r"^(?:struct|class|enum class) (?:alignas\([^)]*\) )?(\w+)(?: final)?(?: :[^{;]*)?\s*\{",
    re.M,
)


def test_one_name_means_one_type():
    # Two types of one name in one namespace share the symbols of their destructors
    # and of vectors of them; the linker takes either.
    where = {}
    for path, text in sources():
        text = COMMENT.sub("", ANONYMOUS.sub("", text))
        # Forward declarations of other namespaces come first.
        namespace = (NAMESPACE.findall(text) or [""])[-1]
        if path.endswith("_test.cc"):
            continue
        for name in TYPE.findall(text):
            where.setdefault((namespace, name), []).append(path)
    assert len(where) > 300
    for (namespace, name), paths in where.items():
        assert len(paths) == 1, f"{namespace}::{name} is defined in {paths}"
