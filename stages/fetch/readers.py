"""From data files to rows: the JSON text of each row, in the order of the file, in constant memory."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet

from stages.errors import DataError
from stages.fetch.ahead import Ahead
from stages.fetch.files import DataFile
from stages.fetch.json_rows import json_rows, line_rows

BATCH = 1024  # rows that exist as Python objects at one time
ARROW_FILE = b"ARROW1"  # how an IPC file begins; an IPC stream (as `datasets` saves it) does not
LONGEST_CSV_VALUE = 1 << 30  # characters
PARQUET_BUFFER = 1 << 20  # bytes; without it a column of a row group is read at once

Place = tuple[int, int]
"""Number of a file, and number of a row in it."""


def count_rows(files: Sequence[DataFile]) -> int:
    """Return the rows of all files. Raises as `Rows`."""
    with Ahead(files) as here:
        return sum(_count(file) for file in here.from_number(0))


class Rows:
    """The rows of files, one after the other, from a place on.

    A row is the JSON text of it. Files that are not on this machine are brought while earlier ones are read.
    """

    def __init__(self, files: Sequence[DataFile], place: Place, most: int | None, *, release: bool) -> None:
        """Begin at a place.

        Args:
            files: in their order.
            place: (number of the file, row in it) of the first row.
            most: rows to give; None: all.
            release: whether a file that was read is given up.
        """
        self._files, self._start, self._most, self._release = files, place, most, release
        self._given = 0
        self._begins: list[tuple[int, Place]] = [(0, place)]  # (rows given before it, place)

    def __iter__(self) -> Generator[bytes]:
        """Yield the rows.

        Raises:
            DataError: a file cannot be read as what it is said to be.
        """
        number, skip = self._start
        with Ahead(self._files) as here:
            for file in here.from_number(number):
                with closing(_read(file, skip)) as rows:
                    left = None if self._most is None else self._most - self._given
                    for row in islice(rows, left):
                        self._given += 1
                        yield row
                if self._given == self._most:
                    return
                if self._release:
                    file.origin.release()
                number, skip = number + 1, 0
                self._begins.append((self._given, (number, 0)))

    def files_after(self, given: int, before: int) -> list[tuple[int, DataFile]]:
        """Return (rows given before it, file) of each file that begins with a row from `given` to `before`."""
        begins = [(count, place[0]) for count, place in self._begins if given <= count < before]
        return [(count, self._files[number]) for count, number in begins if number < len(self._files)]

    def place_after(self, given: int) -> Place:
        """Return the place of the row that follows the first `given` ones."""
        before, (number, row) = next(begin for begin in reversed(self._begins) if begin[0] <= given)
        return number, row + given - before


def place_of(files: Sequence[DataFile], row: int) -> Place:
    """Return the place of a row that is counted through all files."""
    if row == 0:
        return 0, 0
    with Ahead(files) as here:
        for number, file in enumerate(here.from_number(0)):
            rows = _count(file)
            if row < rows:
                return number, row
            row -= rows
    return len(files), row


def _count(file: DataFile) -> int:
    if file.format == "parquet":
        with _named(file), file.whole() as path, pa.parquet.ParquetFile(path) as parquet:
            return int(parquet.metadata.num_rows)
    if file.format == "arrow":
        with _named(file):
            return sum(batch.num_rows for batch in _batches(file))
    return sum(1 for _ in _read(file, 0))


def _read(file: DataFile, skip: int) -> Generator[bytes]:
    with _named(file):
        if file.format in ("arrow", "parquet"):
            yield from _rows_of_batches(_batches(file), skip)
            return
        with file.open() as stream:
            yield from islice(_texts(file, stream), skip, None)


def _texts(file: DataFile, stream: BinaryIO) -> Iterator[bytes]:
    if file.format == "csv":
        return _csv_rows(stream, file.delimiter)
    if file.format == "text":
        return map(_text_row, line_rows(stream))
    return line_rows(stream) if file.lines else json_rows(stream)


@contextmanager
def _named(file: DataFile) -> Iterator[None]:
    """Say which file cannot be read, and what to do."""
    try:
        yield
    except (ValueError, OSError, EOFError, KeyError, pa.ArrowException, csv.Error) as error:
        raise DataError(
            f"{file.shown}: cannot be read as {file.format}: {error}. Repair the file, or set ds_type of the data "
            "set if it is something else."
        ) from error


def _batches(file: DataFile) -> Iterator[pa.RecordBatch]:
    if file.format == "arrow":
        yield from _arrow_batches(file)
    else:
        with file.whole() as path, pa.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER) as parquet:
            groups = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
            file.unpacking.check(path, sum(group.total_byte_size for group in groups))  # its pages are compressed
            yield from parquet.iter_batches(BATCH)


def _arrow_batches(file: DataFile) -> Iterator[pa.RecordBatch]:
    with file.whole() as path, pa.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE)) == ARROW_FILE:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)


def _csv_rows(stream: BinaryIO, delimiter: str) -> Iterator[bytes]:
    """Yield the rows of a CSV file, every value as the text that stands there."""
    csv.field_size_limit(LONGEST_CSV_VALUE)  # the module's own limit, 128 KiB, is shorter than a long conversation
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValueError(f"its first line names the column {twice[0]!r} more than once")
        for values in reader:
            if values and len(values) != len(header):
                raise ValueError(
                    f"line {reader.line_num}: {len(values)} values, expected {len(header)} as in the first line"
                )
            if values:
                yield orjson.dumps(dict(zip(header, values, strict=True)))


def _text_row(line: bytes) -> bytes:
    """Return a line of a text file as a row; one that is not UTF-8 as it is, for the next stage to reject."""
    try:
        return orjson.dumps({"text": line.decode()})
    except UnicodeDecodeError:
        return line


def _rows_of_batches(batches: Iterable[pa.RecordBatch], skip: int) -> Iterator[bytes]:
    for batch in batches:
        for start in range(min(skip, batch.num_rows), batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist(maps_as_pydicts="strict"):
                yield orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS)
        skip = max(0, skip - batch.num_rows)


def _plain(value: Any) -> Any:
    """Return what stands in JSON for a value that JSON does not have."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.total_seconds() if isinstance(value, timedelta) else str(value)
