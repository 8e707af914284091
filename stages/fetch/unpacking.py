"""Compressed files: unpacked as a stream that ends where a file unfolds to more than can be meant."""

from __future__ import annotations

import io
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

BUFFER = 1 << 20  # bytes
ALWAYS_ALLOWED = 64 << 20  # bytes; a small file of many equal rows packs well and harms nobody


class UnfoldsTooFarError(ValueError):
    """A compressed file becomes more bytes than it may."""


@dataclass(frozen=True)
class Unpacking:
    """How a file is unpacked: None or a codec, and the bytes that one compressed byte may become."""

    codec: str | None
    most_ratio: float

    def open(self, path: Path) -> BinaryIO:
        """Return the uncompressed bytes of a file as a stream.

        Reading raises `UnfoldsTooFarError` where they are too many.
        """
        if self.codec is None:
            return path.open("rb", buffering=BUFFER)
        return io.BufferedReader(_Bounded(_unpacked(path, self.codec), partial(self.check, path)), BUFFER)

    def check(self, path: Path, count: int) -> None:
        """Make sure that a file may become so many bytes.

        Raises:
            UnfoldsTooFarError: it may not.
        """
        most = max(ALWAYS_ALLOWED, int(self.most_ratio * path.stat().st_size))
        if count > most:
            raise UnfoldsTooFarError(
                f"it unfolds to more than {most:,} bytes (max_decompression_ratio: {self.most_ratio:g}), as files do "
                "that are made to fill memory and disks; if you trust it, raise max_decompression_ratio of the data set"
            )

    @contextmanager
    def whole(self, path: Path) -> Iterator[Path]:
        """Give an uncompressed file, for formats that are read from their end; a copy goes again."""
        if self.codec is None:
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="sft-unpacked-") as copy:
            with self.open(path) as stream:
                shutil.copyfileobj(stream, copy, BUFFER)
            copy.flush()
            yield Path(copy.name)


def _unpacked(path: Path, codec: str) -> Any:
    if codec == "xz":
        return lzma.open(path, "rb")
    return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), codec)


class _Bounded(io.RawIOBase):
    """Passes a stream on; `check` hears how many bytes it was so far, and raises where they are too many."""

    def __init__(self, stream: Any, check: Callable[[int], None]) -> None:
        self._stream, self._check, self._passed = stream, check, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into a buffer."""
        block = self._stream.read(min(len(buffer), BUFFER))
        self._passed += len(block)
        self._check(self._passed)
        cast("memoryview", buffer)[: len(block)] = block
        return len(block)

    def close(self) -> None:
        """Close both."""
        if not self.closed:
            self._stream.close()
        super().close()
