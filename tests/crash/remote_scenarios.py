"""The work of the laboratory against an object store: a store in a bucket, data from one, a model into one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store, digest_of, sha256_file
from stages.artifacts.collect import collect, removable
from stages.publish import stage as publish
from stages.stage import Context, run_stage
from tests.crash.scenarios import (
    IN_AN_HOUR,
    KEYS,
    MODEL,
    SHARDS,
    Scenario,
    artifacts_are_whole,
    fetch_rows,
    left_in_store,
    store_of,
    write_files,
    write_rows,
)
from tests.published import upstream_of
from tests.store_servers import Server, Where

LEASE_SECONDS = (
    30.0  # a dead holder of this machine is found out at once; a busy machine, or a bad network, needs so long
)
RECORDS = (".locks", ".runs", ".newest", ".clock", ".leases")  # a few bytes a stage, a run, an artifact


def on_server(server: Server) -> tuple[Scenario, ...]:
    """Return the scenarios, each on a prefix of its own, which is emptied before every kill."""
    store, data, target = (Where(server, f"crash-{name}") for name in ("store", "data", "target"))
    cloud = server.kind.upper()
    return (
        Scenario(
            f"store on {cloud}: write, commit, note a run",
            partial(empty, store),
            partial(write_artifact, store),
            partial(remote_is_whole, store),
            partial(left_in_bucket, store),
        ),
        Scenario(
            f"fetch: rows from {cloud}",
            partial(upload_rows, data),
            partial(fetch_from, data),
            artifacts_are_whole,
            left_in_store,
        ),
        Scenario(
            f"publish: a model to {cloud}",
            partial(empty, target),
            partial(publish_to, target),
            partial(published_is_whole, target),
            partial(left_in_target, target),
        ),
    )


def empty(where: Where, root: Path) -> None:
    for name in where.names():
        where.remove(name)


def write_artifact(where: Where, root: Path) -> str:
    """Write an artifact of several files into the bucket, and note a run that holds it."""
    store = where.open(root / "cache", lease_seconds=LEASE_SECONDS)
    inputs = {"stage": "pack", "version": 1}
    with store.lock("pack", digest_of(inputs)):
        made = store.find("pack", digest_of(inputs)) or write_files(store, "pack", inputs, SHARDS)
    store.note_run("out", [made])
    assert {name: made.path(name).read_bytes() for name in SHARDS} == SHARDS
    return made.digest


def remote_is_whole(where: Where, root: Path) -> list[str]:
    """Tell of every artifact that another machine sees and cannot read."""
    store = where.open(root / "reader", lease_seconds=LEASE_SECONDS)
    return [line for artifact in store.artifacts() for line in _unreadable(store, artifact)]


def _unreadable(store: Store, artifact: Artifact) -> list[str]:
    if store.find(artifact.stage, artifact.key) is None:
        return [f"{artifact.key}: there, and damaged"]
    wrong = [e.path for e in artifact.manifest.files if sha256_file(artifact.path(e.path)) != e.sha256]
    return [f"{path}: other bytes" for path in wrong]


def left_in_bucket(where: Where, root: Path) -> list[str]:
    """Collect all garbage, an hour later, and tell what is left that no artifact and no record accounts for."""
    store = where.open(root / "cache", lease_seconds=LEASE_SECONDS)
    collect(store, removable(store, days=0), draft_seconds=IN_AN_HOUR)
    known = {f"{artifact.name}/{entry.path}" for artifact in store.artifacts() for entry in artifact.manifest.files}
    known |= {f"{artifact.name}/{name}" for artifact in store.artifacts() for name in ("manifest.json", ".used")}
    return [name for name in where.names() if name not in known and not name.startswith(RECORDS)]


def upload_rows(where: Where, root: Path) -> None:
    """Put the rows into the bucket as three objects."""
    write_rows(root)
    lines = (root / "data.jsonl").read_bytes().splitlines(keepends=True)
    for number in range(3):
        where.write(f"part-{number}.jsonl", b"".join(lines[number * 20 : number * 20 + 20]))


def fetch_from(where: Where, root: Path) -> str:
    """Fetch the rows from the bucket."""
    return fetch_rows(root, path=where.address, storage_options=where.server.options)


def publish_to(where: Where, root: Path, through: str | None = None) -> str:
    """Publish a model into the bucket, perhaps through a proxy."""
    store, inputs = store_of(root), {"stage": "merge"}
    files = {f"model/{name}": content for name, content in MODEL.items()}
    model = store.find("merge", digest_of(inputs)) or write_files(store, "merge", inputs, files)
    options = {**where.server.options, "endpoint_url": through or where.server.url}
    run = RunConfig.model_validate(
        {
            **KEYS,
            "datasets": [{"path": "x.jsonl", "type": "alpaca"}],
            "publish": {"to": where.address, "storage_options": options},
        }
    )
    run_stage(publish.STAGE, Context(run, FileDigests(root / "digests.sqlite")), upstream_of(store, model), store)
    return digest_of({name: digest_of(where.read(name).hex()) for name in where.names()})


def published_is_whole(where: Where, root: Path) -> list[str]:
    """Tell of files that are not what the receipt beside them says."""
    names = where.names()
    if publish.RECEIPT not in names:
        return []
    listed = publish.files_of(where.read(publish.RECEIPT))
    return [entry.path for entry in listed if where.read(entry.path) != MODEL[entry.path]]


def left_in_target(where: Where, root: Path) -> list[str]:
    """Tell of objects that are not of the model."""
    return sorted({*where.names()} - {*MODEL, publish.CARD, publish.RECEIPT})
