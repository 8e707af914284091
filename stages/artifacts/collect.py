"""Removing what nobody needs from a store."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from stages.artifacts.manifest import MANIFEST
from stages.artifacts.place import DRAFTS, PROBES, Stored
from stages.artifacts.store import RUNS, Store, run_record
from stages.artifacts.writer import PARTS, WORK

SECONDS_PER_DAY = 86_400.0
DRAFT_SECONDS = 3600.0
"""A small file is written in less; what is older was left by a killed process."""


@dataclass(frozen=True)
class Removable:
    """A folder of a store that can go: its name, address, size in bytes, newest time, and the reason."""

    name: str
    address: str
    size: int
    last_use: float
    why: str


@dataclass
class Folder:
    """The files of an artifact's folder, or of its work folder."""

    name: str
    stage: str
    key: str
    files: list[Stored] = field(default_factory=list)

    def removable(self, address: str, why: str, below: str = "") -> Removable:
        """Return it, or a folder below it, as one that can go for a reason."""
        files = [file for file in self.files if file.name.startswith(f"{self.name}{below}/")]
        size = sum(file.size for file in files)
        return Removable(self.name + below, f"{address}/{self.name}{below}", size, last_use(files), why)


def removable(store: Store, *, days: float, forget: frozenset[str] = frozenset()) -> list[Removable]:
    """Return the folders that no run refers to, that were not used for `days`, and that nobody is writing.

    Args:
        store: the store.
        days: how long after its last use a folder is kept in any case.
        forget: output folders of runs that do not count any more.
    """
    held, folders, address = _held(store, forget), folders_of(store), store.place.address
    taken, oldest = store.place.taken(), store.place.now() - days * SECONDS_PER_DAY
    complete = {name for name, folder in folders.items() if any(f.name == f"{name}/{MANIFEST}" for f in folder.files)}
    found = []
    for name, folder in sorted(folders.items()):
        if last_use(folder.files) > oldest or f"{folder.stage}-{folder.key}" in taken:
            continue
        is_complete, left_over = f"{folder.stage}/{folder.key}" in complete, name.startswith(WORK)
        if left_over and is_complete and any(file.name.startswith(f"{name}/{PARTS}/") for file in folder.files):
            found.append(folder.removable(address, "its artifact is finished", f"/{PARTS}"))
        elif (folder.stage, folder.key) not in held:
            why = "left for a next try" if left_over else "no run refers to it"
            found.append(folder.removable(address, why if is_complete or left_over else "it was never finished"))
    return found


def collect(
    store: Store,
    found: list[Removable],
    forget: frozenset[str] = frozenset(),
    *,
    draft_seconds: float = DRAFT_SECONDS,
) -> list[Removable]:
    """Remove folders, the manifest first, so that a reader never sees half an artifact; return what was removed.

    A folder stays that somebody has begun to write, or has used, since it was found. Small files that a killed process
    was writing go when they are older than `draft_seconds`.
    """
    place = store.place
    for output_dir in forget:
        place.remove(run_record(output_dir))
    removed = []
    for item in found:
        stage, key = item.name.removeprefix(f"{WORK}/").split("/")[:2]
        with place.hold(f"{stage}-{key}", wait=False) as is_ours:
            files = place.files(item.name) if is_ours else []
            if files and last_use(files) == item.last_use:
                place.remove(f"{item.name}/{MANIFEST}")
                place.clear(item.name)
                removed.append(item)
    left = [*place.files(DRAFTS), *place.files(PROBES)]
    oldest = place.now() - draft_seconds if left else 0.0
    for file in left:
        if file.modified < oldest:
            place.remove(file.name)
    return removed


def last_use(files: list[Stored]) -> float:
    """Return the time of the last sign of life in a folder."""
    return max(file.modified for file in files)


def folders_of(store: Store) -> dict[str, Folder]:
    """Return the folders of artifacts, and of work on them, by name."""
    folders: dict[str, Folder] = {}
    for file in store.place.files():
        stage, _, rest = file.name.removeprefix(f"{WORK}/").partition("/")
        key, _, name = rest.partition("/")
        if name and not stage.startswith(".") and not key.startswith("."):
            folder = file.name[: -len(name) - 1]
            folders.setdefault(folder, Folder(folder, stage, key)).files.append(file)
    return folders


def _held(store: Store, forget: frozenset[str]) -> set[tuple[str, str]]:
    held: set[tuple[str, str]] = set()
    for file in store.place.files(RUNS):
        content = store.place.read(file.name) if file.name.endswith(".json") else None
        record = orjson.loads(content) if content else {"output_dir": None, "artifacts": {}}
        if record["output_dir"] not in forget:
            held.update((stage, key) for stage, key in record["artifacts"].items())
    return held
