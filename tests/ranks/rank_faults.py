#!/usr/bin/env python3
"""Kills, stalls and restarts the ranks of a model at random moments.

Each repetition starts two ranks of the demo model, which share its matrices or
are two stages of its layers, on one host or on two (two network namespaces
joined by a cable; without the right to make them, two loopback addresses),
checks the answer to a request, then does something to one side while it loads,
computes a prompt, decodes, drains or rests, and checks what is promised
(engine/DESIGN.md, "Several ranks"): who ends, with which code, how soon, that a
request in flight gets an error event, and that both sides say who was lost. The
faults: a process is killed; stopped for good; stalled for less than what counts
as hanging; killed and started again, with whatever ends of that, as the pods of
a group are; or the cable between two hosts is unplugged for a while, also longer
than that, and nothing is lost.

  tools/rank_faults.sh --repetitions 100 --seed 1
  tools/rank_faults.sh --seed 1 --only 17     # repeats one of them
  tools/rank_faults.sh --repetitions 0        # each combination once
  tools/rank_faults.sh --fault "unplug cable" # of that one
  tools/rank_faults.sh --cover                # half of them: see cover()
"""

import argparse
import ctypes
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# --heartbeat-timeout: when a rank that is stopped is given up.
HEARTBEAT = 1.0
# --worker-timeout: what nobody waits for here. Longer than any promise, so that
# it is not what keeps one.
TIMEOUT = 12.0
# What is promised, in seconds after a process has died; of one that is stopped,
# after HEARTBEAT and a tenth of it. --allowance multiplies them, for a busy
# machine.
EVENT = 2.0  # Who waits for an answer has an error.
EXIT = 5.0  # The processes of the group have ended.
ORPHAN = 1.0  # A child of a dead leader has ended.
PROMPT = "Once upon a time there was a little robot"
FAULTS = (
    "kill worker", "stop worker", "stall worker", "restart worker",
    "kill leader", "stop leader", "stall leader", "restart leader",
    "unplug cable",
)
MOMENTS = ("load", "prefill", "decode", "drain", "idle")
KINDS = ("tensor", "pipeline")  # --...-parallel-size 2
CLONE_NEWNET = 0x40000000


class Host:
    """Where processes of one node run: a network namespace, or this one."""

    def __init__(self, address, namespace_pid=None):
        self.address = address
        self.pid = namespace_pid

    def command(self, args):
        if self.pid is None:
            return args
        return ["nsenter", "-t", str(self.pid), "-n", "--", *args]

    def set_cable(self, state):
        subprocess.run(self.command(["ip", "link", "set", "cable", state]), check=True)

    def enter(self):
        """The calling thread opens its sockets on this host from now on."""
        if self.pid is None:
            return
        with open(f"/proc/{self.pid}/ns/net") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")


def make_hosts():
    """Two hosts with a cable between them, or None."""
    if not all(shutil.which(tool) for tool in ("ip", "nsenter", "unshare")):
        return None
    holders = []
    try:
        for _ in range(2):
            holder = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            holders.append(holder)
            if holder.stdout.readline() != b"up\n":
                raise OSError("no network namespace")
        hosts = [
            Host(f"10.77.0.{i + 1}", holder.pid) for i, holder in enumerate(holders)
        ]

        def run(*args):
            subprocess.run(args, check=True, stderr=subprocess.DEVNULL)

        first, second = (str(holder.pid) for holder in holders)
        run(*hosts[0].command(["ip", "link", "add", "cable", "type", "veth",
                               "peer", "name", "cable", "netns", second]))
        for host in hosts:
            run(*host.command(["ip", "addr", "add", host.address + "/24",
                               "dev", "cable"]))
            run(*host.command(["ip", "link", "set", "cable", "up"]))
            run(*host.command(["ip", "link", "set", "lo", "up"]))
        return hosts
    except (OSError, subprocess.CalledProcessError):
        for holder in holders:
            holder.kill()
        return None


class Failure(Exception):
    pass


def expect(condition, what):
    if not condition:
        raise Failure(what)


class Process:
    """One `quire` of the run, with its output in a file."""

    def __init__(self, quire, host, folder, name, args):
        self.log_path = folder / name
        self.host = host
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                host.command([str(quire), *args]), stdout=log, stderr=log
            )

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds):
        """The exit code, -signal, or None."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def children(self):
        path = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except OSError:
            return []

    def end(self):
        if self.process.poll() is None:
            for pid in [*self.children(), self.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process.wait()


def is_gone(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


def leader_ports(host, number):
    """Two that nobody has. On a host of the run's own any below those that the
    kernel gives to connections (from 32768 on); beside others, what is free."""
    if host.pid is not None:
        first = 20000 + 2 * (number % 5000)
        return first, first + 1
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


class Client(threading.Thread):
    """One request, on a thread: its text, and how it ended."""

    def __init__(self, host, port, body, stream):
        super().__init__(daemon=True)
        self.host, self.port, self.stream = host, port, stream
        self.body = dict(body, stream=stream, temperature=0)
        self.text = ""
        self.num_chunks = 0
        self.error = None  # Of the event, or of the connection.
        self.status = 0
        self.is_done = False
        self.is_cut = False  # The connection ended without an end.
        self.sent = threading.Event()
        self.ended_at = None
        self.start()

    def run(self):
        try:
            self.host.enter()
            connection = http.client.HTTPConnection(
                self.host.address, self.port, timeout=60
            )
            connection.request(
                "POST", "/v1/completions", json.dumps(self.body),
                {"Content-Type": "application/json"},
            )
            self.sent.set()
            self.read(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            self.is_cut = True
            self.error = repr(error)
        finally:
            self.sent.set()
            self.ended_at = time.monotonic()

    def read(self, response):
        self.status = response.status
        if not self.stream or response.status != 200:
            answer = json.loads(response.read())
            if "error" in answer:
                self.error = answer["error"]["message"]
            else:
                self.text = answer["choices"][0]["text"]
                self.is_done = True
            return
        while line := response.readline():
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                self.is_done = self.error is None
                return
            event = json.loads(data)
            if "error" in event:
                self.error = event["error"]["message"]
            elif event["choices"]:
                self.text += event["choices"][0]["text"]
                self.num_chunks += 1
        self.is_cut = self.error is None


class Run:
    """Two ranks, and what is done to them."""

    answers = {}  # By kind, of the first run: the others must give the same.

    def __init__(self, quire, hosts, random_source, number, scenario, allowance):
        self.quire, self.hosts, self.random = quire, hosts, random_source
        self.kind, self.is_local, self.fault, self.moment = scenario
        self.allowance = allowance
        self.name = (
            f"{number}: {self.kind}, {'one host' if self.is_local else 'two hosts'}, "
            f"{self.fault}, {self.moment}"
        )
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rank_faults."))
        self.port, self.master_port = leader_ports(hosts[0], number)
        self.leader = self.worker = self.client = None
        self.processes = []

    def args(self, rank):
        host = self.hosts[rank]
        args = [
            "serve", "--device", "cpu", "--threads", "1",
            f"--{self.kind}-parallel-size", "2", "--host", host.address,
            "--port", str(self.port), "--worker-timeout", str(TIMEOUT),
            "--heartbeat-timeout", str(HEARTBEAT),
            "--kv-cache-memory-bytes", "64MiB", "--max-num-seqs", "4",
        ]
        if not self.is_local:
            args += [
                "--nnodes", "2", "--node-rank", str(rank),
                "--master-addr", f"{self.hosts[0].address}:{self.master_port}",
            ]
        return args

    def process(self, rank):
        name = f"{len(self.processes)}-{'worker' if rank else 'leader'}.log"
        self.processes.append(
            Process(self.quire, self.hosts[rank], self.folder, name, self.args(rank))
        )
        return self.processes[-1]

    def start_leader(self):
        self.leader = self.process(0)

    def start_worker(self):
        if not self.is_local:
            self.worker = self.process(1)

    def start(self):
        self.start_leader()
        self.start_worker()

    def worker_pid(self):
        if not self.is_local:
            return self.worker.pid
        children = self.leader.children()
        return children[0] if children else None

    def request(self, max_tokens, prompt=PROMPT, stream=False):
        body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        return Client(self.hosts[0], self.port, body, stream)

    def await_ready(self):
        ready = wait_until(
            lambda: "ready in" in self.leader.log
            or self.leader.process.poll() is not None,
            30,
        )
        expect(ready and self.leader.process.poll() is None, "does not get ready")

    def reach(self):
        """Brings the run to its moment; what is done next hits it there."""
        if self.moment == "load":
            if self.is_local:
                expect(wait_until(lambda: self.worker_pid() is not None, 10)
                       , "no worker is started")
            time.sleep(self.random.uniform(0, 0.3))
            return
        self.await_ready()
        first = self.request(20)
        first.join(30)
        expect(first.is_done, f"no answer: {first.error}")
        known = Run.answers.setdefault(self.kind, first.text)
        expect(known == first.text, f"another answer: {first.text}")
        if self.moment == "idle":
            return
        if self.moment == "prefill":
            words = self.random.choices(("robot", "tree", "the", "sea"), k=400)
            self.client = self.request(100, prompt=" ".join(words), stream=True)
            self.client.sent.wait(10)
            time.sleep(self.random.uniform(0, 0.1))
            return
        self.start_decoding()
        time.sleep(self.random.uniform(0, 0.1))
        if self.moment == "drain":
            self.leader.signal(signal.SIGTERM)
            time.sleep(self.random.uniform(0, 0.05))

    def start_decoding(self):
        """A request of which some has come, and not all.

        Where the CPUs are busy its text may come in one or two pieces after a
        second, for the server writes what there is when it gets to it: then it
        is over, and another one is tried. If the last one is over as well, the
        fault hits ranks that rest.
        """
        for _ in range(5):
            client = self.client = self.request(1900, stream=True)
            begun = wait_until(
                lambda: client.num_chunks > 0 or client.ended_at is not None, 60
            )
            expect(begun and client.error is None,
                   f"nothing is decoded: {client.error}")
            if client.ended_at is None:
                return

    def go(self):
        self.start()
        self.reach()
        getattr(self, self.fault.replace(" ", "_"))()

    def hit_worker(self, number):
        """The worker's process, or None if the run was over before."""
        pid = self.worker_pid()
        try:
            if pid is not None:
                os.kill(pid, number)
                return pid
        except ProcessLookupError:
            pass
        code = self.leader.wait(EXIT * self.allowance)
        is_in_order = self.moment == "drain" and code == 0
        expect(is_in_order, f"the worker was gone; the leader ends with {code}")
        return None

    def after(self, promised, hangs=False):
        """Seconds that something promised may take."""
        return ((1.1 * HEARTBEAT if hangs else 0) + promised) * self.allowance

    def expect_leader_fails(self, since, hangs=False):
        code = self.leader.wait(self.after(EXIT, hangs))
        expect(code is not None, "the leader still runs after "
               f"{time.monotonic() - since:.1f} s")
        # A request that was over before may have let it drain.
        is_over = self.client is not None and self.client.is_done
        expected = [70]
        if self.moment == "drain" and is_over:
            expected.append(0)
        if self.moment == "load":
            expected.append(69)  # Before all had joined.
        expect(code in expected, f"the leader ends with {code} instead of 70")
        self.expect_error_event(since, hangs)

    def expect_error_event(self, since, hangs):
        if self.client is None:
            return
        self.client.join(5)
        expect(self.client.ended_at is not None, "a request hangs")
        if self.client.is_done:
            return  # It was over before.
        expect(self.client.error is not None and not self.client.is_cut,
               f"a request ends without an error event: {self.client.error}")
        expect(self.client.status in (200, 500, 503),
               f"the request was wrong: {self.client.error}")
        took = self.client.ended_at - since
        expect(took < self.after(EVENT, hangs), f"the error comes after {took:.1f} s")

    def expect_named(self, process, rank, pid):
        """That a log says which rank was lost, of which host and process."""
        if process.process.returncode != 0 and self.moment != "load":
            expect(re.search(rf"rank {rank} \([^)]+, process {pid}\)", process.log),
                   f"rank {rank} (process {pid}) is not named")

    def kill_worker(self):
        since = time.monotonic()
        pid = self.hit_worker(signal.SIGKILL)
        if pid is None:
            return
        if self.moment == "load" and not self.is_local:
            # Before it has joined the leader waits on: a new one takes its place.
            return self.await_revival()
        self.expect_leader_fails(since)
        self.expect_named(self.leader, 1, pid)

    def stop_worker(self):
        since = time.monotonic()
        pid = self.hit_worker(signal.SIGSTOP)
        if pid is None:
            return
        if self.moment == "load":
            # Before it has joined nobody misses it; then it is given up.
            code = self.leader.wait(self.after(EXIT, hangs=True))
            os.kill(pid, signal.SIGCONT) if not is_gone(pid) else None
            if code is not None:
                expect(code in (69, 70), f"the leader ends with {code}")
                return
            self.await_ready()
            return
        self.expect_leader_fails(since, hangs=True)
        self.expect_named(self.leader, 1, pid)
        if not self.is_local:
            os.kill(pid, signal.SIGCONT)
            code = self.worker.wait(self.after(EXIT))
            # In good order if the leader was done before it was stopped.
            expect(code == 70 or self.leader.process.returncode == 0,
                   f"the stopped worker ends with {code} instead of 70")
        else:
            expect(wait_until(lambda: is_gone(pid), self.after(ORPHAN)),
                   "an orphan is left")

    def kill_leader(self):
        pid = self.worker_pid()
        self.leader.signal(signal.SIGKILL)
        if self.moment == "load" and not self.is_local:
            # A worker that has not met its leader waits for one.
            return self.await_revival()
        if self.is_local:
            expect(pid is None or wait_until(lambda: is_gone(pid), self.after(ORPHAN)),
                   "a worker outlives its leader")
            return
        self.expect_worker_fails(self.after(EXIT))

    def expect_worker_fails(self, allowed):
        code = self.worker.wait(allowed)
        # In good order if the leader had just drained.
        expect(code == 70 or (code == 0 and self.moment == "drain"),
               f"the worker ends with {code} instead of 70")
        if code == 70:
            self.expect_named(self.worker, 0, self.leader.pid)

    def stop_leader(self):
        pid = self.worker_pid()
        since = time.monotonic()
        self.leader.signal(signal.SIGSTOP)
        try:
            allowed = self.after(EXIT, hangs=True)
            is_missed = wait_until(lambda: pid is None or is_gone(pid), allowed)
            # Before they have met nobody misses it.
            expect(is_missed or self.moment == "load",
                   "a worker does not miss its leader")
            if not self.is_local and self.moment != "load":
                # Its other threads may take a moment longer.
                self.expect_worker_fails(1)
        finally:
            self.leader.signal(signal.SIGCONT)
        if not is_missed:
            self.await_ready()
            return
        code = self.leader.wait(self.after(EXIT))
        is_over = self.moment == "drain" and code == 0
        expect(code in (69, 70) or is_over,
               f"the leader that was stopped ends with {code}")
        if not is_over and self.client is not None:
            self.client.join(5)
            expect(self.client.ended_at is not None, "a request hangs")
            expect(self.client.is_done or not self.client.is_cut,
                   "a request ends without an error event, "
                   f"{time.monotonic() - since:.1f} s after the stop")

    def stall_leader(self):
        """For less than what counts as hanging: nothing is lost."""
        self.stall(self.leader.pid)

    def stall_worker(self):
        pid = self.worker_pid()
        # A leader that has just drained has none.
        self.stall(pid if pid is not None else self.leader.pid)

    def stall(self, pid):
        try:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.random.uniform(0.1, 0.6) * HEARTBEAT)
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            expect(self.moment == "drain", "a process has ended by itself")
        self.expect_nothing_is_lost()

    def unplug_cable(self):
        """Packets are lost for a while, and nothing else."""
        host = self.hosts[1]
        if host.pid is None:
            return  # Not two hosts, but two addresses of one.
        # The leader's own address stays, for its clients.
        host.set_cable("down")
        time.sleep(self.random.uniform(0.3, 2.5) * HEARTBEAT)
        host.set_cable("up")
        self.expect_nothing_is_lost()

    def expect_nothing_is_lost(self):
        if self.moment != "drain":
            self.await_ready()
            answer = self.request(20)
            answer.join(30)
            expect(answer.is_done, f"no answer afterwards: {answer.error}")
        if self.client is not None:
            self.client.join(60)
            expect(self.client.is_done, f"it cost a request: {self.client.error}")
        self.leader.signal(signal.SIGTERM)
        code = self.leader.wait(self.after(10))
        expect(code == 0, f"the leader drains with {code}")
        if not self.is_local:
            code = self.worker.wait(self.after(3))
            expect(code == 0, f"the worker ends with {code} instead of 0")

    def restart_worker(self):
        if self.hit_worker(signal.SIGKILL) is not None:
            self.await_revival()

    def restart_leader(self):
        self.leader.signal(signal.SIGKILL)
        self.await_revival()

    def await_revival(self):
        """Whatever ends is started again, until there is the same answer."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            # A worker that comes while the leader has not missed the first one
            # yet is refused (64), as any that comes too late.
            for process, start, codes in (
                (self.leader, self.start_leader, (0, 69, 70, -signal.SIGKILL)),
                (self.worker, self.start_worker, (0, 64, 69, 70, -signal.SIGKILL)),
            ):
                code = process.process.poll() if process is not None else None
                if code is not None:
                    expect(code in codes, f"{process.log_path.name}: ends with {code}")
                    start()
            if "ready in" in self.leader.log and self.leader.process.poll() is None:
                answer = self.request(20)
                answer.join(30)
                if answer.is_done:
                    known = Run.answers.setdefault(self.kind, answer.text)
                    expect(known == answer.text, f"another answer: {answer.text}")
                    return
            time.sleep(0.05)
        raise Failure("the group does not come up again")

    def clean_up(self, keep):
        for process in reversed(self.processes):
            process.end()
        if not keep:
            shutil.rmtree(self.folder)


def combinations():
    """(kind, is_local, fault, moment); resting ranks are only stopped, which is
    what nobody would notice by a step, or unplugged. A host has no cable."""
    return [
        (kind, is_local, fault, moment)
        for kind in KINDS
        for fault in FAULTS
        for moment in MOMENTS
        for is_local in (True, False)
        if moment != "idle" or fault.startswith(("stop", "unplug"))
        if not (is_local and fault == "unplug cable")
    ]


def cover(seed):
    """Every fault at every moment on one host and on two, of one kind: each kind
    meets every fault, every moment and both numbers of hosts."""
    result = [
        (kind, is_local, fault, moment)
        for kind, is_local, fault, moment in combinations()
        if (KINDS.index(kind) + FAULTS.index(fault) + MOMENTS.index(moment)
            + is_local) % 2 == 0
    ]
    random.Random(seed).shuffle(result)
    return result


def scenarios(count, seed, fault):
    """So many of all combinations, each as often as the others, in random order;
    0: each once. fault: only those of it."""
    source = random.Random(seed)
    every = [each for each in combinations() if fault in (None, each[2])]
    result = []
    while len(result) < max(count, 1):
        source.shuffle(every)
        result += every
    return result[: count or len(every)]


def own_shard(todo):
    """What Bazel has this process do."""
    status_file = os.environ.get("TEST_SHARD_STATUS_FILE")
    if status_file:
        pathlib.Path(status_file).touch()
    count = int(os.environ.get("TEST_TOTAL_SHARDS", "1"))
    return todo[int(os.environ.get("TEST_SHARD_INDEX", "0")) :: count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quire", default="bazel-bin/cli/quire")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one repetition's number")
    parser.add_argument("--fault", choices=FAULTS, help="only this one")
    parser.add_argument("--cover", action="store_true",
                        help="in place of --repetitions: see cover()")
    parser.add_argument("--allowance", type=float, default=1.0,
                        help="factor of the promised times")
    arguments = parser.parse_args()
    quire = pathlib.Path(arguments.quire).resolve()
    inside = "RANK_FAULTS_INSIDE" in os.environ
    if not inside and shutil.which("unshare"):
        # Root of a user namespace of its own, where it may make others.
        probe = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
        if subprocess.run([*probe, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            os.environ["RANK_FAULTS_INSIDE"] = "1"
            os.execvp("unshare", [*probe, "--", sys.executable, *sys.argv])
    if inside:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    hosts = make_hosts()
    if hosts is None:
        print("SKIPPED: network namespaces are not permitted here (or there is no "
              "iproute2); two loopback addresses stand for the two hosts")
        hosts = [Host("127.0.0.1"), Host("127.0.0.2")]
    num_failed = 0
    if arguments.cover:
        todo = list(enumerate(cover(arguments.seed)))
    else:
        count = arguments.repetitions
        if arguments.only is not None:
            count = max(count, arguments.only + 1)
        todo = list(enumerate(scenarios(count, arguments.seed, arguments.fault)))
    if arguments.only is not None:
        todo = [todo[arguments.only]]
    todo = own_shard(todo)
    for number, scenario in todo:
        source = random.Random(arguments.seed * 100003 + number)
        run = Run(quire, hosts, source, number, scenario, arguments.allowance)
        began = time.monotonic()
        failed = None
        try:
            run.go()
        except Failure as failure:
            failed = str(failure)
            num_failed += 1
        took = time.monotonic() - began
        print(f"{run.name}: {failed or 'as promised'} ({took:.1f} s)", flush=True)
        run.clean_up(keep=failed is not None)
        if failed:
            for log in sorted(run.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')}")
    print(f"{len(todo)} repetitions, {num_failed} not as promised")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
