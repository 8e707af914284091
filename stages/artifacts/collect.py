"""Removing what nobody needs from a store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from stages.artifacts.manifest import MANIFEST
from stages.artifacts.store import LOCKS, PARTS, RUNS, USED, WORK, Store, is_locked, run_record

SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Removable:
    """A folder that can go: its size in bytes and the reason."""

    folder: Path
    size: int
    why: str


def removable(store: Store, *, days: float, forget: frozenset[str] = frozenset()) -> list[Removable]:
    """Return the folders that no run refers to, that were not used for `days`, and that nobody is writing.

    Args:
        store: the store.
        days: how long after its last use a folder is kept in any case.
        forget: output folders of runs that do not count any more.
    """
    held = _held(store, forget)
    oldest = time.time() - days * SECONDS_PER_DAY
    found = []
    for stage, key, folder in _folders(store):
        if _last_use(folder) > oldest or is_locked(store.root / LOCKS / f"{stage}-{key}"):
            continue
        complete = (store.root / stage / key / MANIFEST).exists()
        left_over = folder.parent.parent.name == WORK
        if left_over and complete and (folder / PARTS).exists():
            found.append(Removable(folder / PARTS, _size(folder / PARTS), "its artifact is finished"))
        elif (stage, key) not in held:
            why = "left for a next try" if left_over else "no run refers to it"
            found.append(Removable(folder, _size(folder), why if complete or left_over else "it was never finished"))
    return found


def collect(store: Store, found: list[Removable], forget: frozenset[str] = frozenset()) -> None:
    """Remove folders, the manifest first, so that a reader never sees half an artifact."""
    for output_dir in forget:
        run_record(store.root, output_dir).unlink(missing_ok=True)
    for item in found:
        (item.folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(item.folder, ignore_errors=True)


def _held(store: Store, forget: frozenset[str]) -> set[tuple[str, str]]:
    held: set[tuple[str, str]] = set()
    for path in (store.root / RUNS).glob("*.json"):
        record = orjson.loads(path.read_bytes())
        if record["output_dir"] not in forget:
            held.update((stage, key) for stage, key in record["artifacts"].items())
    return held


def _folders(store: Store) -> Iterator[tuple[str, str, Path]]:
    for root in (store.root, store.root / WORK):
        for folder in sorted(root.glob("[!.]*/[!.]*")):
            if folder.is_dir():
                yield folder.parent.name, folder.name, folder


def _last_use(folder: Path) -> float:
    """Return the time of the last sign of life in a folder."""
    marks = [folder, folder / USED, folder / MANIFEST, *folder.iterdir()]
    return max(path.stat().st_mtime for path in marks if path.exists())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
