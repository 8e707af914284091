"""A store of artifacts in a folder.

    <store>/<stage>/<key>/manifest.json      written last, by an exclusive create: without it there is no artifact
    <store>/<stage>/<key>/<data files>
    <store>/<stage>/<key>/.parts/<name>.json finished shards of an artifact that is still being made
    <store>/.work/<stage>/<key>/             what a stage may leave for its own next try (training checkpoints)
    <store>/.locks/<stage>-<key>             held while an artifact is being made; the kernel frees it with its holder

A data file is written under a temporary name in the artifact's folder, flushed to disk, and then given its name, so
that a file with its name is whole. Nothing inside holds an absolute path: a copied tree is a valid store.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts.digests import digest_of, sha256_file
from stages.artifacts.manifest import MANIFEST, FileEntry, Manifest
from stages.errors import StoreError

PARTS = ".parts"
WORK = ".work"
LOCKS = ".locks"
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Artifact:
    """A complete artifact that can be read from `folder`."""

    folder: Path
    manifest: Manifest

    @property
    def stage(self) -> str:
        """Return the name of the stage that produced it."""
        return self.manifest.stage

    @property
    def key(self) -> str:
        """Return the content key, 64 hex digits."""
        return self.manifest.key

    @property
    def digest(self) -> str:
        """Return the digest of the content: what a downstream key is made of."""
        return self.manifest.digest

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the producer stated about the content."""
        return self.manifest.facts

    def path(self, name: str) -> Path:
        """Return where the data file `name` lies."""
        return self.folder / name

    def damaged(self, *, digests: bool) -> list[str]:
        """Return a sentence for each missing or damaged file; with `digests`, every byte is read."""
        found = []
        for entry in self.manifest.files:
            path = self.folder / entry.path
            if not path.is_file():
                found.append(f"{path}: missing")
            elif path.stat().st_size != entry.size:
                found.append(f"{path}: {path.stat().st_size} bytes instead of {entry.size}")
            elif digests and sha256_file(path) != entry.sha256:
                found.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
        return found


class ArtifactWriter:
    """Collects the files of one artifact and commits them, manifest last.

    Data files that a killed producer had finished are still there: `finished` tells, so that only the rest is made.
    """

    def __init__(self, store: Store, stage: str, key: str, inputs: dict[str, Any], parents: dict[str, str]) -> None:
        self.folder = store.root / stage / key
        self.work = store.root / WORK / stage / key
        self._stage, self._key, self._inputs, self._parents = stage, key, inputs, parents
        self._files: dict[str, FileEntry] = {}
        self._started = time.time()
        (self.folder / PARTS).mkdir(parents=True, exist_ok=True)

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return the notes of data file `name` if an earlier try finished it and its bytes are whole, else None."""
        note = self.folder / PARTS / f"{name.replace('/', '%')}.json"
        try:
            record = orjson.loads(note.read_bytes())
            entry = FileEntry.model_validate(record["file"])
            path = self.folder / name
            if path.stat().st_size != entry.size or sha256_file(path) != entry.sha256:
                return None
        except (OSError, ValueError, KeyError):
            return None
        self._files[name] = entry
        notes: dict[str, Any] = record["notes"]
        return notes

    @contextmanager
    def create(self, name: str, *, volatile: bool = False) -> Iterator[_Draft]:
        """Give a draft whose `path` is to be written; on leaving, it becomes data file `name`.

        `draft.notes` (JSON) come back from `finished` on a later try.
        """
        final = self.folder / name
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = _Draft(final.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{final.name}"), {})
        try:
            yield draft
            _flush(draft.path)
            entry = FileEntry(
                path=name, size=draft.path.stat().st_size, sha256=sha256_file(draft.path), volatile=volatile
            )
            draft.path.replace(final)
        finally:
            draft.path.unlink(missing_ok=True)
        self._files[name] = entry
        note = {"file": entry.model_dump(), "notes": draft.notes}
        _write_whole(self.folder / PARTS / f"{name.replace('/', '%')}.json", orjson.dumps(note))

    def write(self, name: str, content: bytes, *, volatile: bool = False) -> None:
        """Write a small data file."""
        with self.create(name, volatile=volatile) as draft:
            draft.path.write_bytes(content)

    def take(self, source: Path, name: str, *, volatile: bool = False) -> None:
        """Make a file of this file system data file `name`: by a hard link where possible, else by a copy."""
        with self.create(name, volatile=volatile) as draft:
            try:
                draft.path.hardlink_to(source)
            except OSError:
                shutil.copyfile(source, draft.path)

    def take_folder(self, source: Path, *, volatile: frozenset[str] = frozenset()) -> None:
        """Take every file below `source` under its relative path; those named in `volatile` are marked so."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                name = path.relative_to(source).as_posix()
                self.take(path, name, volatile=name in volatile)

    def commit(self, *, facts: dict[str, Any], volatile: dict[str, Any] | None = None) -> Artifact:
        """Publish the artifact: every data file is on disk, now the manifest, by an exclusive create.

        Raises:
            StoreError: another producer committed the same key with other content: a determinism bug.
        """
        manifest = Manifest(
            stage=self._stage,
            key=self._key,
            inputs=self._inputs,
            files=tuple(self._files[name] for name in sorted(self._files)),
            facts=facts,
            parents=self._parents,
            volatile={"seconds": round(time.time() - self._started, 3), **(volatile or {})},
        )
        self._remove_strangers()
        try:
            _create_whole(self.folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        except FileExistsError:
            present = read_artifact(self.folder)
            if present is None or present.digest != manifest.digest:
                raise StoreError(
                    f"{self.folder}: two runs made different content for one key. The stage {self._stage!r} is not "
                    "deterministic; please report it with both manifests. The first content was kept."
                ) from None
            return present
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return Artifact(self.folder, manifest)

    def _remove_strangers(self) -> None:
        """Remove what a killed producer left under temporary or no longer used names."""
        for path in list(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name != MANIFEST and name not in self._files and not name.startswith(PARTS):
                path.unlink(missing_ok=True)


@dataclass
class _Draft:
    path: Path
    notes: dict[str, Any]


class Store:
    """A folder of artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact of a key, or None if it is not there or a file of it is missing or short."""
        artifact = read_artifact(self.root / stage / key)
        return artifact if artifact is not None and not artifact.damaged(digests=False) else None

    @contextmanager
    def writer(
        self, stage: str, inputs: dict[str, Any], parents: dict[str, str]
    ) -> Iterator[ArtifactWriter]:
        """Give a writer for the artifact that `inputs` determine. Hold `lock` around it."""
        key = digest_of(inputs)
        folder = self.root / stage / key
        if (folder / MANIFEST).exists():  # damaged, or to be made again: it must not be seen while it is rebuilt
            (folder / MANIFEST).unlink()
        yield ArtifactWriter(self, stage, key, inputs, parents)

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to make one artifact; wait while another process of this machine holds it."""
        path = self.root / LOCKS / f"{stage}-{key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def newest(self, stage: str) -> Artifact | None:
        """Return the artifact of a stage that was committed last."""
        manifests = sorted((self.root / stage).glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
        return read_artifact(manifests[-1].parent) if manifests else None

    def artifacts(self, stage: str | None = None) -> Iterator[Artifact]:
        """Yield every complete artifact, damaged ones included, oldest first within a stage."""
        stages = [stage] if stage else sorted(p.name for p in self.root.glob("[!.]*") if p.is_dir())
        for name in stages:
            manifests = sorted((self.root / name).glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
            for path in manifests:
                artifact = read_artifact(path.parent)
                if artifact is not None:
                    yield artifact


def read_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, or None if there is no readable manifest."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return Artifact(folder, manifest)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    draft.write_bytes(content)
    _flush(draft)
    draft.replace(path)


def _create_whole(path: Path, content: bytes) -> None:
    """Create a file with its whole content or not at all, and never over an existing one."""
    draft = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    draft.write_bytes(content)
    _flush(draft)
    try:
        path.hardlink_to(draft)
    finally:
        draft.unlink()
    _flush(path.parent)
