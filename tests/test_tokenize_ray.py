"""Tokenizing on a real Ray cluster of two nodes on the loopback: the bytes of one machine, also when a node is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fetched
import psutil
import pytest
import tiny

from stages.artifacts import Artifact
from stages.errors import TransientError
from tests.conftest import free_port

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

CHATS = [
    {"messages": [{"role": "user", "content": f"what is {n} + {n}?"}, {"role": "assistant", "content": f" {2 * n}"}]}
    for n in range(3000)
]
ROWS_PER_SHARD = 100
START_SECONDS = 120.0


class Node:
    """`ray start --block`, ended with everything that it started."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *options]
        command += ["--disable-usage-stats", "--object-store-memory=100000000"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "RAY_TMPDIR": str(folder)},
        )

    def kill(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        for member in (*family, psutil.Process(self.process.pid)):
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
        self.process.wait()


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[Node]]]:
    """Start two nodes: Ray takes 127.0.0.1 for a name of the machine's outer address, and the others as they are."""
    port = free_port()
    address = f"127.0.0.2:{port}"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:  # its sockets need a short path
        folder = Path(name)
        head = Node(folder, "--head", f"--port={port}", "--node-ip-address=127.0.0.2", "--include-dashboard=false")
        nodes = [head]
        try:
            _wait_for_nodes(address, 1)
            nodes.append(Node(folder, f"--address={address}", "--node-ip-address=127.0.0.3"))
            _wait_for_nodes(address, 2)
            yield address, nodes
        finally:
            for node in reversed(nodes):
                if node.process.poll() is None:
                    node.kill()


def _wait_for_nodes(address: str, count: int) -> None:
    script = f"import ray; ray.init('{address}', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
        if seen.strip() == str(count):
            return
        time.sleep(1)
    raise AssertionError(f"the cluster did not have {count} nodes after {START_SECONDS:.0f} seconds")


def tokenize(folder: Path, tokenizer: Path, **keys: object) -> Artifact:
    run = fetched.make_run(tokenizer, dataset_num_proc=1, **keys)  # type: ignore[arg-type]
    return fetched.tokenize(folder, run, CHATS, rows_per_shard=ROWS_PER_SHARD)


@pytest.mark.timeout(600)
def test_a_cluster_gives_the_bytes_of_one_machine(cluster: tuple[str, list[Node]], tmp_path: Path) -> None:
    address, nodes = cluster
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    expected = tokenize(tmp_path / "local", tokenizer)
    on_ray = {"orchestration": {"executor": "ray", "address": address}}
    assert tokenize(tmp_path / "ray", tokenizer, **on_ray).digest == expected.digest

    lost: list[int] = []

    def lose_a_node(done: float, total: float | None, unit: str, **detail: object) -> None:
        if done >= 3 * ROWS_PER_SHARD and not lost:
            lost.append(int(done))
            nodes[1].kill()

    run = fetched.make_run(tokenizer, **on_ray)  # type: ignore[arg-type]
    made = fetched.tokenize(tmp_path / "lossy", run, CHATS, rows_per_shard=ROWS_PER_SHARD, progress=lose_a_node)
    assert lost
    assert made.digest == expected.digest


def test_a_cluster_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(TransientError, match=f"no Ray cluster answers at {address}"):
        tokenize(tmp_path / "none", tokenizer, orchestration={"executor": "ray", "address": address})


def test_an_address_without_ray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set executor: ray"):
        fetched.make_run(tmp_path, orchestration={"address": "127.0.0.1:6379"})
