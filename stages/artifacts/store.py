"""A store of artifacts in a folder.

    <store>/<stage>/<key>/manifest.json      written last, by an exclusive create: without it there is no artifact
    <store>/<stage>/<key>/<data files>
    <store>/.work/<stage>/<key>/             what a stage leaves for its own next try: finished shards (`.parts/`),
                                             training checkpoints
    <store>/.locks/<stage>-<key>             held while an artifact is being made; the kernel frees it with its holder
    <store>/.runs/<name>.json                what the last run with an output folder is made of: garbage collection
                                             keeps it

A data file is written under a temporary name among the parts, flushed to disk, and then given its name, so that a part
with its name is whole. A commit links the parts into the artifact's folder and the manifest last of all. Nothing
inside holds an absolute path: a copied tree is a valid store.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts.digests import FileDigests, digest_of, sha256_file
from stages.artifacts.manifest import MANIFEST, FileEntry, Manifest
from stages.errors import StoreError

PARTS = ".parts"
WORK = ".work"
LOCKS = ".locks"
RUNS = ".runs"
USED = ".used"
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

    def damaged(self, sha256: Callable[[Path], str] | None) -> list[str]:
        """Return a sentence for each missing or damaged file.

        Args:
            sha256: how to get a file's digest; None: only presence and size are looked at.
        """
        found = []
        for entry in self.manifest.files:
            path = self.folder / entry.path
            if not path.is_file():
                found.append(f"{path}: missing")
            elif path.stat().st_size != entry.size:
                found.append(f"{path}: {path.stat().st_size} bytes instead of {entry.size}")
            elif sha256 is not None and sha256(path) != entry.sha256:
                found.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
        return found


class ArtifactWriter:
    """Collects the files of one artifact and commits them, manifest last.

    Data files that a killed producer had finished are still there: `finished` tells, so that only the rest is made.

    Attributes:
        work: a folder for what the producer wants to find again on its next try.
    """

    def __init__(
        self, store: Store, stage: str, key: str, inputs: dict[str, Any], parents: dict[str, str], *, anew: bool = False
    ) -> None:
        self._store, self._anew = store, anew
        self.work = store.root / WORK / stage / key
        self._folder, self._parts = store.root / stage / key, self.work / PARTS
        self._stage, self._key, self._inputs, self._parents = stage, key, inputs, parents
        self._files: dict[str, FileEntry] = {}
        self._started = time.time()

    @property
    def key(self) -> str:
        """Return the key of the artifact that is being made."""
        return self._key

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what determines the artifact, in clear: what its key is the digest of."""
        return self._inputs

    def earlier(self) -> Iterator[Artifact]:
        """Yield the complete artifacts of this stage, newest first, whose parts may be used again.

        None if the artifact was asked to be made anew.
        """
        return iter(()) if self._anew else reversed([*self._store.artifacts(self._stage)])

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return the notes of data file `name` if an earlier try finished it and its bytes are whole, else None."""
        try:
            record = orjson.loads(self._note(name).read_bytes())
            entry = FileEntry.model_validate(record["file"])
            if sha256_file(self._part(name)) != entry.sha256:
                return None
        except (OSError, ValueError, KeyError):
            return None
        self._files[name] = entry
        notes: dict[str, Any] = record["notes"]
        return notes

    @contextmanager
    def create(self, name: str, *, volatile: bool = False) -> Iterator[Draft]:
        """Give a draft whose `path` is to be written; on leaving, it becomes data file `name`.

        `draft.notes` (JSON) come back from `finished` on a later try.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        draft = Draft(self._parts / f"{TEMPORARY}{uuid.uuid4().hex}", {})
        try:
            yield draft
            flush(draft.path)
            size, sha256 = draft.path.stat().st_size, sha256_file(draft.path)
            entry = FileEntry(path=name, size=size, sha256=sha256, volatile=volatile)
            draft.path.replace(self._part(name))
        finally:
            draft.path.unlink(missing_ok=True)
        self._files[name] = entry
        _write_whole(self._note(name), orjson.dumps({"file": entry.model_dump(), "notes": draft.notes}))

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

    def take_folder(self, source: Path, *, prefix: str = "") -> None:
        """Take every file below `source` under its relative path, with `prefix` in front."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                self.take(path, prefix + path.relative_to(source).as_posix())

    def commit(self, *, facts: dict[str, Any], volatile: dict[str, Any] | None = None) -> Artifact:
        """Publish the artifact: first every data file, then the manifest, by an exclusive create.

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
        present = read_artifact(self._folder)
        if present is None:
            present = self._publish(manifest)
        if present.digest != manifest.digest:
            raise StoreError(
                f"{self._folder}: two runs made different content for one key. The stage {self._stage!r} is not "
                f"deterministic; please report it with both manifests. The first content was kept; the second lies in "
                f"{self._parts}."
            )
        shutil.rmtree(self._parts, ignore_errors=True)
        with suppress(OSError):  # a stage that keeps something of its own there keeps the folder
            self.work.rmdir()
        return present

    def _publish(self, manifest: Manifest) -> Artifact:
        """Link the parts into the artifact's folder, then the manifest; return what is there in the end."""
        for path in self._folder.rglob("*"):
            if path.is_file() and path.relative_to(self._folder).as_posix() not in self._files:
                path.unlink(missing_ok=True)
        for name in self._files:
            final = self._folder / name
            final.parent.mkdir(parents=True, exist_ok=True)
            final.unlink(missing_ok=True)
            final.hardlink_to(self._part(name))
            flush(final.parent)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._parts / f"{TEMPORARY}{uuid.uuid4().hex}"
        draft.write_bytes(manifest.model_dump_json(indent=1).encode())
        flush(draft)
        try:
            (self._folder / MANIFEST).hardlink_to(draft)
        except FileExistsError:
            there = read_artifact(self._folder)
            return Artifact(self._folder, manifest) if there is None else there
        flush(self._folder)
        return Artifact(self._folder, manifest)

    def _part(self, name: str) -> Path:
        return self._parts / name.replace("/", "%")

    def _note(self, name: str) -> Path:
        return self._parts / f"{name.replace('/', '%')}.note.json"


@dataclass
class Draft:
    """A data file while it is being written: where, and what to remember about it (JSON)."""

    path: Path
    notes: dict[str, Any]


class Store:
    """A folder of artifacts.

    With a memory of file digests, `find` compares every byte on the first use on a machine, and again whenever a file
    has been touched since; without one it looks at presence and size.
    """

    def __init__(self, root: Path, digests: FileDigests | None = None) -> None:
        self.root = root
        self._sha256 = None if digests is None else digests.sha256

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact of a key, or None if it is not there or a file of it is missing or damaged."""
        artifact = read_artifact(self.root / stage / key)
        return artifact if artifact is not None and not artifact.damaged(self._sha256) else None

    def damage(self, artifact: Artifact) -> list[str]:
        """Return a sentence for each missing or damaged file of an artifact."""
        return artifact.damaged(self._sha256)

    @contextmanager
    def writer(
        self, stage: str, inputs: dict[str, Any], parents: dict[str, str], *, anew: bool = False
    ) -> Iterator[ArtifactWriter]:
        """Give a writer for the artifact that `inputs` determine. Hold `lock` around it.

        With `anew` nothing of other artifacts is used for it.
        """
        key = digest_of(inputs)
        folder = self.root / stage / key
        if (folder / MANIFEST).exists():  # damaged, or to be made again: it must not be seen while it is rebuilt
            (folder / MANIFEST).unlink()
        yield ArtifactWriter(self, stage, key, inputs, parents, anew=anew)

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to make one artifact; wait while another process of this machine holds it."""
        path = self.root / LOCKS / f"{stage}-{key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def note_run(self, output_dir: str, artifacts: Iterable[Artifact]) -> None:
        """Note what the run with an output folder is made of, and that it was used now."""
        used = {}
        for artifact in artifacts:
            (artifact.folder / USED).touch()
            used[artifact.stage] = artifact.key
        record = run_record(self.root, output_dir)
        record.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(record, orjson.dumps({"output_dir": output_dir, "artifacts": used}))

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


def run_record(root: Path, output_dir: str) -> Path:
    """Return where the record of the run with an output folder lies."""
    return root / RUNS / f"{digest_of(output_dir)[:16]}.json"


def is_locked(path: Path) -> bool:
    """Return whether a living process holds a lock file."""
    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, or None if there is no readable manifest."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return Artifact(folder, manifest)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    draft.write_bytes(content)
    flush(draft)
    draft.replace(path)
