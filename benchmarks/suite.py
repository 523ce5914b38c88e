"""Every figure that quire sets itself against the llama.cpp family, in one run.

    benchmarks/compare.py suite --models DIR --peer llama=BIN --peer ik=BIN \\
        --minutes 25 --json result.json --markdown result.md

DIR holds SHAPE-TYPE.gguf (llama1b, qwen05b; bf16, q8_0, q4_0, q4_k_m) and the demo
model as demo-TYPE.gguf; BIN the peer's llama-bench, llama-batched-bench,
llama-server and llama-perplexity. A peer that can repack weights when it loads them
(-rtr), or can be told not to (--repack 0), is measured both ways.

Jobs take turns, a few rounds each, until every one has its rounds or the time is
up; a round runs every contender once, in an order that is reversed from round to
round. A contender that is far behind another peer in everything a job measures is
left out of the job's further rounds. Ratios are geometric means of paired rounds
with their 95 % interval (Student's t of the logarithms); the best peer is the one
with the highest median of those that stayed. What fails is reported and the rest
goes on.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import goals
from programs import (
    ProgramError,
    Server,
    batched_rows,
    bench_objects,
    deadline,
    divergence,
    free_port,
    probe,
    quire_is_ready,
    row_name,
    run,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
TYPES = ["bf16", "q8_0", "q4_0", "q4_k_m"]
SHAPES = ["llama1b", "qwen05b"]
PARTS = ["model", "one-thread", "batched", "server", "prefix", "load", "gemm", "quality"]
CONCURRENCY = [8, 16, 32]
CLIENTS = [1, 4, 16, 32]
# Tokens of a prompt and of an answer of the server's load.
INPUT_LEN, OUTPUT_LEN = 64, 64
PREFIX_LEN = 2000
# What the demo model was trained to answer; its answers are the text that the
# quantized forms are scored on, so many of them in a round.
ANSWERS = 40
PROMPTS = [
    "Tell me a short story.", "What is 7 + 5?", "Name some animals, please.",
    "Hello! Who are you?", "Count from 1 to 10.", "Say something nice.",
    "List three colors.", "What can you do?", "Name some fruits.",
    "Write a short text about a dog.",
]  # fmt: skip


class Peer:
    """A build of the llama.cpp family and one way to load weights with it."""

    def __init__(self, name, folder, repack=None):
        self.name, self.folder, self.repack = name, folder, repack

    def program(self, name):
        return str(self.folder / name)

    # The one program takes a value, the others are switches.
    def bench_args(self):
        return {"-rtr": ["-rtr", "1"], "--no-repack": ["--repack", "0"]}.get(
            self.repack, []
        )

    def args(self):
        return [self.repack] if self.repack else []


def find_peers(named):
    """The ways in which each build can be run, by what its help offers."""
    peers = []
    for name, folder in named:
        peers.append(Peer(name, folder))
        done = subprocess.run(
            [str(folder / "llama-bench"), "--help"], capture_output=True, text=True
        )
        text = done.stdout + done.stderr
        if "-rtr" in text:
            peers.append(Peer(f"{name} -rtr", folder, "-rtr"))
        elif "--repack <0|1>" in text:
            peers.append(Peer(f"{name} no-repack", folder, "--no-repack"))
    return peers


class Job:
    """What is measured in rounds.

    samples[figure][contender][round]: more is better in every figure that has
    more than one contender.
    """

    chunk = 2  # Rounds before the next job has its turn.

    def __init__(self, part, title, num_rounds):
        self.part, self.title, self.want = part, title, num_rounds
        self.contenders = {}  # Name: function of the round's number.
        self.samples = {}
        self.failures = []
        self.dropped = {}  # Name: why.
        self.num_rounds = 0
        self.seconds = 0.0
        self.references = set()  # Contenders that are no peers.

    def begin(self):
        """Before a chunk of rounds."""

    def end(self):
        """After one."""

    def run_round(self):
        start = time.monotonic()
        names = list(self.contenders)
        for name in names if self.num_rounds % 2 == 0 else names[::-1]:
            try:
                figures = self.contenders[name](self.num_rounds)
            except (ProgramError, KeyError, ValueError, OSError) as error:
                self.failures.append(f"{self.title}, {name}: {error}")
                del self.contenders[name]
                if name == "quire":
                    self.want = self.num_rounds  # Nothing to compare with.
                    return
                continue
            for figure, value in figures.items():
                by_name = self.samples.setdefault(figure, {})
                by_name.setdefault(name, {})[self.num_rounds] = value
        self.num_rounds += 1
        self.seconds += time.monotonic() - start
        self.drop_hopeless()

    def drop_hopeless(self):
        """Peers that no figure's best can turn out to be, once that is clear."""
        if self.num_rounds < 2:
            return
        margin = 0.8 if self.num_rounds < 4 else 0.9
        peers = [n for n in self.contenders if n != "quire" and n not in self.references]
        hopeful = set()
        for by_name in self.samples.values():
            medians = {
                n: statistics.median(by_name[n].values()) for n in peers if n in by_name
            }
            best = max(medians.values(), default=0)
            hopeful |= {n for n, value in medians.items() if value >= margin * best}
        for name in peers:
            if name not in hopeful and hopeful:
                self.dropped[name] = f"below {margin} of the best peer, {self.num_rounds} rounds"
                del self.contenders[name]

    def estimate(self):
        return self.seconds / self.num_rounds if self.num_rounds else 0.0

    def report(self):
        return {
            "part": self.part,
            "title": self.title,
            "rounds": self.num_rounds,
            "wanted": self.want,
            "samples": self.samples,
            "dropped": self.dropped,
            "failures": self.failures,
        }


class ModelJob(Job):
    """Rows of llama-bench and `quire bench model`."""

    def __init__(self, suite, part, shape, type_, threads, num_rounds, prefill_rounds):
        super().__init__(part, f"{shape} {type_}", num_rounds)
        self.path = str(suite.model(shape, type_))
        self.suite, self.threads = suite, threads
        self.prefill_rounds = prefill_rounds
        self.num_gen = suite.args.gen if threads > 1 else min(suite.args.gen, 16)
        self.shape, self.type = shape, type_
        self.contenders["quire"] = self.measure_quire
        for peer in suite.peers:
            self.contenders[peer.name] = lambda n, peer=peer: self.measure_peer(peer, n)

    def rows(self, number):
        prompt = "512" if number < self.prefill_rounds else "0"
        return ["-m", self.path, "-t", str(self.threads), "-p", prompt] + [
            "-n", str(self.num_gen), "-r", "1", "-o", "json",
        ]  # fmt: skip

    def measure_quire(self, number):
        command = [*self.suite.quire, "bench", "model", *self.rows(number)]
        figures = {}
        for row in bench_objects(command + ["--ceilings"]):
            name = row_name(row)
            figures[name] = row["avg_ts"]
            percent = (
                row["percent_of_bf16_peak"]
                if row["n_prompt"]
                else row["percent_of_read_bandwidth"]
            )
            figures[f"{name} % of {'peak' if row['n_prompt'] else 'read'}"] = percent[0]
        return figures

    def measure_peer(self, peer, number):
        command = [peer.program("llama-bench"), *self.rows(number), *peer.bench_args()]
        return {row_name(row): row["avg_ts"] for row in bench_objects(command)}


class BatchedJob(Job):
    """Decode of several sequences at once."""

    def __init__(self, suite, shape, type_, num_rounds):
        super().__init__("batched", f"{shape} {type_}", num_rounds)
        self.path = str(suite.model(shape, type_))
        self.suite = suite
        self.shape, self.type = shape, type_
        self.depth, self.num_gen = suite.args.batched_prompt, suite.args.batched_gen
        self.contenders["quire"] = self.measure_quire
        for peer in suite.peers:
            self.contenders[peer.name] = lambda n, peer=peer: self.measure_peer(peer)

    def measure_quire(self, _):
        command = [*self.suite.quire, "bench", "model", "-m", self.path, "-o", "json"]
        command += ["-t", str(self.suite.args.threads), "-p", "0", "-n", "0", "-r", "1"]
        command += ["--concurrency", ",".join(map(str, CONCURRENCY))]
        command += ["--batched-prompt", str(self.depth)]
        command += ["--batched-gen", str(self.num_gen)]
        return {row_name(row): row["avg_ts"] for row in bench_objects(command)}

    def measure_peer(self, peer):
        most = max(CONCURRENCY)
        threads = str(self.suite.args.threads)
        command = [peer.program("llama-batched-bench"), "-m", self.path]
        command += ["-t", threads, "-tb", threads, "-npp", str(self.depth)]
        command += ["-ntg", str(self.num_gen), "-npl", ",".join(map(str, CONCURRENCY))]
        command += ["-c", str(most * (self.depth + self.num_gen) + 256), *peer.args()]
        return batched_rows(command)


def is_healthy(server):
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/health", timeout=5
        ) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class ServerJob(Job):
    """Streaming clients in a closed loop, and the same work without HTTP."""

    def __init__(self, suite, num_rounds):
        super().__init__("server", f"http, {suite.tiny.name}", num_rounds)
        self.suite = suite
        self.servers = {}
        self.references = {"in-process"}
        self.contenders["quire"] = lambda n: self.load("quire", n)
        self.contenders["in-process"] = self.in_process
        # Repacking a model this small changes nothing that shows.
        self.server_peers = [peer for peer in suite.peers if peer.repack is None]
        self.peer_names = {peer.name for peer in self.server_peers}
        for name in self.peer_names:
            self.contenders[name] = lambda n, name=name: self.load(name, n)

    def begin(self):
        threads = ["-t", str(self.suite.args.threads)]
        model = str(self.suite.tiny)
        if "quire" in self.contenders:
            command = [*self.suite.quire, "serve", model, "--port", "0", *threads]
            self.start("quire", command, 0, quire_is_ready)
        slots = max(CLIENTS)
        context = str(slots * (INPUT_LEN + OUTPUT_LEN) * 2)
        for peer in self.server_peers:
            if peer.name in self.contenders:
                port = free_port()
                command = [peer.program("llama-server"), "-m", model, *threads]
                command += ["--port", str(port), "-np", str(slots), "-c", context]
                self.start(peer.name, command, port, is_healthy)

    def start(self, name, command, port, ready):
        try:
            self.servers[name] = Server(command, port, ready)
            self.bench(name, 4, 16, seed=10**6)  # Warms it up.
        except (ProgramError, OSError) as error:
            self.failures.append(f"{self.title}, {name}: {error}")
            del self.contenders[name]

    def end(self):
        for server in self.servers.values():
            server.stop()
        self.servers = {}

    def num_prompts(self, name, clients):
        # Ten waves and more. What answers in half a second is as much luck as
        # speed: quire, and the same without HTTP, get eight times as many.
        num_prompts = 30 + 10 * clients
        return num_prompts if name in self.peer_names else 8 * num_prompts

    def bench(self, name, clients, num_prompts, seed):
        with tempfile.TemporaryDirectory() as folder:
            run(
                [*self.suite.quire, "bench", "serve", "--disable-tqdm", "--ignore-eos"]
                + ["--skip-tokenizer-init", "--port", str(self.servers[name].port)]
                + ["--num-prompts", str(num_prompts), "--seed", str(seed)]
                + ["--max-concurrency", str(clients), "--input-len", str(INPUT_LEN)]
                + ["--output-len", str(OUTPUT_LEN), "--save-result"]
                + ["--result-dir", folder, "--result-filename", "r.json"],
                timeout=90,
            )
            return json.loads((pathlib.Path(folder) / "r.json").read_text())

    def load(self, name, number):
        figures = {}
        for clients in CLIENTS:
            # Prompts that no server has seen; a peer's are quire's first.
            seed = 1000 * (number + 1) + clients
            num_prompts = self.num_prompts(name, clients)
            result = self.bench(name, clients, num_prompts, seed)
            figures[f"{clients} clients, requests/s"] = result["request_throughput"]
            figures[f"{clients} clients, 1 / median TTFT"] = (
                1e3 / result["median_ttft_ms"]
            )
        return figures

    def in_process(self, number):
        figures = {}
        for clients in CLIENTS:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "r.json"
                run(
                    [*self.suite.quire, "bench", "throughput", "--temperature", "0"]
                    + ["-m", str(self.suite.tiny), "-t", str(self.suite.args.threads)]
                    + ["--max-num-seqs", str(clients), "--seed", str(number)]
                    + ["--num-prompts", str(self.num_prompts("in-process", clients))]
                    + ["--input-len", str(INPUT_LEN), "--output-len", str(OUTPUT_LEN)]
                    + ["--output-json", str(path)]
                )
                result = json.loads(path.read_text())
            figures[f"{clients} clients, requests/s"] = result["requests_per_second"]
        return figures


class PrefixJob(Job):
    """Two requests, one after the other, with the first 2,000 tokens in common."""

    def __init__(self, suite, path, num_rounds):
        super().__init__("prefix", f"prefix, {path.name}", num_rounds)
        self.suite, self.path = suite, path
        self.server = None
        self.contenders["quire"] = self.measure

    def begin(self):
        command = [*self.suite.quire, "serve", str(self.path), "--port", "0"]
        command += ["-t", str(self.suite.args.threads), "--max-model-len", "2048"]
        try:
            self.server = Server(command, 0, quire_is_ready)
        except (ProgramError, OSError) as error:
            self.failures.append(f"{self.title}: {error}")
            self.want = 0

    def end(self):
        if self.server:
            self.server.stop()
        self.server = None

    def measure(self, number):
        if not self.server:
            raise ProgramError("no server")
        with tempfile.TemporaryDirectory() as folder:
            run(
                [*self.suite.quire, "bench", "serve", "--disable-tqdm", "--ignore-eos"]
                + ["--skip-tokenizer-init", "--port", str(self.server.port)]
                + ["--num-prompts", "2", "--max-concurrency", "1"]
                + ["--seed", str(number + 77), "--dataset-name", "prefix_repetition"]
                + ["--prefix-repetition-prefix-len", str(PREFIX_LEN)]
                + ["--prefix-repetition-suffix-len", "16", "--output-len", "2"]
                + ["--prefix-repetition-num-prefixes", "1", "--save-detailed"]
                + ["--result-dir", folder, "--result-filename", "r.json"]
            )
            result = json.loads((pathlib.Path(folder) / "r.json").read_text())
        first, second = result["ttfts"]
        return {"first TTFT, s": first, "second TTFT, s": second}


class LoadJob(Job):
    """From exec to ready, from the page cache; and memory for the weights."""

    def __init__(self, suite, path, num_rounds):
        super().__init__("load", f"load, {path.name}", num_rounds)
        self.suite, self.path = suite, path
        self.threads = ["-t", str(suite.args.threads)]
        self.contenders["quire"] = self.measure_quire
        for peer in suite.peers:
            self.contenders[peer.name] = lambda n, peer=peer: self.measure_peer(peer)

    def measure_quire(self, _):
        # Little beside the weights: a KV cache of one short sequence.
        command = [*self.suite.quire, "serve", str(self.path)]
        command += [*self.threads, "--max-model-len", "256", "--max-num-seqs", "1"]
        command += ["--kv-cache-memory-bytes", "16MiB"]
        first, server = self.start_twice([*command, "--port", "0"], 0, quire_is_ready)
        size = self.path.stat().st_size
        return {
            "1 / seconds to ready": 1 / server.seconds_to_ready,
            "1 / seconds to ready, first start": 1 / first.seconds_to_ready,
            "resident % of the file": 100 * server.resident / size,
            "peak % of the file": 100 * server.peak / size,
        }

    def measure_peer(self, peer):
        port = free_port()
        command = [peer.program("llama-server"), "-m", str(self.path), *self.threads]
        command += ["--port", str(port), "-c", "256", "-np", "1", *peer.args()]
        first, server = self.start_twice(command, port, is_healthy)
        return {
            "1 / seconds to ready": 1 / server.seconds_to_ready,
            "1 / seconds to ready, first start": 1 / first.seconds_to_ready,
        }

    def start_twice(self, command, port, ready):
        """The host of a virtual machine takes back memory that is not in use. A
        first start waits until it has come again, a second one shows the load."""
        servers = []
        for _ in range(2):
            server = Server(command, port, ready, interval=0.005)
            server.resident, server.peak = server.resident_bytes(), server.peak_bytes()
            server.stop()
            servers.append(server)
        return servers


class GemmJob(Job):
    """The linear layers of 512 tokens in bf16, alone."""

    def __init__(self, suite, num_rounds):
        super().__init__("gemm", "linear layers, bf16, 512 tokens", num_rounds)
        self.suite = suite
        self.contenders["quire"] = self.measure

    def measure(self, _):
        figures = {}
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "r.json"
            run(
                [*self.suite.quire, "bench", "kernels", "-r", "3", "--rows", "512"]
                + ["--filter", " 512x", "--threads", str(self.suite.args.threads)]
                + ["--output-json", str(path)]
            )
            rows = json.loads(path.read_text())["rows"]
        for preset in ("llama-3.2-1b", "qwen2.5-0.5b"):
            # All of a layer's matrices as one: arithmetic over time.
            own = [
                r for r in rows
                if r["name"].startswith(preset) and "norm" not in r["name"]
                and r.get("percent_of_peak")
            ]  # fmt: skip
            if not own:
                continue
            at_peak = sum(
                statistics.median(r["percent_of_peak"])
                / 100 * statistics.median(r["seconds"])
                for r in own
            )  # fmt: skip
            seconds = sum(statistics.median(r["seconds"]) for r in own)
            figures[f"{preset} % of peak"] = 100 * at_peak / seconds
        return figures


class QualityJob(Job):
    """Divergence of the demo model's quantized forms from its f32 form.

    Every round scores a text of its own, the same for all contenders, so that
    rounds are pairs here too: the difference between programs is far smaller
    than that between texts.
    """

    def __init__(self, suite, num_rounds):
        super().__init__("quality", "divergence from f32, demo model", num_rounds)
        self.suite = suite
        self.exact = suite.models / "demo-f32.gguf"
        self.types = [
            path.stem.removeprefix("demo-")
            for path in sorted(suite.models.glob("demo-*.gguf"))
            if path.stem not in ("demo-f32", "demo-f16", "demo-bf16")
        ]
        self.folder = tempfile.TemporaryDirectory()
        self.contenders["quire"] = self.measure_quire
        for peer in suite.peers:
            if peer.repack is None:
                self.contenders[peer.name] = lambda n, peer=peer: self.measure_peer(peer, n)

    def text(self, number):
        """The path of a round's text."""
        path = pathlib.Path(self.folder.name) / f"text-{number}.txt"
        if path.exists():
            return str(path)
        if self.suite.args.text:
            lines = pathlib.Path(self.suite.args.text).read_text().splitlines()
            first, last = (len(lines) * i // self.want for i in (number, number + 1))
            path.write_text("\n".join(lines[first:last]) + "\n")
            return str(path)
        # Of the model's own language.
        answers = []
        for i in range(ANSWERS):
            seed = ANSWERS * number + i
            command = [*self.suite.quire, "generate", "-m", str(self.exact), "--chat"]
            command += ["--prompt", PROMPTS[seed % len(PROMPTS)], "-t", "1"]
            command += ["--temperature", "1", "--seed", str(seed), "--max-tokens", "120"]
            answers.append(run(command)[0].strip())
        path.write_text("\n".join(answers) + "\n")
        return str(path)

    def measure_quire(self, number):
        figures = {}
        for type_ in self.types:
            path = pathlib.Path(self.folder.name) / "quality.json"
            # The peers' cache is f16: only weights are to differ.
            run(
                [*self.suite.quire, "bench", "quality", "-t", "1"]
                + ["-m", str(self.suite.models / f"demo-{type_}.gguf")]
                + ["--reference", str(self.exact), "--text", self.text(number)]
                + ["--context", "256", "--kv-cache-dtype", "f16"]
                + ["--output-json", str(path)]
            )
            figures[f"{type_} divergence"] = json.loads(path.read_text())["mean_divergence"]
        return figures

    def measure_peer(self, peer, number):
        base = pathlib.Path(self.folder.name) / f"{peer.name}.logits"
        common = ["-f", self.text(number), "-c", "256", "-t", "1"]
        program = peer.program("llama-perplexity")
        run([program, "-m", str(self.exact), *common, "--kl-divergence-base", str(base)])
        figures = {}
        for type_ in self.types:
            command = [program, "-m", str(self.suite.models / f"demo-{type_}.gguf")]
            command += [*common, "--kl-divergence-base", str(base), "--kl-divergence"]
            figures[f"{type_} divergence"] = divergence(command)[0]
        return figures

    def drop_hopeless(self):
        pass


class Suite:
    def __init__(self, args):
        self.args = args
        self.quire = args.quire
        self.models = args.models
        self.peers = find_peers(args.peer)
        self.tiny = self.models / "demo-q8_0.gguf"
        self.probes = []
        self.start_clock()
        self.jobs = self.make_jobs()
        measured = {job.part for job in self.jobs}
        self.without_files = [part for part in args.parts if part not in measured]

    def model(self, shape, type_):
        return self.models / f"{shape}-{type_}.gguf"

    def make_jobs(self):
        args, jobs = self.args, []
        pairs = [
            (shape, type_)
            for shape in args.shapes
            for type_ in args.types
            if self.model(shape, type_).exists()
        ]
        few = min(args.rounds, 5)
        for part in args.parts:
            if part == "model":
                jobs += [
                    ModelJob(self, part, *pair, args.threads, args.rounds, few)
                    for pair in pairs
                ]
            elif part == "one-thread":
                jobs += [
                    ModelJob(self, part, *pair, 1, few, 0)
                    for pair in pairs
                    if pair[1].startswith("q4")
                ]
            elif part == "batched":
                jobs += [BatchedJob(self, *pair, few) for pair in pairs]
            elif part == "server" and self.tiny.exists():
                jobs.append(ServerJob(self, few))
            elif part == "gemm":
                jobs.append(GemmJob(self, few))
            elif part == "quality" and (self.models / "demo-f32.gguf").exists():
                jobs.append(QualityJob(self, args.rounds))
            elif part in ("prefix", "load"):
                make = PrefixJob if part == "prefix" else LoadJob
                paths = [self.model(shape, "q8_0") for shape in args.shapes[:1]]
                paths += [self.tiny] if part == "prefix" else []
                jobs += [make(self, path, few) for path in paths if path.exists()]
        return jobs

    def seconds_left(self):
        return 60 * self.args.minutes - (time.monotonic() - self.start)

    def run_chunk(self, job):
        num_failures = len(job.failures)
        try:
            job.begin()
            for _ in range(job.chunk):
                if job.num_rounds >= job.want or job.estimate() > self.seconds_left():
                    break
                job.run_round()
        finally:
            job.end()
        for failure in job.failures[num_failures:]:
            print(f"compare.py: {failure[:500]}", file=sys.stderr)
        print(
            f"{time.monotonic() - self.start:6.0f} s  {job.part:10} {job.title}: "
            f"{job.num_rounds} of {job.want} rounds, {job.estimate():.1f} s each",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def warm_page_cache(self):
        """Every file is read from memory, by everybody."""
        paths = [self.model(s, t) for s in self.args.shapes for t in TYPES]
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass
        self.start_clock()

    def start_clock(self):
        self.start = time.monotonic()
        # What is running at the end gets half a minute more.
        deadline.at = self.start + 60 * self.args.minutes + 30

    def run(self):
        self.warm_page_cache()
        pending = list(self.jobs)
        while pending and self.seconds_left() > 0:
            try:
                self.probes.append(probe(self.quire, self.args.threads))
            except (ProgramError, OSError) as error:
                print(f"compare.py: {error}", file=sys.stderr)
            for job in pending:
                if self.seconds_left() <= job.estimate():
                    continue
                self.run_chunk(job)
                self.save()
            pending = [
                job for job in pending
                if job.num_rounds < job.want and job.estimate() < self.seconds_left()
            ]  # fmt: skip

    def report(self):
        return {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "version": version(self.quire),
            "command": shlex.join(["compare.py", *sys.argv[1:]]),
            "threads": self.args.threads,
            "minutes": (time.monotonic() - self.start) / 60,
            "probes": self.probes,
            "rows": goals.rows([job.report() for job in self.jobs]),
            "jobs": [job.report() for job in self.jobs],
        }

    def save(self):
        """After every chunk: what has been measured survives whatever comes."""
        report = self.report()
        if self.args.json:
            partial = pathlib.Path(f"{self.args.json}.partial")
            partial.write_text(json.dumps(report, indent=1) + "\n")
            partial.replace(self.args.json)
        if self.args.markdown:
            pathlib.Path(self.args.markdown).write_text(goals.markdown(report))
        return report


def machine():
    found = re.search(
        r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text()
    )
    name = found.group(1) if found else platform.machine()
    return f"{name}, {os.cpu_count()} CPUs"


def version(quire):
    """Of the program, and of the tree that this script is in."""
    words = []
    for command in (
        [*quire, "--version"], ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
    ):  # fmt: skip
        try:
            words.append(run(command)[0].splitlines()[0])
        except (ProgramError, IndexError):
            words.append("unknown")
    return f"{words[0]} (scripts at commit {words[1]})"


def named_folder(text):
    name, equals, folder = text.partition("=")
    path = pathlib.Path(folder).resolve()
    if not equals or not name or not (path / "llama-bench").exists():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=FOLDER with llama-bench")
    return name, path


def choice_list(choices):
    def parse(text):
        items = text.split(",")
        for item in items:
            if item not in choices:
                raise argparse.ArgumentTypeError(f"'{item}' is none of {choices}")
        return items

    return parse


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        prog="compare.py suite", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--peer", type=named_folder, action="append", default=[],
                        metavar="NAME=FOLDER", help="programs of a peer; may repeat")
    parser.add_argument("--quire", type=shlex.split,
                        default=[str(ROOT / "bazel-bin" / "cli" / "quire")])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=25, help="end by then")
    parser.add_argument("--rounds", type=int, default=20, help="of decode and quality; 5 of others")
    parser.add_argument("--gen", type=int, default=32, help="tokens of a decode")
    parser.add_argument("--batched-prompt", type=int, default=32)
    parser.add_argument("--batched-gen", type=int, default=16)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=SHAPES)
    parser.add_argument("--types", type=choice_list(TYPES), default=TYPES)
    parser.add_argument("--parts", type=choice_list(PARTS),
                        help="of " + ",".join(PARTS) + " (default: all that have files)")
    parser.add_argument("--text", help="scored by quality (default: the model's own)")
    parser.add_argument("--json", help="file for everything, kept up to date")
    parser.add_argument("--markdown", help="file for the tables, kept up to date")
    args = parser.parse_args(argv)
    if not args.models.is_dir():
        parser.error(f"--models {args.models} is no directory")
    args.models = args.models.resolve()
    args.parts_are_named = args.parts is not None
    args.parts = args.parts or PARTS
    args.quire = [str(pathlib.Path(args.quire[0]).resolve()), *args.quire[1:]]
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    return args


def main(argv):
    suite = Suite(parse_arguments(argv))
    missing = f"no files in {suite.models} for {', '.join(suite.without_files)} (benchmarks/suite.py says which)"
    # Part gemm needs no files: alone, it is not what somebody meant.
    if all(job.part == "gemm" for job in suite.jobs) and suite.without_files:
        return f"compare.py: {missing}"
    if suite.without_files:
        if suite.args.parts_are_named:
            return f"compare.py: {missing}"
        print(f"compare.py: {missing}", file=sys.stderr)
    try:
        suite.run()
    except KeyboardInterrupt:
        print("compare.py: interrupted", file=sys.stderr)
    report = suite.save()
    print(goals.markdown(report))
    return 0 if any(job.num_rounds for job in suite.jobs) else 1
