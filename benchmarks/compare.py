#!/usr/bin/env python3
"""quire beside programs of the llama.cpp family: the same model file, the same
threads, in turn, and what the difference is worth.

    benchmarks/compare.py --model M.gguf --threads 4 --rounds 20 \\
        --peer llama="PATH/llama-bench" --peer ik="PATH/llama-bench -rtr 1" \\
        --batched-peer llama=PATH/llama-batched-bench --concurrency 8,16
    benchmarks/compare.py --model M.gguf --server-peer llama=PATH/llama-server \\
        --load "--num-prompts 200 --max-concurrency 16 --input-len 128 --output-len 64"

A round runs every contender once for every figure, in an order that is reversed
from round to round, and probes the machine's ceilings (read bandwidth, peak
arithmetic) before and after. Rounds are pairs: each gives one ratio of quire to a
peer, and the ratio printed is the geometric mean of them with its 95 % interval
(Student's t of the logarithms). A difference is named only if that interval does
not contain 1; with fewer than 5 rounds none is.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile

import suite
from paired import compare, describe
from programs import (
    ProgramError,
    Server,
    batched_rows,
    bench_rows,
    probe,
    quire_is_ready,
    run,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Bench:
    """A contender that is a program with rows."""

    def __init__(self, name, commands):
        self.name = name
        self.commands = commands  # (function, command)

    def measure(self):
        rates = {}
        for function, command in self.commands:
            rates.update(function(command))
        return rates

    def stop(self):
        pass


class LoadedServer(Server):
    """A contender that is a server, under the load of `quire bench serve`."""

    def __init__(self, name, command, port, ready, load):
        super().__init__(command, port, ready)
        self.name = name
        self.load = load

    def measure(self):
        with tempfile.TemporaryDirectory() as folder:
            name = "result.json"
            run(
                [*self.load, "--port", str(self.port), "--save-result"]
                + ["--result-dir", folder, "--result-filename", name]
            )
            result = json.loads((pathlib.Path(folder) / name).read_text())
        figures = {
            "requests/s": result["request_throughput"],
            "output tokens/s": result["output_throughput"],
        }
        # More is better in every figure.
        for metric in ("ttft", "tpot"):
            if result[f"median_{metric}_ms"] > 0:
                figures[f"1 / median {metric}"] = 1e3 / result[f"median_{metric}_ms"]
        return figures


def named(text):
    name, equals, command = text.partition("=")
    if not equals or not name or not command:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=COMMAND")
    return name, absolute(shlex.split(command))


def absolute(command):
    """The program by its whole path: it is started in another directory."""
    path = pathlib.Path(command[0])
    return [str(path.resolve()) if path.exists() else command[0], *command[1:]]


def bench_contenders(args):
    common = ["-m", args.model, "-t", str(args.threads)]
    rows = ["-p", args.prompt, "-n", args.gen, "-r", str(args.repetitions)]
    ours = [*args.quire, "bench", "model", *common, *shlex.split(args.quire_args)]
    commands = [(bench_rows, ours + rows + ["-o", "json"])]
    if args.concurrency:
        batched = ["-p", "0", "-n", args.batched_gen, "--concurrency", args.concurrency]
        # The row of one sequence at depth 0 would come a second time.
        commands.append(
            (batched_only, ours + batched + ["-r", str(args.repetitions), "-o", "json"])
        )
    contenders = [Bench("quire", commands)]
    peers = {}
    for name, command in args.peer:
        peers.setdefault(name, []).append(
            (bench_rows, command[:1] + common + rows + ["-o", "json"] + command[1:])
        )
    for name, command in args.batched_peer if args.concurrency else []:
        most = max(int(n) for n in args.concurrency.split(","))
        gen = int(args.batched_gen)
        batched = ["-c", str(most * (128 + gen) + 256), "-npp", "128", "-ntg", str(gen)]
        batched += ["-npl", args.concurrency, "-tb", str(args.threads)]
        peers.setdefault(name, []).append(
            (batched_rows, command[:1] + common + batched + command[1:])
        )
    return contenders + [Bench(name, commands) for name, commands in peers.items()]


def batched_only(command):
    return {name: rate for name, rate in bench_rows(command).items() if " x " in name}


def server_contenders(args):
    load = [*args.quire, "bench", "serve", "--disable-tqdm", *shlex.split(args.load)]
    common = ["-t", str(args.threads)]

    def answers(server):
        done = subprocess.run(
            [*load[:3], "--port", str(server.port), "--num-prompts", "1"]
            + ["--input-len", "8", "--output-len", "2", "--disable-tqdm"],
            capture_output=True,
        )
        return done.returncode == 0

    ours = [*args.quire, "serve", args.model, "--port", "0", *common]
    contenders = [
        LoadedServer(
            "quire", ours + shlex.split(args.quire_args), 0, quire_is_ready, load
        )
    ]
    for i, (name, command) in enumerate(args.server_peer):
        port = args.first_port + i
        full = command[:1] + ["-m", args.model, "--port", str(port), *common] + command[1:]
        contenders.append(LoadedServer(name, full, port, answers, load))
    return contenders


def measure(contenders, args):
    """Figures of every contender by round, and the probes between."""
    samples = {contender.name: {} for contender in contenders}
    probes = [probe(args.quire, args.threads)]
    for number in range(args.rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        for contender in order:
            for figure, value in contender.measure().items():
                samples[contender.name].setdefault(figure, []).append(value)
        probes.append(probe(args.quire, args.threads))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return samples, probes


def summarize(samples):
    """Per figure: ratios to each peer, and to the best of them."""
    results = []
    for figure, ours in samples["quire"].items():
        peers = {
            name: figures[figure]
            for name, figures in samples.items()
            if name != "quire" and len(figures.get(figure, [])) == len(ours)
        }
        if not peers:
            continue
        best = max(peers, key=lambda name: statistics.median(peers[name]))
        results.append(
            {
                "figure": figure,
                "quire": ours,
                "peers": {
                    name: {"samples": values, **compare(ours, values)}
                    for name, values in peers.items()
                },
                "best_peer": best,
            }
        )
    return results


def print_table(results, probes):
    reads = [p["read_bytes_per_second"] / 1e9 for p in probes]
    peaks = [p["bf16_flops"] / 1e12 for p in probes]
    loads = [p["load_average"] for p in probes]
    print(f"read bandwidth {describe(reads)} GB/s, bf16 peak {describe(peaks)} TFLOP/s,")
    print(f"load average {describe(loads)}; median [min, max]\n")
    print("| figure | quire | peer | its figure | ratio [95 %] | |")
    print("|---|---|---|---|---|---|")
    for result in results:
        for name, peer in result["peers"].items():
            mark = " (best)" if name == result["best_peer"] else ""
            interval = (
                f" [{peer['low']:.3f}, {peer['high']:.3f}]"
                if peer["low"] is not None
                else ""
            )
            print(
                f"| {result['figure']} | {describe(result['quire'])} | {name}{mark} "
                f"| {describe(peer['samples'])} | {peer['ratio']:.3f}{interval} "
                f"| {peer['verdict']} |"
            )


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="GGUF file for all of them")
    parser.add_argument("--peer", type=named, action="append", default=[],
                        metavar="NAME=COMMAND", help="llama-bench and arguments")
    parser.add_argument("--batched-peer", type=named, action="append", default=[],
                        metavar="NAME=COMMAND", help="llama-batched-bench")
    parser.add_argument("--server-peer", type=named, action="append", default=[],
                        metavar="NAME=COMMAND", help="llama-server")
    parser.add_argument("--quire", type=lambda text: absolute(shlex.split(text)),
                        default=[str(ROOT / "bazel-bin" / "cli" / "quire")])
    parser.add_argument("--quire-args", default="", help="further, for quire alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repetitions", "-r", type=int, default=1, help="in a round")
    parser.add_argument("--prompt", "-p", default="512")
    parser.add_argument("--gen", "-n", default="128")
    parser.add_argument("--concurrency", default="", help="8,16: batched decode")
    parser.add_argument("--batched-gen", default="32")
    parser.add_argument("--load", default="", help="arguments of quire bench serve")
    parser.add_argument("--first-port", type=int, default=18080)
    parser.add_argument("--json", help="file for all samples")
    args = parser.parse_args(argv)
    args.model = str(pathlib.Path(args.model).resolve())
    if bool(args.server_peer) == bool(args.peer or args.batched_peer):
        parser.error("give --peer and --batched-peer, or --server-peer")
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    return args


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["suite"]:
        return suite.main(argv[1:])
    args = parse_arguments(argv)
    make = server_contenders if args.server_peer else bench_contenders
    contenders = []
    try:
        contenders = make(args)
        samples, probes = measure(contenders, args)
    except ProgramError as error:
        return f"compare.py: {error}"
    finally:
        for contender in contenders:
            contender.stop()
    results = summarize(samples)
    print_table(results, probes)
    if args.json:
        report = {
            "model": args.model,
            "threads": args.threads,
            "command": shlex.join(sys.argv),
            "probes": probes,
            "results": results,
        }
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
