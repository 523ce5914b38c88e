"""Programs that are compared: how they are run, and what they print."""

import json
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time


class ProgramError(Exception):
    """A program failed, or printed nothing that can be read."""


class Deadline:
    """When all programs must have ended; none unless somebody sets it."""

    at = None

    def timeout(self, seconds):
        return seconds if self.at is None else min(
            seconds, max(1.0, self.at - time.monotonic())
        )  # fmt: skip


deadline = Deadline()


def run(command, timeout=600):
    """Standard output and error of `command`."""
    timeout = deadline.timeout(timeout)
    # Some of these programs write logs to where they are started.
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, timeout=timeout,
                errors="replace",
            )  # fmt: skip
        except OSError as error:
            raise ProgramError(f"{shlex.join(command)}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"{shlex.join(command)}: ended after {timeout:.0f} s") from error
    if done.returncode != 0:
        raise ProgramError(
            f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}"
        )
    return done.stdout, done.stderr


def row_name(row):
    if row["n_prompt"] and row["n_gen"]:
        name = f"pp{row['n_prompt']}+tg{row['n_gen']}"
    elif row["n_prompt"]:
        name = f"pp{row['n_prompt']}"
    else:
        name = f"tg{row['n_gen']}"
    return name + (f" x {row['n_seqs']}" if row.get("n_seqs", 1) > 1 else "")


def bench_objects(command):
    """The rows of llama-bench, or of `quire bench model`, as they are printed."""
    stdout, _ = run(command)
    try:
        return json.loads(stdout)
    except json.JSONDecodeError as error:
        raise ProgramError(f"{shlex.join(command)}: no JSON: {error}") from error


def bench_rows(command):
    """Tokens per second by the row's name ("pp512", "tg128", "tg32 x 16")."""
    return {row_name(row): row["avg_ts"] for row in bench_objects(command)}


def batched_name(num_gen, num_seqs):
    return f"tg{num_gen}" + (f" x {num_seqs}" if num_seqs > 1 else "")


def parse_batched(text):
    """Tokens per second of the decode rows of llama-batched-bench.

    It prints an object a line if it can and is asked to, else a table:
    |    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s | ... | S_TG t/s | ...
    """
    rates = {}
    columns = None
    for line in text.splitlines():
        # Codes for colours may come before it.
        if "{" in line and "speed_tg" in line:
            row = json.loads(line[line.index("{") :])
            rates[batched_name(row["tg"], row["pl"])] = row["speed_tg"]
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if {"TG", "B", "S_TG t/s"} <= set(cells):
            columns = {name: i for i, name in enumerate(cells)}
        elif columns and len(cells) == len(columns):
            try:
                name = batched_name(int(cells[columns["TG"]]), int(cells[columns["B"]]))
                rates[name] = float(cells[columns["S_TG t/s"]])
            except ValueError:
                continue  # The line under the names.
    return rates


def batched_rows(command):
    """The same of a command, which may write to either stream."""
    # Its log writes from a thread of its own, and sometimes ends before it does.
    for _ in range(5):
        rates = parse_batched("\n".join(run(command)))
        if rates:
            return rates
    raise ProgramError(f"{shlex.join(command)}: no results")


def parse_divergence(text):
    """Mean and its standard error, as llama-perplexity --kl-divergence prints them;
    None if they are not there."""
    found = re.search(r"Mean\s+KLD:\s*(-?[\d.]+)\s*±\s*([\d.]+)", text)
    return (float(found.group(1)), float(found.group(2))) if found else None


def divergence(command):
    """The same of a command."""
    for _ in range(30):  # As in batched_rows, and the output is longer.
        text = "\n".join(run(command))
        found = parse_divergence(text)
        if found:
            return found
    raise ProgramError(f"{shlex.join(command)}: no divergence: {text[-1000:]}")


def probe(quire, threads):
    """The machine's ceilings now."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "ceilings.json"
        run(
            [*quire, "bench", "kernels", "-r", "3", "--filter", "ceilings"]
            + ["--threads", str(threads), "--output-json", str(path)]
        )
        ceilings = json.loads(path.read_text())["ceilings"]
    return {
        "read_bytes_per_second": max(max(c["read_bytes_per_second"]) for c in ceilings),
        "bf16_flops": max(max(c["bf16_flops"]) for c in ceilings),
        "load_average": float(pathlib.Path("/proc/loadavg").read_text().split()[0]),
    }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server process that answers; stop() ends it."""

    def __init__(self, command, port, ready, timeout=300, interval=0.1):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.folder = tempfile.TemporaryDirectory()
        self.port = port
        timeout = deadline.timeout(timeout)
        start = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, cwd=self.folder.name
        )
        while not ready(self):
            if self.process.poll() is not None or time.monotonic() > start + timeout:
                self.log.seek(0)
                text = self.log.read()[-2000:]
                self.stop()
                raise ProgramError(f"{shlex.join(command)}:\n{text}")
            time.sleep(interval)
        self.seconds_to_ready = time.monotonic() - start

    def text(self):
        """What it has printed."""
        self.log.flush()
        return pathlib.Path(f"/proc/self/fd/{self.log.fileno()}").read_text(
            errors="replace"
        )

    def _status_bytes(self, name):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status).group(1))

    def resident_bytes(self):
        return self._status_bytes("VmRSS")

    def peak_bytes(self):
        return self._status_bytes("VmHWM")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        self.folder.cleanup()


def quire_is_ready(server):
    """Of a quire that was started with port 0: finds the port, too."""
    text = server.text()
    found = re.search(r"address\s+http://\S+:(\d+)", text)
    if not found or "ready in" not in text:
        return False
    server.port = int(found.group(1))
    return True
