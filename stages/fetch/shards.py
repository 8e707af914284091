"""Shards of raw rows: Parquet files with a column `row`, the JSON text of each row.

Where rows were drawn, a column `number` holds their numbers in the data set; else the facts tell that of the first.
Where a shard ends is decided by its own rows, so that a data set that grew, or of which a row changed, has the same
shards everywhere else, and what was made of those can be used again (`stages.tokenize.earlier`):

    before   |a a a a a|b b b b|c c c c c c|
    after    |a a a a a|b b x b b|c c c c c c|d d
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet

from stages.artifacts import Artifact, ArtifactWriter
from stages.errors import TransientError
from stages.fetch.readers import Place

SHARD_BYTES = 8 << 20
"""Raw text of a shard, on average: at least half of it, at most twice as much and a row."""

FILES = "files.jsonl"
"""Which row each file of the data begins with: `{"dataset", "row", "path"}`."""
SHARD_SCHEMA = pa.schema([("row", pa.large_binary())])
COMPRESSION_LEVEL = 1  # zstd


@dataclass(frozen=True)
class Watch:
    """Notices when somebody writes to files that are being read."""

    stamps: dict[Path, tuple[int, ...]]

    @classmethod
    def over(cls, paths: Iterable[Path]) -> Watch:
        """Begin to watch."""
        return cls({path: _stamp(path) for path in paths})

    def check(self) -> None:
        """Do nothing if all files are as they were.

        Raises:
            TransientError: one is not.
        """
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise TransientError(f"{path} changed while it was read. Start again when it is complete.")


@dataclass
class Shards:
    """Writes the shards of one data set.

    Attributes:
        dataset: its position in `datasets`.
        number: of the next shard.
        watch: over the files that the rows come from. A shard that is kept for a later try must be of the content that
            the key names, so it is finished only after the check.
        files: (number of its first row that was read, name) of each file so far.
    """

    dataset: int
    number: int
    writer: ArtifactWriter
    watch: Watch
    files: list[tuple[int, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name of the next shard."""
        return f"{self.dataset:02d}/{self.number:05d}.parquet"

    def finished(self) -> tuple[dict[str, Any], Place] | None:
        """Return the facts of the next shard and the place after it, if an earlier try finished it, and go on."""
        notes = self.writer.finished(self.name)
        if notes is None:
            return None
        self.number += 1
        self.files += ((row, name) for row, name in notes["files"])
        number, row = notes["next"]
        return notes["facts"], (number, row)

    def write(
        self,
        texts: list[bytes],
        numbers: range | npt.NDArray[np.int64],
        files: list[tuple[int, str]],
        following: Place = (0, 0),
    ) -> dict[str, Any]:
        """Write rows with their numbers as the next shard and return its facts.

        Args:
            texts: the rows.
            numbers: their numbers in the data set.
            files: (number of the first row, name) of each file that began with them.
            following: where a later try goes on.
        """
        facts = {"file": self.name, "first_row": int(numbers[0]), "rows": len(texts), "bytes": sum(map(len, texts))}
        with self.writer.create(self.name) as draft:
            write_rows(draft.path, texts, None if isinstance(numbers, range) else numbers)
            self.watch.check()
            draft.notes.update(facts=facts, next=following, files=files)
        self.number += 1
        self.files += files
        return facts


def files_of(fetched: Artifact) -> dict[int, list[tuple[int, str]]]:
    """Return data set -> (number of its first row, name) of each of its files, rows rising."""
    files: dict[int, list[tuple[int, str]]] = {}
    if any(entry.path == FILES for entry in fetched.manifest.files):
        for line in fetched.path(FILES).read_bytes().splitlines():
            file = orjson.loads(line)
            files.setdefault(file["dataset"], []).append((file["row"], file["path"]))
    return {dataset: sorted(found) for dataset, found in files.items()}


def file_of_row(files: list[tuple[int, str]], row: int) -> str | None:
    """Return the name of the file that holds a row, None if it is not known."""
    at = bisect_right(files, row, key=lambda file: file[0])
    return files[at - 1][1] if at else None


def take(rows: Iterator[bytes]) -> list[bytes]:
    """Return the rows of one shard: up to the first row behind its least size that ends a shard, or its most size."""
    texts, size, least, most = [], 0, SHARD_BYTES // 2, SHARD_BYTES * 2
    for row in rows:
        texts.append(row)
        size += len(row)
        if size >= most or (size >= least and _ends_shard(row)):
            break
    return texts


def _ends_shard(row: bytes) -> bool:
    """Return whether a row is the last of its shard, by its bytes alone: each byte ends it with the same chance."""
    return zlib.crc32(row) * (SHARD_BYTES // 2) < len(row) << 32


def write_rows(path: Path, texts: list[bytes], numbers: npt.NDArray[np.int64] | None = None) -> None:
    """Write rows as one row group; with their `numbers` where these do not follow each other."""
    table = pa.Table.from_arrays([pa.array(texts, SHARD_SCHEMA.field("row").type)], schema=SHARD_SCHEMA)
    if numbers is not None:
        table = table.append_column("number", pa.array(numbers))
    pa.parquet.write_table(
        table,
        path,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=False,  # every row is different, and its statistics would be whole rows
        write_statistics=False,
        row_group_size=len(texts),
    )


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
