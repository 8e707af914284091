"""Files of remote stores on this machine: kept up to a limit, the least recently used artifact goes first."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PINS = ".pins"
PARTIAL = ".partial"
USED = ".used"
WORK = ".work"
LEFT_SECONDS = 86_400.0
"""Unfinished work that nobody has touched for so long is not continued on this machine."""


@dataclass(frozen=True)
class _Kept:
    folder: Path
    pin: Path
    bytes: int
    last_use: float


class Cache:
    """The folder with a folder for each remote store, `<root>/<store>/<stage>/<key>/`.

    An artifact whose files a living process has asked for is pinned, by a lock that the kernel frees with it.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._bytes: int | None = None  # not counted yet
        self._pinned: set[Path] = set()
        self._guard = threading.Lock()

    def pin(self, store: Path, artifact: str) -> None:
        """Keep an artifact of a store while this process lives, and note its use."""
        with self._guard:
            path = _pin(store, artifact)
            if path in self._pinned:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)  # open until the process ends
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._pinned.add(path)
        folder = store / artifact
        folder.mkdir(parents=True, exist_ok=True)
        (folder / USED).touch()

    def grown(self, count: int) -> None:
        """Hear that so many bytes came in, and make room if that is too much."""
        with self._guard:
            if self._bytes is None:
                self._bytes = sum(kept.bytes for kept in self._kept())
            else:
                self._bytes += count
            if self._bytes > self.limit:
                self._bytes = self._trim(self.limit)

    def empty(self) -> None:
        """Remove everything that is not in use: the disk is full."""
        with self._guard:
            self._bytes = self._trim(0)

    def _trim(self, limit: int) -> int:
        old = time.time() - LEFT_SECONDS
        for path in self.root.glob(f"*/{PARTIAL}/*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < old:
                    path.unlink()
        kept = sorted(self._kept(), key=lambda item: item.last_use)
        total = sum(item.bytes for item in kept)
        for item in kept:
            if total <= limit:
                break
            if self._remove(item):
                total -= item.bytes
        return total

    def _remove(self, item: _Kept) -> bool:
        if item.pin in self._pinned:
            return False
        item.pin.parent.mkdir(parents=True, exist_ok=True)
        with item.pin.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(item.folder, ignore_errors=True)
        return True

    def _kept(self) -> list[_Kept]:
        found = [self._look(store, folder) for store in self._stores() for folder in store.glob("[!.]*/[!.]*")]
        old = time.time() - LEFT_SECONDS
        left = [self._look(store, folder) for store in self._stores() for folder in store.glob(f"{WORK}/*/*")]
        return found + [item for item in left if item.last_use < old]

    def _stores(self) -> list[Path]:
        return [path for path in self.root.glob("*") if path.is_dir()]

    def _look(self, store: Path, folder: Path) -> _Kept:
        count, last_use = 0, 0.0
        for path in [folder, *folder.rglob("*")]:
            with suppress(FileNotFoundError):
                status = path.stat()
                count += status.st_size if path.is_file() else 0
                last_use = max(last_use, status.st_mtime)
        return _Kept(folder, _pin(store, f"{folder.parent.name}/{folder.name}"), count, last_use)


def _pin(store: Path, artifact: str) -> Path:
    return store / PINS / artifact.replace("/", "-")
