"""A library and its variant in which bugs can be switched on."""

load("@rules_cc//cc:defs.bzl", "cc_library")

SUFFIX = "_with_planted_bugs"

def cc_library_with_planted_bugs(name, deps, twin_deps = [], testonly = False, **kwargs):
    """Declares `name` and, for tests, `name`_with_planted_bugs.

    Args:
      name: of the ordinary library.
      deps: of both; must not lead to a library that has a variant.
      twin_deps: labels ("//package:name" or ":name") that have a variant
        themselves: each of the two libraries depends on its own kind.
      testonly: of the ordinary library.
      **kwargs: of both.
    """
    cc_library(
        name = name,
        testonly = testonly,
        deps = deps + twin_deps,
        **kwargs
    )
    cc_library(
        name = name + SUFFIX,
        testonly = True,
        defines = ["QUIRE_SIM_BUG"],
        deps = deps + [dep + SUFFIX for dep in twin_deps],
        **kwargs
    )
