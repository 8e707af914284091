"""A data file: its format and compression, by its name, and its bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar, get_args

import pyarrow as pa

from stages.fetch.problems import DatasetProblemError

Format = Literal["json", "csv", "parquet", "arrow", "text"]

FORMATS: dict[str, Format] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
BUFFER = 1 << 20  # bytes


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        path: where it is.
        format: how its rows are written.
        lines: json only: one row a line for certain; False: to be found out from the content.
        compression: None, or a codec of pyarrow.
        delimiter: csv only.
    """

    path: Path
    format: Format
    lines: bool = False
    compression: str | None = None
    delimiter: str = ","

    @property
    def reading(self) -> dict[str, str | bool | None]:
        """Return what, besides its bytes, decides which rows it gives."""
        reading: dict[str, str | bool | None] = {"format": self.format, "compression": self.compression}
        if self.format == "json":
            reading["lines"] = self.lines
        if self.format == "csv":
            reading["delimiter"] = self.delimiter
        return reading

    def open(self) -> BinaryIO:
        """Return the uncompressed bytes as a stream."""
        if self.compression is None:
            return self.path.open("rb", buffering=BUFFER)
        stream = pa.CompressedInputStream(pa.OSFile(str(self.path), "rb"), self.compression)
        return io.BufferedReader(stream, BUFFER)


Splits = dict[str, tuple[DataFile, ...]]
"""Name of a split -> its files, in the order of reading."""
Files = TypeVar("Files")


def format_of(path: Path) -> Format | None:
    """Return the format that a file's name tells, else None."""
    return FORMATS.get(_suffixes(path)[0])


def data_file(path: Path, ds_type: Format | None) -> DataFile:
    """Return the file with the format of its name, or with `ds_type`.

    Raises:
        DatasetProblemError: the name tells no format, and no `ds_type` is given.
    """
    suffix, compression = _suffixes(path)
    found = ds_type or FORMATS.get(suffix)
    if found is None:
        known = f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"
        rule = f"the name of {path.name} does not tell its format (known: {known})"
        raise DatasetProblemError("ds_type", rule, f"Set ds_type: {', '.join(get_args(Format))}.")
    lines = suffix in {".jsonl", ".ndjson"}
    return DataFile(path, found, lines, COMPRESSIONS.get(compression), "\t" if suffix == ".tsv" else ",")


def _suffixes(path: Path) -> tuple[str, str]:
    """Return (suffix that tells the format, suffix of the compression or ""), in small letters."""
    name = Path(path.name.lower())
    return (Path(name.stem).suffix, name.suffix) if name.suffix in COMPRESSIONS else (name.suffix, "")


def checked(names: list[str], splits: Mapping[str, Files]) -> Mapping[str, Files]:
    """Return `splits` if it has all of `names`.

    Raises:
        DatasetProblemError: it has not.
    """
    unknown = [name for name in names if name not in splits]
    if unknown:
        rule = f"there is no split {unknown[0]}; known: {', '.join(sorted(splits)) or 'none'}"
        raise DatasetProblemError("split", rule, "Set split to one of them.")
    return splits
