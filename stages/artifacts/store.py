"""A store of artifacts in a place: a folder, or a bucket of an object store.

    <store>/<stage>/<key>/manifest.json      written last, by an exclusive create: without it there is no artifact
    <store>/<stage>/<key>/<data files>
    <store>/<stage>/<key>/.used              its time is that of the last use
    <store>/.work/<stage>/<key>/             what a stage leaves for its own next try: finished shards (`.parts/`),
                                             training checkpoints
    <store>/.locks/<stage>-<key>             held while an artifact is being made
    <store>/.newest/<stage>                  the key that was committed last, for `plan` to compare with
    <store>/.runs/<name>.json                what the last run with an output folder is made of: garbage collection
                                             keeps it

A data file is written under a temporary name among the parts, flushed to disk, and then given its name, so that a part
with its name is whole. A commit puts the parts into the artifact's folder and the manifest last of all. Nothing
inside holds an absolute path: a copied tree is a valid store, between folders and buckets too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts.artifact import Artifact, damage, manifests_of, newest_first, read_manifest
from stages.artifacts.digests import FileDigests, digest_of
from stages.artifacts.manifest import MANIFEST
from stages.artifacts.place import FolderPlace, Place, spread
from stages.artifacts.writer import NEWEST, ArtifactWriter

RUNS = ".runs"
USED = ".used"
USE_NOTED_SECONDS = 3600.0
"""A use is noted once in this time: collection counts in days."""


class Store:
    """The artifacts of a place.

    In a folder, with a memory of file digests, `find` compares every byte on the first use on a machine, and again
    whenever a file has been touched since; without one it looks at presence and size. In a bucket it looks at presence
    and size, and the bytes are compared when they are brought here.
    """

    def __init__(self, place: Place | Path, digests: FileDigests | None = None) -> None:
        self.place: Place = FolderPlace(place, digests) if isinstance(place, Path) else place
        self._noted: dict[str, float] = {}

    @property
    def root(self) -> Path:
        """Return the folder of this machine where its artifacts are read from and made."""
        return self.place.here

    def read(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact of a key, damaged or not, or None if there is no manifest."""
        return read_manifest(self.place, f"{stage}/{key}")

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the artifact of a key, or None if it is not there or a file of it is missing or damaged."""
        artifact = self.read(stage, key)
        return artifact if artifact is not None and not self.damage(artifact) else None

    def damage(self, artifact: Artifact) -> list[str]:
        """Return a sentence for each missing or damaged file of an artifact."""
        sizes = {file.name.removeprefix(f"{artifact.name}/"): file.size for file in self.place.files(artifact.name)}
        known = self.place.noticed
        return damage(artifact.manifest, artifact.address, sizes, lambda path: known(f"{artifact.name}/{path}"))

    @contextmanager
    def writer(
        self, stage: str, inputs: dict[str, Any], parents: dict[str, str], *, anew: bool = False
    ) -> Iterator[ArtifactWriter]:
        """Give a writer for the artifact that `inputs` determine. Hold `lock` around it.

        With `anew` nothing of other artifacts is used for it.
        """
        key = digest_of(inputs)
        if self.place.read(f"{stage}/{key}/{MANIFEST}") is not None:  # damaged, or to be made again: nobody must
            self.place.remove(f"{stage}/{key}/{MANIFEST}")  # see it while it is rebuilt
        yield ArtifactWriter(self.place, stage, key, inputs, parents, anew=anew)

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the right to make one artifact; wait while another process holds it."""
        with self.place.hold(f"{stage}-{key}"):
            yield

    def note_use(self, artifact: Artifact) -> None:
        """Note that an artifact was used now, so that collection leaves it alone."""
        if time.monotonic() - self._noted.get(artifact.name, -USE_NOTED_SECONDS) >= USE_NOTED_SECONDS:
            self.place.touch(f"{artifact.name}/{USED}")
            self._noted[artifact.name] = time.monotonic()

    def note_run(self, output_dir: str, artifacts: Iterable[Artifact]) -> None:
        """Note what the run with an output folder is made of, and that it was used now."""
        used = list(artifacts)
        spread(self.place, self.note_use, used)
        record = {"output_dir": output_dir, "artifacts": {artifact.stage: artifact.key for artifact in used}}
        self.place.write(run_record(output_dir), orjson.dumps(record))

    def newest(self, stage: str) -> Artifact | None:
        """Return the artifact of a stage that was committed last, found without looking through all of them."""
        key = self.place.read(f"{NEWEST}/{stage}")
        artifact = self.read(stage, key.decode()) if key is not None else None
        if artifact is not None:
            return artifact
        return next(newest_first(self.place, stage), None)

    def artifacts(self, stage: str | None = None) -> Iterator[Artifact]:
        """Yield every complete artifact, damaged ones included, oldest first within a stage."""
        folders = manifests_of(self.place, stage or "")
        for artifact in spread(self.place, lambda folder: read_manifest(self.place, folder), folders):
            if artifact is not None:
                yield artifact


def run_record(output_dir: str) -> str:
    """Return the name of the record of the run with an output folder."""
    return f"{RUNS}/{digest_of(output_dir)[:16]}.json"
