"""What is killed in the laboratory: the work, what a reader may see at any moment, and what may be left in the end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  pyarrow imports it with its first array, which would cost each process seconds

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store, digest_of, sha256_file
from stages.artifacts.collect import collect, removable
from stages.fetch import STAGE as FETCH
from stages.fetch import shards
from stages.publish import stage as publish
from stages.stage import Context, run_stage
from tests.published import upstream_of

ROWS = 60
IN_AN_HOUR = -60.0
"""Seconds after which drafts are old: those of now, too, as they will be in an hour."""
KEYS = {"base_model": "base", "learning_rate": 1e-4, "micro_batch_size": 1, "gradient_accumulation_steps": 1}
SHARDS = {"a.bin": b"first", "part/b.bin": b"second" * 1000, "part/c.bin": b"third"}
MODEL = {"config.json": b"{}", "model-1.safetensors": bytes(range(256)) * 64, "model-2.safetensors": b"second"}


@dataclass(frozen=True)
class Scenario:
    """One kind of work.

    Attributes:
        name: in the table of results.
        prepare: puts there what the work begins with; is not killed.
        work: does it all, whatever an earlier try has left; returns what must be the same however often it was killed.
        look: returns a sentence for everything that a reader must never see.
        leftovers: returns what is still there though the work is done and garbage was collected.
        warm_up: imports here what every forked process would need seconds to import.
    """

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], Any]
    look: Callable[[Path], list[str]]
    leftovers: Callable[[Path], list[str]]
    warm_up: Callable[[], None] = lambda: None


def nothing(root: Path) -> None:
    """Begin with an empty folder."""


def store_of(root: Path) -> Store:
    return Store(root / "store", FileDigests(root / "cache" / "digests.sqlite"))


def write_artifact(root: Path) -> str:
    """Write an artifact of several files, and note a run that holds it."""
    store = store_of(root)
    inputs = {"stage": "pack", "version": 1}
    with store.lock("pack", digest_of(inputs)):
        made = store.find("pack", digest_of(inputs)) or write_files(store, "pack", inputs, SHARDS)
    store.note_run("out", [made])
    return made.digest


def write_files(store: Store, stage: str, inputs: dict[str, Any], files: dict[str, bytes]) -> Artifact:
    with store.writer(stage, inputs, {}) as writer:
        for name, content in files.items():
            if writer.finished(name) is None:
                writer.write(name, content)
        return writer.commit(facts={"files": len(files)})


def artifacts_are_whole(root: Path) -> list[str]:
    """Tell of every artifact that a reader sees and that is not whole."""
    store = Store(root / "store")
    return [line for artifact in store.artifacts() for line in artifact.damaged(sha256_file)]


def left_in_store(root: Path) -> list[str]:
    """Collect all garbage, an hour later, and tell what is left that no artifact and no record accounts for."""
    store = Store(root / "store")
    collect(store, removable(store, days=0), draft_seconds=IN_AN_HOUR)
    known = {artifact.path(entry.path) for artifact in store.artifacts() for entry in artifact.manifest.files}
    known |= {artifact.folder / name for artifact in store.artifacts() for name in ("manifest.json", ".used")}
    found = [path for path in (root / "store").rglob("*") if path.is_file() and path not in known]
    kept = (".locks", ".runs", ".newest")  # of no size that grows: one a stage, a run, an artifact under way
    return [str(path.relative_to(root)) for path in found if path.relative_to(root / "store").parts[0] not in kept]


def write_rows(root: Path) -> None:
    (root / "data.jsonl").write_bytes(b"".join(b'{"n": %d, "text": "%s"}\n' % (n, b"x" * 40) for n in range(ROWS)))


def fetch_rows(root: Path, **dataset: Any) -> str:
    """Fetch rows into shards of about 500 bytes."""
    shards.SHARD_BYTES = 500
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    store = store_of(root)
    datasets = [{"path": str(root / "data.jsonl"), "type": "alpaca", **dataset}]
    context = Context(RunConfig.model_validate({**KEYS, "datasets": datasets}), FileDigests(root / "digests.sqlite"))
    made = run_stage(FETCH, context, {}, store).artifact
    store.note_run("out", [made])
    assert sum(shard["rows"] for shard in made.facts["datasets"][0]["shards"]) == ROWS
    return made.digest


def prepare_publication(root: Path) -> None:
    """Put two merged models into the store, and publish the first."""
    first, second = _models(root)
    _publish(root, first)
    assert first.digest != second.digest


def _models(root: Path) -> list[Artifact]:
    store = store_of(root)
    found = []
    for number in range(2):
        files = {f"model/{name}": content + bytes([number]) for name, content in MODEL.items()}
        inputs = {"stage": "merge", "number": number}
        found.append(store.find("merge", digest_of(inputs)) or write_files(store, "merge", inputs, files))
    return found


def _publish(root: Path, model: Artifact) -> None:
    run = RunConfig.model_validate(
        {**KEYS, "datasets": [{"path": "x.jsonl", "type": "alpaca"}], "publish": str(root / "target")}
    )
    store = store_of(root)
    run_stage(publish.STAGE, Context(run, FileDigests(root / "digests.sqlite")), upstream_of(store, model), store)


def publish_second(root: Path) -> str:
    """Publish the second model over the first."""
    models = _models(root)
    _publish(root, models[1])
    store_of(root).note_run("out", models)
    return digest_of({path.name: sha256_file(path) for path in (root / "target").iterdir()})


def receipt_is_true(root: Path) -> list[str]:
    """Tell where the published files are not what the receipt beside them says."""
    receipt = root / "target" / "sft-receipt.json"
    if not receipt.exists():
        return artifacts_are_whole(root)
    listed = json.loads(receipt.read_bytes())["files"]
    wrong = [e["path"] for e in listed if _digest(root / "target" / e["path"]) != e["sha256"]]
    return [f"{path} is not what the receipt says" for path in wrong] + artifacts_are_whole(root)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def left_in_target(root: Path) -> list[str]:
    """Tell of temporary files, and of files of the model that was replaced."""
    names = {path.name for path in (root / "target").iterdir()} - {*MODEL, "README.md", "sft-receipt.json"}
    return sorted(names)


def prepare_garbage(root: Path) -> None:
    """Put there an artifact that a run holds, two that nobody holds, and what a killed writer left."""
    store = store_of(root)
    held = write_files(store, "pack", {"n": 0}, SHARDS)
    for number in (1, 2):
        write_files(store, "pack", {"n": number}, SHARDS)
    store.note_run("out", [held])
    with store.writer("pack", {"n": 3}, {}) as writer:
        writer.write("a.bin", b"never finished")


def collect_garbage(root: Path) -> str:
    """Collect what nobody holds."""
    store = store_of(root)
    collect(store, removable(store, days=0))
    held = store.find("pack", digest_of({"n": 0}))
    assert held is not None
    return digest_of(sorted(artifact.digest for artifact in store.artifacts()))


STORE = Scenario("store: write, commit, note a run", nothing, write_artifact, artifacts_are_whole, left_in_store)
FETCHING = Scenario("fetch: shards of local rows", write_rows, fetch_rows, artifacts_are_whole, left_in_store)
PUBLISHING = Scenario(
    "publish: a model over another", prepare_publication, publish_second, receipt_is_true, left_in_target
)
COLLECTING = Scenario(
    "gc: beside a held artifact", prepare_garbage, collect_garbage, artifacts_are_whole, left_in_store
)
LOCAL = (STORE, FETCHING, PUBLISHING, COLLECTING)
