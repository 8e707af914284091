"""Where a data file is: on this machine, on the Hub, or behind a URL; what pins it; and how it is brought here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from stages.artifacts import FileDigests
from stages.fetch.problems import DatasetProblemError
from stages.remote import Downloads, RemoteObject
from stages.remote.explain import PlaceProblemError, explained


class FileOrigin(Protocol):
    """A file somewhere."""

    @property
    def name(self) -> str:
        """Return its last name, which tells the format."""

    @property
    def shown(self) -> str:
        """Return where it is, for people: without secrets."""

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """Return what identifies its content, JSON-ready."""

    def bring(self, stopped: Event | None = None) -> Path:
        """Return it as a file of this machine, downloading it if need be, until it is stopped; cheap if it is here."""

    def release(self) -> None:
        """Give up what was only here for the reading."""

    def changeable(self) -> Path | None:
        """Return the file that somebody may write to while it is read."""


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Return its last name."""
        return self.path.name

    @property
    def shown(self) -> str:
        """Return its path."""
        return str(self.path)

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """Return its digest."""
        return {"sha256": digests.sha256(self.path)}

    def bring(self, stopped: Event | None = None) -> Path:
        """Return its path."""
        return self.path

    def release(self) -> None:
        """Do nothing: it is not ours."""

    def changeable(self) -> Path | None:
        """Return its path."""
        return self.path


@dataclass(frozen=True)
class RemoteFile:
    """An object behind a URL."""

    item: RemoteObject
    downloads: Downloads
    _unpinned: list[tuple[Path, str]] = field(default_factory=list, compare=False)  # one download for key and rows

    @property
    def name(self) -> str:
        """Return the last part of its path."""
        return self.item.name

    @property
    def shown(self) -> str:
        """Return its URL without secrets."""
        return self.item.shown

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """Return its pin; of a file of which its server tells nothing, the digest of a download."""
        if self.item.pin is not None:
            return self.item.pin
        if not self._unpinned:
            with reading_errors(self.shown):
                self._unpinned.append(self.downloads.bring_unpinned(self.item))
        return {"sha256": self._unpinned[0][1]}

    def bring(self, stopped: Event | None = None) -> Path:
        """Return the downloaded object.

        Raises:
            TransientError: it changed, or its store does not answer.
            ConfigError: it may not be read any more.
        """
        if self._unpinned:
            return self._unpinned[0][0]
        with reading_errors(self.shown):
            return self.downloads.bring(self.item, stopped)

    def release(self) -> None:
        """Remove the downloaded copy."""
        self.downloads.release(self.item)

    def changeable(self) -> Path | None:
        """Return nothing: the copy is ours."""
        return None


@contextmanager
def reading_errors(shown: str) -> Iterator[None]:
    """Say what an object store's client raised, as a problem of the data set.

    Raises:
        DatasetProblemError: it is not there, or may not be read.
        TransientError: it changed while it was read, or the store does not answer.
    """
    try:
        with explained(shown):
            yield
    except PlaceProblemError as error:
        raise DatasetProblemError("path", error.rule, error.remedy) from None
