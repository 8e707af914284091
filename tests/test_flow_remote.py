"""Whole runs of which everything is in a bucket: data, base model, store, published model.

The results are those of a folder: on another machine, after damage, on a network that breaks, beside a second run, and
after a machine was lost.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import free_port
from tests.crash.faults import chance
from tests.crash.proxy import faulty
from tests.project import Project, end_tree, statuses
from tests.store_servers import ENVIRONMENT, SECRET, Server, Where, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
KINDS = ("s3", "gcs")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with ExitStack() as running:
        yield {kind: running.enter_context(serving(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}


@pytest.fixture
def s3(servers: dict[str, Server]) -> Server:
    return servers["s3"]


class Machines:
    """A project of which everything is in a bucket, run on machines that share nothing else.

    Attributes:
        where: the bucket, past whatever stands before it.
        store: the part of it that is the store.
        environment: of the machines, besides their caches.
    """

    def __init__(self, folder: Path, where: Where, *, through: str | None = None, **changes: Any) -> None:
        self.folder, self.where, self.environment = folder, where, dict(ENVIRONMENT)
        self.store = Where(where.server, f"{where.prefix}/store")
        self.project = Project.create(folder / "project", rows=40)
        for path in [self.project.folder / "data.jsonl", *(self.project.folder / "base").iterdir()]:
            where.write(path.relative_to(self.project.folder).as_posix(), path.read_bytes())
        shutil.rmtree(self.project.folder / "base")
        (self.project.folder / "data.jsonl").unlink()
        options = {**where.server.options, "endpoint_url": through or where.server.url}
        dataset = {"path": f"{where.address}/data.jsonl", "type": "chat_template", "storage_options": options}
        self.keys: dict[str, Any] = {
            "datasets": [dataset],
            "base_model": f"{where.address}/base",
            "base_model_storage_options": options,
            "artifact_store": self.store.address,
            "artifact_store_options": options,
            "publish": {"to": f"{where.address}/published", "storage_options": options},
            **changes,
        }
        self.project.configure(**self.keys)

    def on(self, name: str) -> Project:
        """Return the project as a machine has it: with its own cache and output folder."""
        own = Project(self.folder / name, {**self.environment, "XDG_CACHE_HOME": str(self.folder / name / "cache")})
        own.folder.mkdir(exist_ok=True)
        shutil.copyfile(self.project.folder / "run.yaml", own.folder / "run.yaml")
        return own

    def lose(self, name: str) -> None:
        """Lose a machine with its disk: cache, unfinished work, output folder."""
        shutil.rmtree(self.folder / name)

    def published(self) -> dict[str, str]:
        """Return file -> SHA-256 of the published model."""
        names = [name for name in self.where.names() if name.startswith("published/") and "receipt" not in name]
        return {name: hashlib.sha256(self.where.read(name)).hexdigest() for name in names}


def keys(document: dict[str, Any]) -> list[str]:
    return [stage["key"] for stage in document["stages"]]


def of_stage(document: dict[str, Any], name: str) -> dict[str, Any]:
    [stage] = [stage for stage in document["stages"] if stage["stage"] == name]
    return stage


def wait_for(there: Callable[[], bool], process: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_a_bucket_is_reused_by_another_machine_and_heals(
    servers: dict[str, Server], tmp_path: Path, kind: str
) -> None:
    machines = Machines(tmp_path, servers[kind].place())
    first = machines.on("first").run()
    assert set(statuses(first).values()) == {"ran"}
    published = machines.published()
    merged = f"merge/{of_stage(first, 'merge')['key']}/model/"
    assert published == {
        f"published/{name.removeprefix(merged)}": hashlib.sha256(machines.store.read(name)).hexdigest()
        for name in machines.store.names()
        if name.startswith(merged)
    }
    assert set(statuses(machines.on("first").run()).values()) == {"reused"}

    plan = machines.on("planner").sft("plan", "run.yaml", "--json").json()
    assert {stage["status"] for stage in plan["stages"]} == {"reused"}
    moved = [path.parts[-4] for path in (tmp_path / "planner").rglob("*.arrow")]
    assert "tokenize" not in moved, "a plan reads the index of pack, and no tokens"

    local = machines.on("local").run("artifact_store=store", "--until", "pack")
    assert keys(local) == keys(first)[:3], "a store in a folder and one in a bucket have the same keys"

    names = machines.store.names()
    for stage, ending in (("tokenize", ".arrow"), ("train", ".safetensors")):
        flip(machines.store, next(n for n in names if n.startswith(f"{stage}/") and n.endswith(ending)))
    second = machines.on("second")
    damaged = second.sft("artifacts", "verify", "--config", "run.yaml", "--json", expect=1).json()
    assert {item["stage"] for item in damaged["damaged"]} == {"tokenize", "train"}
    machines.lose("first")
    healed = second.run()
    assert keys(healed) == keys(first)
    assert statuses(healed)["train"] == "ran"
    second.sft("artifacts", "verify", "--config", "run.yaml")
    assert machines.published() == published

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not [name for name in machines.where.names() if SECRET.encode() in machines.where.read(name)]


def flip(where: Where, name: str, at: float = 0.5) -> None:
    """Change one bit of an object."""
    content = bytearray(where.read(name)) or bytearray(b"\0")
    content[int(len(content) * at)] ^= 1
    where.write(name, bytes(content))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_through_where_a_fifth_of_all_requests_fails(
    servers: dict[str, Server], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    calm = Machines(tmp_path / "calm", servers[kind].place())
    calm.on("first").run()
    with faulty(servers[kind].url, chance(1, flips=False)) as proxy:
        proxy.silence = 0.5
        storm = Machines(tmp_path / "storm", servers[kind].place(), through=proxy.endpoint)
        document = storm.on("first").sft("run", "run.yaml", "--json", seconds=900).json()
        assert set(statuses(document).values()) == {"ran"}
        assert proxy.injected.total() > 20
    assert contents(storm) == contents(calm)


def contents(machines: Machines) -> list[str]:
    return sorted(machines.published().values())


@pytest.mark.parametrize("stage", ["fetch", "tokenize", "train"])
def test_a_server_that_is_restarted_in_the_middle_is_waited_for(tmp_path: Path, stage: str) -> None:
    """Killed when the manifest of a stage is there, and up again ten seconds later, with what it has stored."""
    port = free_port()
    with serving("s3", tmp_path / "server", port) as server:
        machines = Machines(tmp_path, server.place())
        project = machines.on("first")
        process = project.start("run", "run.yaml", "--json")
        wait_for(lambda: any(n.startswith(f"{stage}/") and "manifest" in n for n in machines.store.names()), process)
    time.sleep(10)
    with serving("s3", tmp_path / "server", port):
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err.decode()
        project.sft("artifacts", "verify", "--config", "run.yaml")
        assert set(statuses(project.run()).values()) == {"reused"}
        assert len(machines.published()) >= 4


def test_flipped_bits_are_found_and_made_again(s3: Server, tmp_path: Path, prefect_api: str) -> None:
    """A bit in each of several random files, ten times: it is found, removed, made again, and the model is the same."""
    machines, rng = Machines(tmp_path, s3.place()), random.Random(0)
    machines.environment["PREFECT_API_URL"] = prefect_api  # a server for each run would take most of the time
    project = machines.on("first")
    document, published = project.run(), machines.published()
    for _ in range(10):
        files = [name for name in machines.store.names() if not name.startswith(".") and not name.endswith(".used")]
        chosen = rng.sample(files, rng.randint(1, 4))
        for name in chosen:
            flip(machines.store, name, rng.random())
        found = project.sft("artifacts", "verify", "--config", "run.yaml", "--repair", "--json").json()
        told = {f"{item['stage']}/{item['key']}" for item in found["damaged"]}
        assert told == {"/".join(name.split("/")[:2]) for name in chosen}
        machines.lose("first")
        project = machines.on("first")
        again = project.run()
        assert keys(again) == keys(document)
        assert machines.published() == published
        project.sft("artifacts", "verify", "--config", "run.yaml")


def test_two_runs_started_at_once_do_the_work_once(s3: Server, tmp_path: Path, prefect_api: str) -> None:
    machines = Machines(tmp_path, s3.place())
    machines.environment["PREFECT_API_URL"] = prefect_api
    for seed in range(10):
        runs = [machines.on(name) for name in ("first", "second")]
        started = [run.start("run", "run.yaml", "--json", f"seed={seed}", "--until", "merge") for run in runs]
        ended = [process.communicate(timeout=900) for process in started]
        assert [process.returncode for process in started] == [0, 0], [err.decode()[-2000:] for _, err in ended]
        documents = [orjson.loads(out) for out, _ in ended]
        assert keys(documents[0]) == keys(documents[1])
        assert sorted(statuses(document)["train"] for document in documents) == ["ran", "reused"]
        models = [run.folder / "out" / "adapter_model.safetensors" for run in runs]
        assert models[0].read_bytes() == models[1].read_bytes()
    machines.on("third").sft("artifacts", "verify", "--config", "run.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_where_a_lost_machine_was(servers: dict[str, Server], tmp_path: Path, kind: str) -> None:
    changes = {"num_epochs": 16, "save_steps": 5, "save_total_limit": 2}
    (tmp_path / "hit").mkdir()
    machines = Machines(tmp_path / "hit", servers[kind].place(), **changes)
    names = machines.store.names
    process = machines.on("first").start("run", "run.yaml", "--until", "train", "--quiet")
    wait_for(lambda: any(n.endswith(".json") and "/.sent/" in n and n.count("/") == 4 for n in names()), process)
    end_tree(process)
    process.communicate()
    machines.lose("first")

    document = machines.on("second").run("--until", "train")
    train = of_stage(document, "train")
    log = machines.store.read(f"train/{train['key']}/train.log").decode()
    assert "continuing from the checkpoint of step" in log
    assert not [name for name in names() if ".sent" in name], "checkpoints go when the model is there"
    metrics = machines.store.read(f"train/{train['key']}/metrics.jsonl").splitlines()
    assert b'"step":1,' in metrics[0], "the records of the lost machine are kept"

    (tmp_path / "calm").mkdir()
    calm = Machines(tmp_path / "calm", servers[kind].place(), **changes)
    undisturbed = calm.on("third").run("--until", "train")
    assert keys(undisturbed)[1:] == keys(document)[1:]
    digests = [
        part.on("reader").sft("artifacts", "show", train["key"], "--config", "run.yaml", "--json").json()["digest"]
        for part in (machines, calm)
    ]
    assert digests[0] == digests[1], "the model is the same to the last bit"
