"""A model on several processes of one host says what it says in one."""

import concurrent.futures
import json
import pathlib
import socket
import subprocess

import pytest

from conftest import BINARY, ROOT, Server

PROMPTS = [
    "Once upon a time there was a little robot",
    "Once upon a time there was a little robot who liked the sea",
    "The sun",
    "One day, a girl found a big red box in the garden. " * 12,
    "Tom and Anna went",
    "It rained and rained",
]
# f32, of which logits have the same bits on all ranks; prompts in chunks.
OPTIONS = (
    "--device cpu --dtype float32 --kv-cache-dtype float32 --threads 1 "
    "--max-num-batched-tokens 64 --max-num-seqs 8 --kv-cache-memory-bytes 64MiB"
).split()


def answers_of(*options):
    """Text and log-probabilities of all prompts, asked for at the same time,
    twice: the second time the prefix cache has them."""
    server = Server(*OPTIONS, *options)
    try:
        client = server.client()

        def ask(prompt):
            choice = client.completions.create(
                model="demo", prompt=prompt, max_tokens=40, temperature=0,
                logprobs=3,
            ).choices[0]
            return choice.text, choice.logprobs

        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            first = list(pool.map(ask, PROMPTS))
            second = list(pool.map(ask, PROMPTS))
        for (text, _), (again, _) in zip(first, second):
            assert text == again
        return server.banner, second
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def expected():
    return answers_of()[1]


@pytest.mark.parametrize(
    "tensor,pipeline,speculation",
    [(2, 1, False), (4, 1, False), (1, 2, False), (2, 2, False), (1, 4, True),
     (1, 2, True)],
)
def test_same_as_one_process(expected, tensor, pipeline, speculation):
    options = [
        f"--tensor-parallel-size={tensor}",
        f"--pipeline-parallel-size={pipeline}",
    ]
    if speculation:
        options += ["--speculative-model=[ngram]", "--num-speculative-tokens=4"]
    banner, answers = answers_of(*options)
    assert f"{tensor * pipeline} processes, tensor parallel {tensor}" in banner
    if pipeline > 1:
        assert f"pipeline parallel {pipeline}" in banner
    # Of all stages.
    assert "parameters   5.25M" in banner
    for (text, logprobs), (expected_text, expected_logprobs) in zip(
        answers, expected
    ):
        assert text == expected_text
        assert logprobs.tokens == expected_logprobs.tokens
        # The last place may differ where a log-probability is put together from
        # slices of the vocabulary.
        error = (
            {"abs": 0, "rel": 0} if tensor == 1 else {"abs": 1e-6, "rel": 2**-22}
        )
        assert logprobs.token_logprobs == pytest.approx(
            expected_logprobs.token_logprobs, **error
        )
        for top, expected_top in zip(
            logprobs.top_logprobs, expected_logprobs.top_logprobs, strict=True
        ):
            assert top == pytest.approx(expected_top, **error)


def test_stages_that_cannot_be_are_refused():
    refused = subprocess.run(
        [str(BINARY), "generate", "--prompt", "x", "-n", "1",
         "--pipeline-parallel-size", "63"],
        capture_output=True, text=True, timeout=60,
    )
    assert refused.returncode == 64
    assert "--pipeline-parallel-size 63: " in refused.stderr
    assert "layers" in refused.stderr


def test_a_split_that_the_blocks_forbid_is_refused_before_anything_starts():
    """768 columns are three blocks of 256: four heads are not all that counts."""
    refused = subprocess.run(
        [str(BINARY), "generate", "--prompt", "x", "-n", "1", "--device", "cpu",
         "--quantization", "q4_k", "-tp", "4"],
        capture_output=True, text=True, timeout=60,
    )
    assert refused.returncode == 64
    assert refused.stderr == (
        "quire: --tensor-parallel-size 4: intermediate_size 768 can be cut every "
        "256, into 3 parts at most, which is not enough for 4 ranks; with these "
        "weights 1 or 2 work\n"
    )


@pytest.mark.skipif(
    pathlib.Path("/dev/nvidia0").exists(), reason="this machine has a GPU"
)
def test_a_missing_gpu_is_one_exit_code_on_several_ranks():
    """Whichever rank is the first to miss it."""
    for _ in range(3):
        refused = subprocess.run(
            [str(BINARY), "generate", "--prompt", "x", "-n", "1",
             "--device", "cuda", "-tp", "2"],
            capture_output=True, text=True, timeout=60,
        )
        assert refused.returncode == 69, refused.stderr


@pytest.mark.parametrize("method", ["eagle3", "mtp"])
def test_heads_beside_several_ranks_are_refused(method):
    head = ROOT / "tests" / "testdata" / "draft_heads" / "eagle3"
    config = {"method": method}
    if method == "eagle3":
        config["model"] = str(head)
    refused = subprocess.run(
        [str(BINARY), "generate", "--prompt", "x", "-n", "1", "--device", "cpu",
         "--tensor-parallel-size", "2",
         "--speculative-config", json.dumps(config)],
        capture_output=True, text=True, timeout=60,
    )
    assert refused.returncode == 64
    assert f"--speculative-config: {method} " in refused.stderr
    assert "--tensor-parallel-size 2" in refused.stderr


def test_a_short_group_key_is_refused():
    refused = subprocess.run(
        [str(BINARY), "serve", "--nnodes", "2", "--node-rank", "0",
         "--tensor-parallel-size", "2", "--master-addr", "127.0.0.1:1",
         "--port", "0"],
        capture_output=True, text=True, timeout=60,
        env={"QUIRE_GROUP_KEY": "short"},
    )
    assert refused.returncode == 64
    assert "QUIRE_GROUP_KEY: the group's key has 5 bytes" in refused.stderr


def listen_beside_a_free_port():
    """A socket that listens at a port, the next of which is free."""
    while True:
        first, second = socket.socket(), socket.socket()
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        try:
            with second:
                second.bind(("127.0.0.1", port + 1))
        except (OSError, OverflowError):
            first.close()
            continue
        first.listen()
        return first


def test_torchrun_listens_at_its_master_port():
    with listen_beside_a_free_port() as taken:
        port = taken.getsockname()[1]

        def variables(rank, **more):
            return {
                "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2",
                "GROUP_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", **more,
            }

        # Told to, it takes the same port, and says why that cannot be.
        refused = subprocess.run(
            [str(BINARY), "serve", "--port", "0", *OPTIONS, "--master-port",
             str(port)],
            capture_output=True, text=True, timeout=60, env=variables(0),
        )
        assert refused.returncode == 69, refused.stderr
        assert (
            f"cannot listen on 127.0.0.1:{port}: Address already in use "
            "(--master-port, rank 0 on node 0)"
        ) in refused.stderr
        worker = subprocess.Popen(
            [str(BINARY), "serve", "--port", "0", *OPTIONS], env=variables(1),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        try:
            server = Server(*OPTIONS, "--bootstrap-timeout", "30",
                            env=variables(0))
            assert "2 processes, tensor parallel 2, 2 nodes" in server.banner
            assert server.stop() == 0
            assert worker.wait(timeout=60) == 0, worker.stderr.read()
        finally:
            worker.kill()
            worker.communicate()


def test_who_is_missing_is_said_and_not_whose_child_waits():
    with listen_beside_a_free_port() as taken:
        ended = subprocess.run(
            [str(BINARY), "serve", "--port", "0", *OPTIONS, "--nnodes", "2",
             "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port",
             str(taken.getsockname()[1] + 1), "-tp", "4",
             "--bootstrap-timeout", "2"],
            capture_output=True, text=True, timeout=60,
        )
    assert ended.returncode == 69, ended.stderr
    assert "rank 0 (" in ended.stderr and "has waited 2s on" in ended.stderr
    assert "for rank 2, 3 of 4" in ended.stderr
    assert "rank 1" not in ended.stderr


def test_a_taken_port_is_named_with_its_option_and_node():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, named in [
            (["--port", port], "--port"),
            (["--port", "0", "--ops-port", port], "--ops-port"),
            (["--port", port, "--nnodes", "2", "--node-rank", "1",
              "--master-addr", "127.0.0.1"], "--port, node 1"),
        ]:
            refused = subprocess.run(
                [str(BINARY), "serve", *OPTIONS, *options],
                capture_output=True, text=True, timeout=60,
            )
            assert refused.returncode == 69, refused.stderr
            assert (
                f"cannot listen on 127.0.0.1:{port}: Address already in use "
                f"({named})\n"
            ) in refused.stderr
