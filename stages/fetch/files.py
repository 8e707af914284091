"""A data file: its format and compression, by its name, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, Literal, TypeVar, get_args

from stages.fetch.origins import FileOrigin
from stages.fetch.problems import DatasetProblemError
from stages.fetch.unpacking import Unpacking

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
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        origin: where it is, and how it comes to this machine.
        format: how its rows are written.
        lines: json only: one row a line for certain; False: to be found out from the content.
        compression: None, or a codec.
        delimiter: csv only.
        most_ratio: bytes that a byte of the compressed file may become.
    """

    origin: FileOrigin
    format: Format
    lines: bool = False
    compression: str | None = None
    delimiter: str = ","
    most_ratio: float = 200.0

    @property
    def shown(self) -> str:
        """Return where it is, for people."""
        return self.origin.shown

    @property
    def reading(self) -> dict[str, str | bool | None]:
        """Return what, besides its bytes, decides which rows it gives."""
        reading: dict[str, str | bool | None] = {"format": self.format, "compression": self.compression}
        if self.format == "json":
            reading["lines"] = self.lines
        if self.format == "csv":
            reading["delimiter"] = self.delimiter
        return reading

    @property
    def unpacking(self) -> Unpacking:
        """Return how it is unpacked, and to how much."""
        return Unpacking(self.compression, self.most_ratio)

    def open(self) -> BinaryIO:
        """Return the uncompressed bytes as a stream, of no more bytes than `most_ratio` allows."""
        return self.unpacking.open(self.origin.bring())

    def whole(self) -> AbstractContextManager[Path]:
        """Give the uncompressed bytes as a file, for formats that are read from their end."""
        return self.unpacking.whole(self.origin.bring())


Splits = dict[str, tuple[DataFile, ...]]
"""Name of a split -> its files, in the order of reading."""
Files = TypeVar("Files")


@dataclass(frozen=True)
class Reading:
    """What the configuration says about all files of a data set: their format, and how far they may unfold."""

    ds_type: Format | None
    most_ratio: float


def format_of(name: str | PurePath) -> Format | None:
    """Return the format that a file's name tells, else None."""
    return FORMATS.get(_suffixes(name)[0])


def data_file(origin: FileOrigin, reading: Reading) -> DataFile:
    """Return the file with the format of its name, or with `ds_type`.

    Raises:
        DatasetProblemError: the name tells no format, and no `ds_type` is given.
    """
    suffix, compression = _suffixes(origin.name)
    found = reading.ds_type or FORMATS.get(suffix)
    if found is None:
        known = f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"
        rule = f"the name of {origin.name} does not tell its format (known: {known})"
        raise DatasetProblemError("ds_type", rule, f"Set ds_type: {', '.join(get_args(Format))}.")
    lines = suffix in {".jsonl", ".ndjson"}
    delimiter = "\t" if suffix == ".tsv" else ","
    return DataFile(origin, found, lines, COMPRESSIONS.get(compression), delimiter, reading.most_ratio)


def _suffixes(path: str | PurePath) -> tuple[str, str]:
    """Return (suffix that tells the format, suffix of the compression or ""), in small letters."""
    name = PurePosixPath(PurePosixPath(path).name.lower())
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
