"""Tokenizing on a real Ray cluster of two nodes on the loopback: the bytes of one machine, also when a node is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fetched
import pytest
import tiny

from stages.artifacts import Artifact
from stages.errors import TransientError
from tests.conftest import free_port
from tests.ray_cluster import Cluster, two_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

CHATS = [
    {"messages": [{"role": "user", "content": f"what is {n} + {n}?"}, {"role": "assistant", "content": f" {2 * n}"}]}
    for n in range(3000)
]
ROWS_PER_SHARD = 100


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


def tokenize(folder: Path, tokenizer: Path, **keys: object) -> Artifact:
    run = fetched.make_run(tokenizer, dataset_num_proc=1, **keys)  # type: ignore[arg-type]
    return fetched.tokenize(folder, run, CHATS, rows_per_shard=ROWS_PER_SHARD)


@pytest.mark.timeout(600)
def test_a_cluster_gives_the_bytes_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    expected = tokenize(tmp_path / "local", tokenizer)
    on_ray = {"orchestration": {"executor": "ray", "address": cluster.address}}
    assert tokenize(tmp_path / "ray", tokenizer, **on_ray).digest == expected.digest

    lost: list[int] = []

    def lose_a_node(done: float, total: float | None, unit: str, **detail: object) -> None:
        if done >= 3 * ROWS_PER_SHARD and not lost:
            lost.append(int(done))
            cluster.nodes[1].kill()

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
