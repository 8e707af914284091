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
from stages.fetch.files import DataFile
from stages.fetch.json_rows import json_rows, line_rows

BATCH = 1024  # rows that exist as Python objects at one time
ARROW_FILE = b"ARROW1"  # how an IPC file begins; an IPC stream (as `datasets` saves it) does not
LONGEST_CSV_VALUE = 1 << 30  # characters
PARQUET_BUFFER = 1 << 20  # bytes; without it a column of a row group is read at once


def count_rows(files: Iterable[DataFile]) -> int:
    """Return the rows of all files. Raises as `read_rows`."""
    return sum(_count(file) for file in files)


def read_rows(files: Sequence[DataFile], start: int, stop: int | None) -> Generator[bytes]:
    """Yield the rows `start : stop` of the files, counted through all of them.

    Raises:
        DataError: a file cannot be read as what it is said to be.
    """
    left = None if stop is None else stop - start
    for file in files:
        if start and (rows := _count(file)) <= start:
            start -= rows
            continue
        with closing(_read(file, start)) as rows_of_file:
            for row in islice(rows_of_file, left):
                yield row
                left = None if left is None else left - 1
        start = 0


def _count(file: DataFile) -> int:
    if file.format == "parquet":
        with _named(file), pa.parquet.ParquetFile(file.path) as parquet:
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
            f"{file.path}: cannot be read as {file.format}: {error}. Repair the file, or set ds_type of the data "
            "set if it is something else."
        ) from error


def _batches(file: DataFile) -> Iterator[pa.RecordBatch]:
    if file.format == "arrow":
        yield from _arrow_batches(file)
    else:
        with pa.parquet.ParquetFile(file.path, buffer_size=PARQUET_BUFFER) as parquet:
            yield from parquet.iter_batches(BATCH)


def _arrow_batches(file: DataFile) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(file.path)) as source:
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
