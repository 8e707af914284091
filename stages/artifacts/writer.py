"""Making an artifact: its files one by one, then all of it at once."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts.artifact import Artifact, newest_first, read_manifest
from stages.artifacts.backup import Backup
from stages.artifacts.digests import sha256_file
from stages.artifacts.manifest import MANIFEST, FileEntry, Manifest
from stages.artifacts.place import TEMPORARY, Place, flush, spread
from stages.errors import StoreError

PARTS = ".parts"
WORK = ".work"
NEWEST = ".newest"


@dataclass
class Draft:
    """A data file while it is being written: where, and what to remember about it (JSON)."""

    path: Path
    notes: dict[str, Any]


class ArtifactWriter:
    """Collects the files of one artifact on this machine and commits them, manifest last.

    Data files that a killed producer had finished are still there: `finished` tells, so that only the rest is made.

    Attributes:
        work: a folder for what the producer wants to find again on its next try.
    """

    def __init__(
        self,
        place: Place,
        stage: str,
        key: str,
        inputs: dict[str, Any],
        parents: dict[str, str],
        *,
        anew: bool = False,
    ) -> None:
        self._anew = anew
        self.work = place.here / WORK / stage / key
        self._place, self._name, self._parts = place, f"{stage}/{key}", self.work / PARTS
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
        return iter(()) if self._anew else newest_first(self._place, self._stage)

    def backup(self) -> Backup | None:
        """Return what keeps finished work in the store for another machine; None if nobody else sees the store."""
        if not self._place.is_remote:
            return None
        return Backup(self._place, f"{WORK}/{self._name}", f"{self._stage}-{self._key}")

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
        ).sealed()
        present = read_manifest(self._place, self._name)
        if present is None:
            present = self._publish(manifest)
        if present.digest != manifest.digest:
            raise StoreError(
                f"{present.address}: two runs made different content for one key. The stage {self._stage!r} is not "
                f"deterministic; please report it with both manifests. The first content was kept; the second lies in "
                f"{self._parts}."
            )
        self._place.write(f"{NEWEST}/{self._stage}", self._key.encode())
        if self._place.is_remote:
            self._place.clear(f"{WORK}/{self._name}")
        shutil.rmtree(self._parts, ignore_errors=True)
        with suppress(OSError):  # a stage that keeps something of its own there keeps the folder
            self.work.rmdir()
        return present

    def _publish(self, manifest: Manifest) -> Artifact:
        """Give the parts their places, then the manifest; return what is there in the end."""
        place, names = self._place, {f"{self._name}/{path}": entry for path, entry in self._files.items()}
        for stored in place.files(self._name):
            if stored.name not in names:
                place.remove(stored.name)

        def put(name: str) -> None:
            place.confirm(f"{self._stage}-{self._key}")
            place.put(self._part(names[name].path), name, names[name])

        spread(place, put, names)
        place.confirm(f"{self._stage}-{self._key}")
        if place.create(f"{self._name}/{MANIFEST}", manifest.model_dump_json(indent=1).encode()):
            return Artifact(place, manifest)
        return read_manifest(place, self._name) or Artifact(place, manifest)

    def _part(self, name: str) -> Path:
        return self._parts / name.replace("/", "%")

    def _note(self, name: str) -> Path:
        return self._parts / f"{name.replace('/', '%')}.note.json"


def _write_whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    draft.write_bytes(content)
    flush(draft)
    draft.replace(path)
