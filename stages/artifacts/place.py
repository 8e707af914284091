"""Where the files of a store lie: a folder, or a bucket (`bucket.py`). Names are relative POSIX paths."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from stages.artifacts.digests import FileDigests, sha256_file
from stages.artifacts.manifest import FileEntry

LOCKS = ".locks"
DRAFTS = ".drafts"
PROBES = ".probes"
TEMPORARY = ".tmp-"

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Stored:
    """A file of a place: its name, its size in bytes, and when it was written by the clock of the place."""

    name: str
    size: int
    modified: float


class Place(Protocol):
    """A place with whole files: a reader sees all bytes of one writing, or no file."""

    address: str
    """The place as people write it: a path or a URL."""
    here: Path
    """Where its files are read from on this machine: the place itself, or a cache of it."""
    lanes: int
    """How many files are worth moving at once."""
    is_remote: bool
    """Whether other machines see what is in it and not what is in `here`."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whatever was there."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file if there is none of that name; return whether it was written."""

    def put(self, source: Path, name: str, entry: FileEntry) -> None:
        """Make a local file, which does not change any more, the data file of that name, and verify it."""

    def bring(self, name: str, entry: FileEntry) -> Path:
        """Return where a data file can be read on this machine.

        Raises:
            DamagedArtifactError: it is missing, or its bytes are not those that were written.
        """

    def send(self, source: Path, name: str, entry: FileEntry) -> None:
        """Do as `put` for a file that is not to be read here."""

    def keep(self, name: str, content: bytes) -> None:
        """Make a small file readable here, beside the data files that were brought."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

    def clear(self, folder: str) -> None:
        """Remove every file below a folder."""

    def files(self, folder: str = "") -> list[Stored]:
        """Return every file below a folder."""

    def touch(self, name: str) -> None:
        """Make the time of a marker file that of now."""

    def now(self) -> float:
        """Return the time by the clock of `Stored.modified`."""

    def noticed(self, name: str) -> str | None:
        """Return the SHA-256 of a data file where it can be had without moving the file, else None."""

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file as it is read now; "" if it is gone."""

    def hold(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold a right that one has at a time; False if another has it and `wait` is False."""

    def taken(self) -> set[str]:
        """Return the rights that somebody holds now."""

    def confirm(self, name: str) -> None:
        """Make sure that a right is still held.

        Raises:
            TransientError: it was lost, and another may have it.
        """


def spread(place: Place, work: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """Return `work` of each item, in order, with as many at once as the place has lanes."""
    if place.lanes == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(place.lanes) as pool:
        return list(pool.map(work, items))


class FolderPlace:
    """A folder of this machine's file systems. A right is a lock that the kernel frees with its holder."""

    lanes = 1
    is_remote = False

    def __init__(self, root: Path, digests: FileDigests | None = None) -> None:
        self.here, self.address = root, str(root)
        self._digests = digests

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""
        try:
            return (self.here / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whatever was there."""
        with self._draft(content) as draft:
            self._parent(name)
            draft.replace(self.here / name)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file if there is none of that name; return whether it was written."""
        with self._draft(content) as draft:
            try:
                (self._parent(name) / Path(name).name).hardlink_to(draft)
            except FileExistsError:
                return False
        flush((self.here / name).parent)
        return True

    def put(self, source: Path, name: str, entry: FileEntry) -> None:
        """Link a file of this place under a second name."""
        final = self._parent(name) / Path(name).name
        final.unlink(missing_ok=True)
        final.hardlink_to(source)
        flush(final.parent)

    def send(self, source: Path, name: str, entry: FileEntry) -> None:
        """Do as `put`."""
        self.put(source, name, entry)

    def keep(self, name: str, content: bytes) -> None:
        """Do nothing: it is here."""

    def bring(self, name: str, entry: FileEntry) -> Path:
        """Return where a data file lies; whether it is whole was looked at when its artifact was found."""
        return self.here / name

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        (self.here / name).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        """Remove a folder."""
        shutil.rmtree(self.here / folder, ignore_errors=True)

    def files(self, folder: str = "") -> list[Stored]:
        """Return every file below a folder; what vanishes meanwhile is left out."""
        found = []
        for parent, _, names in os.walk(self.here / folder):
            for name in names:
                path = Path(parent, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found.append(Stored(path.relative_to(self.here).as_posix(), status.st_size, status.st_mtime))
        return found

    def touch(self, name: str) -> None:
        """Make the time of a marker file that of now."""
        (self._parent(name) / Path(name).name).touch()

    def now(self) -> float:
        """Return the time by this machine's clock."""
        return time.time()

    def noticed(self, name: str) -> str | None:
        """Return a file's SHA-256 if there is a memory of digests, so that it is read once."""
        return None if self._digests is None else self._digests.sha256(self.here / name)

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file as it is read now; "" if it is gone."""
        try:
            return sha256_file(self.here / name)
        except FileNotFoundError:
            return ""

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock that one process has at a time; False if another has it and `wait` is False."""
        with (self._parent(f"{LOCKS}/{name}") / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def taken(self) -> set[str]:
        """Return the locks that a living process holds."""
        return {name for name in (path.name for path in self._parent(f"{LOCKS}/-").iterdir()) if self._is_taken(name)}

    def _is_taken(self, name: str) -> bool:
        with self.hold(name, wait=False) as is_free:
            return not is_free

    def confirm(self, name: str) -> None:
        """Do nothing: a lock lasts as long as its holder."""

    def _parent(self, name: str) -> Path:
        parent = (self.here / name).parent
        parent.mkdir(parents=True, exist_ok=True)
        return parent

    @contextmanager
    def _draft(self, content: bytes) -> Iterator[Path]:
        """Give a file with that content, on the disk, that is taken away afterwards."""
        draft = self._parent(f"{DRAFTS}/-") / uuid.uuid4().hex
        try:
            draft.write_bytes(content)
            flush(draft)
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
