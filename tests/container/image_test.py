#!/usr/bin/env python3
"""Runs a container image as a Playground's pod runs it, without a container runtime.

    tests/container/image_test.py ARCHIVE      (an OCI archive; as root)

Unpacks the archive and starts its program in namespaces of its own: root
directory mounted read-only, user 65532 without capabilities or new privileges, a
loopback network where port 8080 is free. Prints the time from exec to ready and
the idle memory.
"""

import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "k8s"))
import llmaz  # noqa: E402
from pod import BACKEND, EXAMPLES, Pod, check_serving  # noqa: E402

USER = 65532
# Of the unpacked files: of the image, and of cuBLASLt and NCCL in the image for
# GPU nodes, whose tag says so.
MAX_BYTES = 120_000_000
MAX_CUDA_BYTES = 1_000_000_000
CUDA_LIBRARIES = {"libcublasLt.so.13", "libnccl.so.2"}
PORT = 8080
LOCKED = "models--org--locked"
NUM_STARTS = 11
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
libc = ctypes.CDLL(None, use_errno=True)


def blob(layout, descriptor):
    algorithm, digest = descriptor["digest"].split(":")
    return layout / "blobs" / algorithm / digest


def unpack(archive, work):
    """Writes work/rootfs; returns the image's configuration."""
    layout, rootfs = work / "layout", work / "rootfs"
    with tarfile.open(archive) as tar:
        tar.extractall(layout)
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(layout, manifest).read_text())
    for layer in manifest["layers"]:
        with tarfile.open(blob(layout, layer)) as tar:
            # No layer takes away what another one brought.
            assert not any("/.wh." in f"/{name}" for name in tar.getnames())
            tar.extractall(rootfs)
    return json.loads(blob(layout, manifest["config"]).read_text())


def check_files(rootfs, has_cuda):
    """What is in the image, and what is not; returns the bytes of its files."""
    num_bytes = 0
    for path in rootfs.rglob("*"):
        info = path.lstat()
        name = path.relative_to(rootfs)
        if stat.S_ISREG(info.st_mode):
            num_bytes += info.st_size
            assert not info.st_mode & (stat.S_ISUID | stat.S_ISGID), f"{name} is setuid"
        if not stat.S_ISLNK(info.st_mode) and name.parts[-1] not in ("tmp", "lock"):
            assert not info.st_mode & stat.S_IWOTH, f"anyone may write {name}"
        assert info.st_uid == 0, f"{name} is not root's"
    cuda = {path.name: path for path in rootfs.glob("usr/lib/*/lib*")}
    cuda = {name: path for name, path in cuda.items() if name in CUDA_LIBRARIES}
    assert set(cuda) == (CUDA_LIBRARIES if has_cuda else set()), set(cuda)
    cuda_bytes = sum(path.stat().st_size for path in cuda.values())
    assert cuda_bytes <= MAX_CUDA_BYTES, cuda_bytes
    assert num_bytes - cuda_bytes <= MAX_BYTES, num_bytes
    for name in ("bin/sh", "usr/bin/sh", "usr/bin/apt-get", "usr/bin/dpkg"):
        assert not os.path.lexists(rootfs / name), name
    # What the licences ask for, and what tells scanners the versions.
    packages = {path.name for path in (rootfs / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "libssl3", "libstdc++6"} <= packages
    for package in packages:
        documents = rootfs / "usr/share/doc" / package
        assert (documents / "copyright").exists() or documents.is_symlink(), package
    return num_bytes


def check_config(config):
    """Returns the version and whether the image is for GPU nodes."""
    run = config["config"]
    assert run["User"] == f"{USER}:{USER}"
    assert run["ExposedPorts"] == {f"{PORT}/tcp": {}}
    assert run["Entrypoint"] == ["/usr/bin/quire"]
    labels = run["Labels"]
    assert labels["org.opencontainers.image.title"] == "quire"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    version = labels["org.opencontainers.image.version"]
    has_cuda = version.endswith("-cuda")
    # What NVIDIA's container runtime goes by.
    assert ("NVIDIA_VISIBLE_DEVICES=all" in run["Env"]) == has_cuda, run["Env"]
    return version, has_cuda


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def raise_loopback():
    with socket.socket() as connection:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16xH14x", fcntl.ioctl(connection, SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(
            connection, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP)
        )


def prepare(rootfs):
    """Mounts as a runtime does, in the mount namespace of this process."""
    raise_loopback()
    volume = rootfs / "workspace" / "models"
    for name in ("proc", "workspace/models"):
        (rootfs / name).mkdir(parents=True, exist_ok=True)
    mount("--bind", rootfs, rootfs)
    mount("-o", "remount,bind,ro", rootfs)
    mount("-t", "proc", "proc", rootfs / "proc")
    # The devices that every runtime provides (OCI runtime-spec, "Default Devices").
    mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", rootfs / "dev")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        device = pathlib.Path("/dev", name).stat().st_rdev
        os.mknod(rootfs / "dev" / name, stat.S_IFCHR, device)
        (rootfs / "dev" / name).chmod(0o666)
    # The volume that llmaz's loader fills: read-only, models side by side.
    models = rootfs.parent / "models"
    for name, source in (
        ("models--Qwen--Qwen2.5-3B-Instruct", "demo"),
        ("models--Qwen--Qwen2.5-0.5B-Instruct", "demo-draft"),
    ):
        shutil.copytree(ROOT / "models" / source, models / name)
    # As a loader that runs as root with a strict umask leaves it.
    shutil.copytree(ROOT / "models" / "demo", models / LOCKED)
    (models / LOCKED / "model.safetensors").chmod(0o600)
    mount("--bind", models, volume)
    mount("-o", "remount,bind,ro", volume)
    for path in (rootfs / "tmp" / "x", rootfs / "x", volume / "x"):
        try:
            path.write_text("")
        except OSError:
            continue
        raise AssertionError(f"{path} can be written")


def container_popen(rootfs, environment):
    def enter():
        os.chroot(rootfs)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)  # And with it go all capabilities.
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    def popen(command, **arguments):
        return subprocess.Popen(command, preexec_fn=enter, env=environment, **arguments)

    return popen


def status_of(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines())


def check_default_command(config, runtime, popen):
    """As `docker run IMAGE` starts it; returns times to ready in ms and memory in MB."""
    command = config["config"]["Entrypoint"] + config["config"]["Cmd"]
    times = []
    for _ in range(NUM_STARTS):
        pod = Pod(command, runtime, popen, PORT)
        times.append(1e3 * pod.wait_until_started())
        status = status_of(pod.process)
        assert status["Uid"].split() == [str(USER)] * 4
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        memory = int(status["VmRSS"].split()[0]) / 1e3
        code, errors = pod.terminate()
        # Where there is no GPU, a line says that the CPU computes.
    lines = errors.splitlines()
    if lines and lines[0].startswith("quire: computing on the CPU: "):
        del lines[0]
    assert code == 0 and len(lines) == 1, errors
    assert lines[0].endswith(" INFO quire: draining"), errors
    return times, memory


def check_playground(playground, documents, runtime, popen):
    name = playground["metadata"]["name"]
    pod = Pod(llmaz.render(playground, documents), runtime, popen, PORT)
    pod.wait_until_started()
    # As it stands: it lets the endpoint be withdrawn, and then nothing runs.
    start = time.monotonic()
    assert pod.pre_stop().wait(timeout=60) == 0
    assert time.monotonic() - start >= 5
    errors = check_serving(pod, name)
    assert "--speculative-model" not in errors, errors
    print(f"Playground {name}: serves, drains, ends")


def check_locked_model(popen):
    """A model that user 65532 may not read is named, not served."""
    path = f"{llmaz.MODEL_VOLUME}/{LOCKED}"
    process = popen(["quire", "serve", "--model", path], stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 65, errors
    assert path in errors and "Permission denied" in errors, errors
    assert len(errors.splitlines()) == 1, errors


def run_inside(work):
    rootfs = work / "rootfs"
    config = json.loads((work / "config.json").read_text())
    prepare(rootfs)
    environment = dict(line.split("=", 1) for line in config["config"]["Env"])
    popen = container_popen(rootfs, environment)
    documents = llmaz.load_documents(BACKEND, *EXAMPLES)
    runtime = documents[0]
    times, memory = check_default_command(config, runtime, popen)
    print(
        f"exec to ready: min {min(times):.1f} ms, median {statistics.median(times):.1f} ms, "
        f"max {max(times):.1f} ms ({NUM_STARTS} starts); idle memory {memory:.0f} MB"
    )
    check_locked_model(popen)
    for name in ("quire-demo", "qwen2-5-3b"):
        (playground,) = (
            d
            for d in documents
            if (d["kind"], d["metadata"]["name"]) == ("Playground", name)
        )
        check_playground(playground, documents, runtime, popen)


def main():
    if sys.argv[1] == "--inside":
        return run_inside(pathlib.Path(sys.argv[2]))
    if os.geteuid() != 0:
        sys.exit("image_test: needs root, to mount and to change the user")
    work = pathlib.Path(tempfile.mkdtemp())
    # Of another user than root.
    work.chmod(0o755)
    try:
        config = unpack(sys.argv[1], work)
        (work / "config.json").write_text(json.dumps(config))
        version, has_cuda = check_config(config)
        num_bytes = check_files(work / "rootfs", has_cuda)
        print(f"version {version}, {num_bytes / 1e6:.1f} MB of files")
        own_namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
        inside = subprocess.Popen(
            [*own_namespaces, "--kill-child", sys.executable, __file__, "--inside", str(work)]
        )
        try:
            code = inside.wait(timeout=300)
        except BaseException:
            inside.send_signal(signal.SIGKILL)
            raise
    finally:
        # The mounts went with their namespace.
        shutil.rmtree(work)
    print("image ok" if code == 0 else "image FAILED")
    sys.exit(code)


if __name__ == "__main__":
    main()
