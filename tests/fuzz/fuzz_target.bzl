"""One fuzz target: a libFuzzer binary, and a replay of its seeds as a test."""

load("@rules_cc//cc:defs.bzl", "cc_binary", "cc_library", "cc_test")

def fuzz_target(name, deps, num_mutants = 20000):
    """Declares `name` (manual: needs clang and --config=fuzz) and NAME_replay_test.

    Args:
      name: also the source file's name, NAME.cc; the seeds are seeds/NAME/* and
        the lines of corpus/NAME.txt.
      deps: what the source includes.
      num_mutants: random changes of the seeds that the test replays.
    """
    cc_library(
        name = name + "_lib",
        testonly = True,
        srcs = [name + ".cc"],
        deps = deps,
        alwayslink = True,
    )
    cc_binary(
        name = name,
        testonly = True,
        tags = ["manual"],
        deps = [":" + name + "_lib"],
    )
    native.filegroup(
        name = name + "_seeds",
        srcs = native.glob(["seeds/" + name + "/*"]),
    )
    corpus = native.glob(["corpus/" + name + ".txt"])
    cc_test(
        name = name + "_replay_test",
        size = "small",
        args = ["--mutants=%d" % num_mutants] + [
            "--lines=$(location %s)" % file
            for file in corpus
        ] + [
            "$(locations :" + name + "_seeds)",
        ],
        data = [":" + name + "_seeds"] + corpus,
        deps = [
            ":" + name + "_lib",
            ":replay_main",
        ],
    )
