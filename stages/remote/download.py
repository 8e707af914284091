"""Bringing objects to this machine: each once, whole or not at all, continued where the last try was.

<cache>/sft-flow/downloads/<digest of the pin>        a whole object, checked
<cache>/sft-flow/downloads/<digest of the pin>.part   as far as it has come; who writes to it holds its lock
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from stages.artifacts import digest_of, sha256_file
from stages.remote.failures import DamagedError
from stages.remote.objects import RemoteObject, check_unchanged
from stages.remote.patience import FINDING, READING, Patience
from stages.remote.transfer import receive, states_checksum

KEPT_SECONDS = 7 * 86_400.0  # how long what a run left is kept for its next try
DAMAGED_TRIES = 3


class StoppedError(Exception):
    """Nobody waits for the download any more."""


def cache_folder() -> Path:
    """Return this user's cache folder of the project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft-flow"


@dataclass(frozen=True)
class Downloads:
    """A folder with downloaded objects, one file each, named by content."""

    folder: Path
    patience: Patience = READING

    @classmethod
    def of_this_user(cls) -> Downloads:
        """Return the downloads in the user's cache folder."""
        return cls(cache_folder() / "downloads")

    def place(self, item: RemoteObject) -> Path:
        """Return where an object lies once it is here."""
        return self.folder / digest_of(item.pin or {"url": item.path})

    def bring(self, item: RemoteObject, stopped: Event | None = None) -> Path:
        """Return an object as a local file; downloads what is missing of it.

        Raises:
            StoppedError: `stopped` was set; a later call continues.
            ChangedError: it is not the pinned one any more.
            Exception: what the store's client raised last, if asking again did not help.
        """
        final = self.place(item)
        if item.pin is not None and final.is_file():
            os.utime(final)  # in use: not yet to be swept away
            return final
        fetch_to(final, item, self.patience, stopped)
        return final

    def bring_unpinned(self, item: RemoteObject) -> tuple[Path, str]:
        """Download an object of which the server tells nothing but its bytes; return where it is and its SHA-256."""
        draft = self.bring(item)
        sha256 = sha256_file(draft)
        final = self.folder / sha256
        draft.replace(final)
        return final, sha256

    def release(self, item: RemoteObject) -> None:
        """Remove an object that is not needed any more."""
        self.place(item).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what earlier runs left and nobody has used for a week."""
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            try:
                if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.unlink()
            except OSError:  # another run sweeps too
                continue


def fetch_to(final: Path, item: RemoteObject, patience: Patience, stopped: Event | None = None) -> None:
    """Make `final` the object; one process at a time, and the others find it there. Raises as `Downloads.bring`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f"{final.name}.part")
    with _locked(part) as file:
        if item.pin is not None and final.is_file():  # another process was faster
            part.unlink(missing_ok=True)
            return
        for remaining in reversed(range(DAMAGED_TRIES)):
            try:
                _continue(file, item, patience, stopped or Event())
                break
            except DamagedError:
                file.truncate(0)
                if not remaining:
                    raise
        os.fsync(file.fileno())
        part.replace(final)


def _continue(file: Any, item: RemoteObject, patience: Patience, stopped: Event) -> None:
    """Receive what is missing of an object, and check the whole."""

    def at() -> int:
        return int(file.seek(0, os.SEEK_END))

    def write(block: bytes) -> None:
        if stopped.is_set():
            raise StoppedError
        file.write(block)

    def attempt() -> None:
        too_long = item.size is not None and at() > item.size
        if too_long or not item.guard:  # without a guard nothing would notice that the rest is of another object
            file.truncate(0)
        if item.size is None or at() < item.size:
            receive(item.filesystem, item.path, at(), item.size, item.guard, write)

    patience.call(attempt, at)
    _check(file, item)


def _check(file: Any, item: RemoteObject) -> None:
    """Compare the checksum that the store states, if it states one."""
    if item.pin is not None and not item.guard:
        check_unchanged(item)
    if item.checksum is None:
        return
    algorithm, expected = item.checksum
    file.seek(0)
    found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected and FINDING.call(lambda: states_checksum(item.filesystem, item.path)):
        check_unchanged(item)
        raise DamagedError(f"its {algorithm} is {found}, and the store states {expected}")


@contextmanager
def _locked(part: Path) -> Iterator[Any]:
    """Open a partial file for appending and hold its lock; wait while another process has it."""
    while True:
        file = part.open("a+b", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            same = part.exists() and part.stat().st_ino == os.fstat(file.fileno()).st_ino
            if same:
                yield file
                return
        finally:
            file.close()  # frees the lock; it was renamed or removed while we waited: look again
