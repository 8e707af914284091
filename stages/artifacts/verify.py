"""Reading every byte of a store, and removing what is not whole, so that the next run makes it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from stages.artifacts.artifact import Artifact, damage, read_manifest
from stages.artifacts.collect import Folder, folders_of
from stages.artifacts.manifest import MANIFEST
from stages.artifacts.place import spread
from stages.artifacts.store import USED, Store
from stages.artifacts.writer import WORK


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be.

    Attributes:
        stage, key: the artifact that it belongs to.
        kind: "damaged": a file of an artifact is missing or has other bytes; "orphaned": no manifest names the file.
        name: the file, in the store.
        problem: what is wrong, with its address.
    """

    stage: str
    key: str
    kind: Literal["damaged", "orphaned"]
    name: str
    problem: str


def verify(store: Store, prefix: str = "") -> tuple[int, list[Finding]]:
    """Return how many artifacts were read, and what is wrong in the folders of keys that begin with `prefix`.

    What is being written now is left out.
    """
    taken = store.place.taken()
    folders = [
        folder
        for folder in folders_of(store).values()
        if folder.key.startswith(prefix)
        and not folder.name.startswith(f"{WORK}/")
        and f"{folder.stage}-{folder.key}" not in taken
    ]
    found = [_look(store, folder) for folder in sorted(folders, key=lambda folder: folder.name)]
    return sum(whole for whole, _ in found), [finding for _, findings in found for finding in findings]


def repair(store: Store, findings: Iterable[Finding]) -> list[Finding]:
    """Remove damaged artifacts and orphaned files, and return what was removed; work that goes on is left alone."""
    removed: list[Finding] = []
    for (stage, key), of_one in groupby(findings, key=lambda finding: (finding.stage, finding.key)):
        with store.place.hold(f"{stage}-{key}", wait=False) as is_ours:
            present = _findings(store, stage, key) if is_ours else []  # it may have been made again meanwhile
            found = [finding for finding in of_one if finding in present]
            if any(finding.kind == "damaged" for finding in found):
                store.place.remove(f"{stage}/{key}/{MANIFEST}")
                store.place.clear(f"{stage}/{key}")
            for finding in found:
                store.place.remove(finding.name)
            removed += found
    return removed


def _findings(store: Store, stage: str, key: str) -> list[Finding]:
    files = store.place.files(f"{stage}/{key}")
    return _look(store, Folder(f"{stage}/{key}", stage, key, files))[1]


def _look(store: Store, folder: Folder) -> tuple[bool, list[Finding]]:
    artifact = read_manifest(store.place, folder.name)
    sizes = {file.name.removeprefix(f"{folder.name}/"): file.size for file in folder.files}
    if artifact is None and MANIFEST in sizes:
        problem = f"{store.place.address}/{folder.name}/{MANIFEST}: it is not a whole manifest"
        return True, [Finding(folder.stage, folder.key, "damaged", f"{folder.name}/{MANIFEST}", problem)]
    known = {USED, MANIFEST, *(entry.path for entry in artifact.manifest.files)} if artifact is not None else set()
    why = "its artifact's manifest does not name it" if artifact is not None else "its artifact was never finished"
    orphans = [
        Finding(
            folder.stage,
            folder.key,
            "orphaned",
            f"{folder.name}/{name}",
            f"{store.place.address}/{folder.name}/{name}: {why}",
        )
        for name in sorted(sizes.keys() - known)
    ]
    return artifact is not None, [*(_damage(store, artifact, sizes) if artifact is not None else []), *orphans]


def _damage(store: Store, artifact: Artifact, sizes: dict[str, int]) -> list[Finding]:
    names = [entry.path for entry in artifact.manifest.files if sizes.get(entry.path) == entry.size]
    read = spread(store.place, lambda name: store.place.sha256(f"{artifact.name}/{name}"), names)
    digests = dict(zip(names, read, strict=True))
    problems = damage(artifact.manifest, artifact.address, sizes, digests.get)
    cut = len(artifact.address) + 1
    return [
        Finding(artifact.stage, artifact.key, "damaged", f"{artifact.name}/{problem[cut:].partition(': ')[0]}", problem)
        for problem in problems
    ]
