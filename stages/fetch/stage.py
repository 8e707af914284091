"""The fetch stage: rows of every data set into shards of about 8 MiB, in the order of their source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from configs.schema import DatasetConfig
from stages.artifacts import ArtifactWriter, digest_of
from stages.errors import ConfigError, DataError, Problem, TransientError
from stages.fetch.files import DataFile
from stages.fetch.problems import problems_of
from stages.fetch.readers import count_rows, read_rows
from stages.fetch.shards import Shards, Watch, take
from stages.fetch.sources import Source, find_source
from stages.stage import Context, Stage, Upstream


def _inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    sources = _sources(context)
    datasets = [{"source": source.content(context.digests), "split": source.split} for source in sources]
    return {"datasets": datasets, "pyarrow": pa.__version__}


def _sources(context: Context) -> list[Source]:
    """Return the source of every data set, or tell what is wrong with all of them at once."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for index, dataset in enumerate(context.run.datasets):
        try:
            sources.append(find_source(index, dataset))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sources


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    sources = _sources(context)
    watch = Watch.over([path for source in sources for path in source.origin.changeable(source.names)])
    if digest_of(STAGE.key_inputs(context, upstream)) != writer.key:
        raise TransientError("The data changed just before it was read. Start again when it is complete.")
    both = zip(context.run.datasets, sources, strict=True)
    return {
        "datasets": [_fetch(i, dataset, source, context, writer, watch) for i, (dataset, source) in enumerate(both)]
    }


def _fetch(
    index: int, dataset: DatasetConfig, source: Source, context: Context, writer: ArtifactWriter, watch: Watch
) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    rows = 0
    for path in source.unused:
        context.log(f"{dataset.path}: {path.name} is not read: its name tells no split, and names of other files do")
    with problems_of(index, dataset):
        for stretch in _stretches(source):
            for shard in _write_stretch(stretch, Shards(index, len(shards), writer, watch)):
                shards.append(shard)
                rows += shard["rows"]
                context.progress(rows, None, "rows", dataset=dataset.path)
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


def _write_stretch(stretch: _Stretch, shards: Shards) -> Iterator[dict[str, Any]]:
    """Write the shards of a stretch and yield their facts; skip those that an earlier try finished."""
    position = stretch.start
    while (stretch.stop is None or position < stretch.stop) and (facts := shards.finished()) is not None:
        yield facts
        position += facts["rows"]
    with closing(read_rows(stretch.files, position, stretch.stop)) as rows:
        while texts := take(rows):
            yield shards.write(texts, stretch.offset + position)
            position += len(texts)


STAGE = Stage("fetch", 1, (), _inputs, _produce)
