"""Training on a real Ray cluster of two nodes on two loopback addresses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.operated import log_of, of_training, wait_for, wait_for_checkpoint, weights
from tests.project import Project
from tests.ray_cluster import Cluster, two_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with two_nodes() as made:
        yield made


def launcher(cluster: Cluster) -> dict[str, Any]:
    keys = {"type": "ray", "nodes": 2, "processes": 1, "threads": 1, "gpus": False, "port": free_port()}
    return {**keys, "ray": {"address": cluster.address}}


def test_two_nodes_train_what_two_processes_do_and_a_lost_node_is_replaced(tmp_path: Path, cluster: Cluster) -> None:
    keys = {"num_epochs": 4, "save_steps": 5}
    local = Project.create(tmp_path / "local", **keys, launcher={"processes": 2, "threads": 1})
    local.run("--until", "train")
    nodes = Project(tmp_path / "nodes", dict(local.environment))
    shutil.copytree(local.folder, nodes.folder, ignore=shutil.ignore_patterns("store", "out", ".prefect"))
    nodes.configure(**keys, launcher=launcher(cluster))
    process = nodes.start("run", "run.yaml", "--until", "train", "--json")
    wait_for_checkpoint(nodes)
    cluster.nodes[1].kill()
    wait_for(lambda: "all agents are started again (1)" in log_of(nodes), 120, lambda: log_of(nodes))
    wait_for(lambda: "waiting for 2 node(s)" in log_of(nodes), 120, lambda: log_of(nodes))
    cluster.add()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err.decode()
    assert weights(nodes) == weights(local)
    assert not of_training(nodes.folder)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_run_that_ends_leaves_no_process_in_the_cluster(tmp_path: Path, cluster: Cluster, how: str) -> None:
    project = Project.create(tmp_path / "project", num_epochs=400, save_steps=5, launcher=launcher(cluster))
    process = project.start("run", "run.yaml", "--until", "train")
    wait_for_checkpoint(project)
    assert len(of_training(project.folder)) >= 4
    getattr(process, how)()
    process.communicate(timeout=90)
    wait_for(
        lambda: not of_training(project.folder),
        60,
        lambda: str([found.cmdline() for found in of_training(project.folder)]),
    )
