"""The fetch stage: rows of every data set into shards of about 8 MiB, in the order of their source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from configs.schema import DatasetConfig
from stages.artifacts import ArtifactWriter, digest_of
from stages.errors import DataError, TransientError
from stages.fetch.files import DataFile
from stages.fetch.problems import problems_of
from stages.fetch.readers import count_rows, read_rows
from stages.fetch.sources import Source, find_source
from stages.stage import Context, Stage, Upstream

SHARD_BYTES = 8 << 20  # raw text of a shard; the row that passes it is the shard's last
SHARD_SCHEMA = pa.schema([("row", pa.large_binary())])
COMPRESSION_LEVEL = 1  # zstd


def _inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    sources = _sources(context)
    datasets = [{"source": source.content(context.digests), "split": source.split} for source in sources]
    return {"datasets": datasets, "pyarrow": pa.__version__}


def _sources(context: Context) -> list[Source]:
    return [find_source(index, dataset) for index, dataset in enumerate(context.run.datasets)]


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    facts = [
        _fetch(index, dataset, source, context, writer)
        for index, (dataset, source) in enumerate(zip(context.run.datasets, _sources(context), strict=True))
    ]
    if digest_of(STAGE.key_inputs(context, upstream)) != writer.key:
        raise TransientError("the data changed while it was read; start again when it is complete")
    return {"datasets": facts}


def _fetch(
    index: int, dataset: DatasetConfig, source: Source, context: Context, writer: ArtifactWriter
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    with problems_of(index, dataset):
        stretches = _stretches(source)
        for stretch in stretches:
            for shard in _write_stretch(stretch, index, len(shards), writer):
                shards.append(shard)
                context.progress(sum(shard["rows"] for shard in shards), None, "rows", dataset=dataset.path)
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        raise DataError(
            f"{dataset.path}: the split {source.split} holds no rows. Check the file, or set another split."
        )
    return {"split": source.split, "rows": rows, "source": source.content(context.digests), "shards": shards}


@dataclass(frozen=True)
class _Stretch:
    """Rows `start : stop` (None: to the end) of some files; row i is number `offset + i` of the data set."""

    files: tuple[DataFile, ...]
    start: int
    stop: int | None
    offset: int


def _stretches(source: Source) -> list[_Stretch]:
    """Return what is to be read. Splits are numbered one after the other, in the order of their first mention."""
    splits = source.splits()
    if len(source.parts) == 1 and not source.parts[0].sliced:  # the usual case needs no counting
        return [_Stretch(splits[source.parts[0].name], 0, None, 0)]
    counts = {name: count_rows(files) for name, files in splits.items()}
    offsets = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
    ranges = [(part.name, part.rows(counts[part.name])) for part in source.parts]
    return [_Stretch(splits[name], rows.start, rows.stop, offsets[name]) for name, rows in ranges]


def _write_stretch(stretch: _Stretch, dataset: int, shard: int, writer: ArtifactWriter) -> Iterator[dict[str, Any]]:
    """Write the shards of a stretch, numbered from `shard`, and yield their facts; skip those already finished."""
    position = stretch.start
    while stretch.stop is None or position < stretch.stop:
        facts = writer.finished(_name(dataset, shard))
        if facts is None:
            break
        yield facts
        position, shard = position + facts["rows"], shard + 1
    with closing(read_rows(stretch.files, position, stretch.stop)) as rows:
        while texts := _take(rows):
            facts = {
                "file": _name(dataset, shard),
                "first_row": stretch.offset + position,
                "rows": len(texts),
                "bytes": sum(map(len, texts)),
            }
            with writer.create(facts["file"]) as draft:
                _write_shard(draft.path, texts)
                draft.notes.update(facts)
            yield facts
            position, shard = position + len(texts), shard + 1


def _name(dataset: int, shard: int) -> str:
    return f"{dataset:02d}/{shard:05d}.parquet"


def _take(rows: Iterator[bytes]) -> list[bytes]:
    """Return the rows of the next shard."""
    texts, size = [], 0
    for row in rows:
        texts.append(row)
        size += len(row)
        if size >= SHARD_BYTES:
            break
    return texts


def _write_shard(path: Path, texts: list[bytes]) -> None:
    table = pa.Table.from_arrays([pa.array(texts, SHARD_SCHEMA.field("row").type)], schema=SHARD_SCHEMA)
    pa.parquet.write_table(
        table,
        path,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=False,  # every row is different, and its statistics would be whole rows
        write_statistics=False,
        row_group_size=len(texts),
    )


STAGE = Stage("fetch", 1, (), _inputs, _produce)
