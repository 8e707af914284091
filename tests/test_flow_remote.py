"""Whole runs with their store on S3: the same results as in a folder, on another machine, after damage and loss."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.project import Project, end_tree
from tests.store_servers import ENVIRONMENT, SECRET, Server, Where, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("s3", tmp_path_factory.mktemp("s3")) as server:
        yield server


class Machines:
    """A project with its store on S3, run on machines of which each has a cache of its own."""

    def __init__(self, folder: Path, where: Where, **changes: Any) -> None:
        self.folder, self.where = folder, where
        (folder / "project").mkdir()
        options = {"endpoint_url": where.server.url}
        store = {"artifact_store": where.address, "artifact_store_options": options}
        self.project = Project.create(folder / "project", **store, **changes)
        self.on("first")

    def on(self, name: str) -> Project:
        self.project.environment = {**ENVIRONMENT, "XDG_CACHE_HOME": str(self.folder / name)}
        return self.project

    def lose(self, name: str) -> None:
        """Lose a machine's disk: its cache, what it was making, and the output folder."""
        shutil.rmtree(self.folder / name)
        shutil.rmtree(self.project.folder / "out", ignore_errors=True)


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["status"] for stage in document["stages"]}


def keys(document: dict[str, Any]) -> list[str]:
    return [stage["key"] for stage in document["stages"]]


def test_a_run_on_s3_is_reused_by_another_machine_and_heals(server: Server, tmp_path: Path) -> None:
    machines = Machines(tmp_path, server.place())
    first = machines.on("first").run()
    assert set(statuses(first).values()) == {"ran"}
    assert set(statuses(machines.on("first").run()).values()) == {"reused"}

    plan = machines.on("planner").sft("plan", "run.yaml", "--json").json()
    assert {stage["status"] for stage in plan["stages"]} == {"reused"}
    moved = sum(path.stat().st_size for path in (tmp_path / "planner").rglob("*.arrow"))
    assert moved == 0, "a plan brings no data"

    local = Project.create(tmp_path / "local")
    on_disk = local.run()
    assert keys(on_disk)[:4] == keys(first)[:4], "a folder and a bucket have the same keys"

    names = machines.where.names()
    for stage, ending in (("tokenize", ".arrow"), ("train", ".safetensors")):
        name = next(name for name in names if name.startswith(f"{stage}/") and name.endswith(ending))
        content = bytearray(machines.where.read(name))
        content[len(content) // 2] ^= 1
        machines.where.write(name, bytes(content))
    damaged = machines.on("second").sft("artifacts", "verify", "--config", "run.yaml", "--json", expect=1).json()
    assert {item["stage"] for item in damaged["damaged"]} == {"tokenize", "train"}
    machines.lose("first")
    healed = machines.on("second").run()
    assert keys(healed) == keys(first)
    assert statuses(healed)["train"] == "ran"
    machines.project.sft("artifacts", "verify", "--config", "run.yaml")

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not [name for name in machines.where.names() if SECRET.encode() in machines.where.read(name)]


def test_a_training_goes_on_where_a_lost_machine_was(server: Server, tmp_path: Path) -> None:
    changes = {"num_epochs": 16, "save_steps": 5, "save_total_limit": 2}
    machines = Machines(tmp_path, server.place(), **changes)
    names = machines.where.names
    process = machines.on("first").start("run", "run.yaml", "--until", "train", "--quiet")
    deadline = time.monotonic() + 300
    while not any(name.endswith(".json") and "/.sent/" in name and name.count("/") == 4 for name in names()):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    end_tree(process)
    process.communicate()
    machines.lose("first")

    document = machines.on("second").run("--until", "train")
    [train] = [stage for stage in document["stages"] if stage["stage"] == "train"]
    log = machines.where.read(f"train/{train['key']}/train.log").decode()
    assert "continuing from the checkpoint of step" in log
    assert not [name for name in machines.where.names() if ".sent" in name], "checkpoints go when the model is there"
    metrics = machines.where.read(f"train/{train['key']}/metrics.jsonl").splitlines()
    assert b'"step":1,' in metrics[0], "the records of the lost machine are kept"

    other = tmp_path / "undisturbed"
    other.mkdir()
    undisturbed_machines = Machines(other, server.place(), **changes)
    undisturbed = undisturbed_machines.on("third").run("--until", "train")
    assert keys(undisturbed) == keys(document)
    digests = [
        part.project.sft("artifacts", "show", train["key"], "--config", "run.yaml", "--json").json()["digest"]
        for part in (machines, undisturbed_machines)
    ]
    assert digests[0] == digests[1], "the model is the same to the last bit"
