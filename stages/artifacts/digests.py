"""SHA-256 of files and of canonical JSON, and a memory of file digests between runs."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import orjson

RACY_SECONDS = 2.0  # a file changed this shortly before it was hashed may change again within one clock tick


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of `value`: sorted keys, no white space, UTF-8.

    >>> canonical_json({"b": [1, 2.5], "a": None})
    b'{"a":null,"b":[1,2.5]}'
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest_of(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """Digests of files, remembered by path, inode, size and both time stamps.

    A plan over a 16 GB base model must not read 16 GB. As git does with its index, a digest is remembered only if the
    file had been left alone for a while when it was hashed.
    """

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(database, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous = OFF")  # what is lost in a crash is computed again
        self._connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")

    @classmethod
    def of_this_user(cls) -> FileDigests:
        """Open the memory in the user's cache folder (`$XDG_CACHE_HOME/sft-flow`, `~/.cache/sft-flow`)."""
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft-flow" / "digests.sqlite")

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, from memory where the file is unchanged."""
        path = path.resolve()
        stamp = _stamp(path)
        known = self._connection.execute("SELECT stamp, sha256 FROM digests WHERE path = ?", (str(path),)).fetchone()
        if known and known[0] == stamp:
            return str(known[1])
        sha256 = sha256_file(path)
        settled = time.time() - max(path.stat().st_mtime, path.stat().st_ctime) > RACY_SECONDS
        if settled and _stamp(path) == stamp:
            self._connection.execute("REPLACE INTO digests VALUES (?, ?, ?)", (str(path), stamp, sha256))
        return sha256


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
