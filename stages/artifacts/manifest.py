"""What an artifact says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from stages.artifacts.digests import digest_of

MANIFEST = "manifest.json"
"""The file whose presence makes a folder an artifact; written last."""


class FileEntry(BaseModel):
    """A data file: relative POSIX path, size in bytes, SHA-256 (64 hex digits).

    A volatile file (a log, a timing) may differ between two productions of one key and is left out of the digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str
    volatile: bool = False


class Manifest(BaseModel):
    """The record of one artifact.

    Attributes:
        manifest_version: version of this record's own layout.
        stage: name of the stage that produced it.
        key: SHA-256 of the canonical JSON of `inputs`.
        inputs: everything that determines the result, in clear, so that a plan can say why a key differs.
        files: the data files.
        facts: what readers may rely on besides the files (counts, resolved settings); deterministic.
        parents: upstream stage name -> key.
        volatile: what may differ between two productions of one key: timings in seconds, versions, host facts.
        sha256: of the canonical JSON of all the rest, so that a flipped bit in it is noticed; None in old records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: Literal[1] = 1
    stage: str
    key: str
    inputs: dict[str, Any]
    files: tuple[FileEntry, ...]
    facts: dict[str, Any]
    parents: dict[str, str]
    volatile: dict[str, Any]
    sha256: str | None = None

    def sealed(self) -> Manifest:
        """Return the manifest with its own digest."""
        return self.model_copy(update={"sha256": self._own_digest()})

    @property
    def is_whole(self) -> bool:
        """Return whether the record is the one that was written."""
        return self.sha256 in (None, self._own_digest())

    def _own_digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"sha256"}))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the artifact's content: its files without the volatile ones, and its facts."""
        files = sorted((entry.path, entry.size, entry.sha256) for entry in self.files if not entry.volatile)
        return digest_of({"files": files, "facts": self.facts})
