"""A folder with data: its files by name, the same for one of this machine and one behind a URL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stages.fetch.origins import FileOrigin, LocalFile, RemoteFile, reading_errors
from stages.fetch.problems import DatasetProblemError
from stages.remote import Downloads, RemoteFolder
from stages.remote.objects import leaves_folder

WILD = re.compile(r"[*?\[]")


class Folder(Protocol):
    """A folder."""

    @property
    def shown(self) -> str:
        """Return where it is, for people: without secrets."""

    def names(self) -> list[str]:
        """Return the names of all files below, relative, sorted."""

    def matches(self, pattern: str) -> list[str]:
        """Return the names that a pattern means, sorted; none if there are none."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""

    def files(self, names: Iterable[str]) -> tuple[FileOrigin, ...]:
        """Return files by their names, in the same order."""


def inside(folder: Folder, name: str) -> str:
    """Return a name that data (a list of files, a card) gives, if it stays in its folder.

    Raises:
        DatasetProblemError: it does not.
    """
    if leaves_folder(name):
        rule = f"a file of {folder.shown} names {name!r}, which is outside of that folder"
        raise DatasetProblemError("path", rule, "Do not trust this data.")
    return name


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path

    @property
    def shown(self) -> str:
        """Return its path."""
        return str(self.root)

    def names(self) -> list[str]:
        """Return the names of all files below, relative, sorted."""
        return [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*")) if path.is_file()]

    def matches(self, pattern: str) -> list[str]:
        """Return the names that a pattern means, sorted."""
        if not WILD.search(pattern):
            return [pattern] if (self.root / pattern).is_file() else []
        return [path.relative_to(self.root).as_posix() for path in sorted(self.root.glob(pattern)) if path.is_file()]

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def files(self, names: Iterable[str]) -> tuple[FileOrigin, ...]:
        """Return files by their names."""
        return tuple(LocalFile(self.root / name) for name in names)


@dataclass(frozen=True)
class UrlFolder:
    """A folder behind a URL."""

    place: RemoteFolder

    @property
    def shown(self) -> str:
        """Return its URL without secrets."""
        return self.place.shown

    def names(self) -> list[str]:
        """Return the names of all objects below, relative, sorted."""
        with reading_errors(self.shown):
            return self.place.names()

    def matches(self, pattern: str) -> list[str]:
        """Return the names that a pattern means, sorted."""
        with reading_errors(self.shown):
            return self.place.matches(pattern) if WILD.search(pattern) else [pattern]

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, None if there is none."""
        with reading_errors(f"{self.shown}/{name}"):
            return self.place.read(name)

    def files(self, names: Iterable[str]) -> tuple[FileOrigin, ...]:
        """Return objects by their names, each pinned."""
        names = list(names)
        shown = f"{self.shown}/{names[0]}" if len(names) == 1 else self.shown
        with reading_errors(shown):
            downloads = Downloads.of_this_user()
            return tuple(RemoteFile(item, downloads) for item in self.place.objects(names))
