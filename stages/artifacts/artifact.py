"""A complete artifact, and how its files are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts.manifest import MANIFEST, FileEntry, Manifest
from stages.artifacts.place import FolderPlace, Place, spread

READS = 2
"""A manifest that is not whole is read again: its bytes may have been changed on their way."""


@dataclass(frozen=True)
class Artifact:
    """A complete artifact. Its files are brought to this machine when they are asked for, not before."""

    place: Place
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
    def name(self) -> str:
        """Return its folder in the store, `train/5c1f...`."""
        return f"{self.stage}/{self.key}"

    @property
    def address(self) -> str:
        """Return where it is, as people write it: a path or a URL."""
        return f"{self.place.address}/{self.name}"

    @property
    def digest(self) -> str:
        """Return the digest of the content: what a downstream key is made of."""
        return self.manifest.digest

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the producer stated about the content."""
        return self.manifest.facts

    @property
    def folder(self) -> Path:
        """Return the folder of this machine with all its files.

        Raises:
            DamagedArtifactError: a file is missing, or its bytes are not those that were written.
        """
        self._bring(self.manifest.files)
        self.place.keep(f"{self.name}/{MANIFEST}", self.manifest.model_dump_json().encode())
        return self.place.here / self.name

    def path(self, name: str) -> Path:
        """Return where the data file `name`, or all files of the folder `name`, can be read on this machine.

        Raises:
            DamagedArtifactError: as `folder`.
        """
        inside = f"{name.rstrip('/')}/"
        self._bring([entry for entry in self.manifest.files if f"{entry.path}/".startswith(inside)])
        return self.place.here / self.name / name

    def damaged(self, sha256: Callable[[Path], str]) -> list[str]:
        """Return a sentence for each file that is missing or damaged on this machine.

        Args:
            sha256: how to get a file's digest.
        """
        folder = self.place.here / self.name
        here = {entry.path: folder / entry.path for entry in self.manifest.files}
        sizes = {name: path.stat().st_size for name, path in here.items() if path.is_file()}
        return damage(self.manifest, str(folder), sizes, lambda name: sha256(here[name]))

    def _bring(self, entries: list[FileEntry] | tuple[FileEntry, ...]) -> None:
        spread(self.place, lambda entry: self.place.bring(f"{self.name}/{entry.path}", entry), entries)


def damage(manifest: Manifest, folder: str, sizes: dict[str, int], sha256: Callable[[str], str | None]) -> list[str]:
    """Return a sentence for each missing or damaged file of an artifact.

    Args:
        manifest: what should be there.
        folder: where, for the sentences.
        sizes: path -> bytes of what is there.
        sha256: path -> digest of what is there; None where that is not known.
    """
    found = []
    for entry in manifest.files:
        size, path = sizes.get(entry.path), f"{folder}/{entry.path}"
        if size is None:
            found.append(f"{path}: missing")
        elif size != entry.size:
            found.append(f"{path}: {size} bytes instead of {entry.size}")
        elif sha256(entry.path) not in (None, entry.sha256):
            found.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
    return found


def read_manifest(place: Place, folder: str) -> Artifact | None:
    """Return the artifact in a folder of a place, or None if there is no whole manifest."""
    for _ in range(READS):
        content = place.read(f"{folder}/{MANIFEST}")
        if content is None:
            return None
        try:
            manifest = Manifest.model_validate_json(content)
        except ValueError:
            continue
        if manifest.is_whole:
            return Artifact(place, manifest)
    return None


def manifests_of(place: Place, stage: str = "") -> list[str]:
    """Return the folders with a manifest, by stage and then by its time, oldest first."""
    found = []
    for file in place.files(stage):
        folder, _, name = file.name.rpartition("/")
        if name == MANIFEST and folder.count("/") == 1 and not folder.startswith("."):
            found.append((folder.partition("/")[0], file.modified, folder))
    return [folder for _, _, folder in sorted(found)]


def newest_first(place: Place, stage: str) -> Iterator[Artifact]:
    """Yield the complete artifacts of a stage, newest first, each read when it is asked for."""
    for folder in reversed(manifests_of(place, stage)):
        artifact = read_manifest(place, folder)
        if artifact is not None:
            yield artifact


def read_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder `<store>/<stage>/<key>` of this machine, or None."""
    return read_manifest(FolderPlace(folder.parent.parent), f"{folder.parent.name}/{folder.name}")
