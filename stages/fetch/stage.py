"""The fetch stage: rows of every data set into shards of about 8 MiB, in the order of their source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from configs.schema import RunConfig
from stages.artifacts import ArtifactWriter, digest_of
from stages.errors import ConfigError, DataError, Problem, TransientError
from stages.fetch.files import DataFile
from stages.fetch.problems import problems_of
from stages.fetch.readers import Rows, count_rows, place_of
from stages.fetch.sampling import Sampling, bytes_wanted, sampling_of
from stages.fetch.shards import FILES, Shards, Watch, take
from stages.fetch.sources import Source, find_source
from stages.remote import Downloads
from stages.shuffling import Numbers
from stages.stage import Context, Stage, Upstream


def _inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    return _inputs_of(_sources(context), context)


def _inputs_of(sources: list[Source], context: Context) -> dict[str, Any]:
    datasets = []
    for number, source in enumerate(sources):
        sampling = sampling_of(context.run, number)
        drawn = {} if sampling is None else {"sampling": sampling.inputs()}
        datasets.append({"source": source.content(context.digests), "split": source.split, **drawn})
    wanted = bytes_wanted(context.run)
    return {"datasets": datasets, "pyarrow": pa.__version__, **({} if wanted is None else {"bytes_wanted": wanted})}


def _sources(context: Context) -> list[Source]:
    """Return the source of every data set, or tell what is wrong with all of them at once."""
    sources: list[Source] = []
    problems: list[Problem] = []
    for number, dataset in enumerate(context.run.sources):
        try:
            sources.append(find_source(context.run.source_key(number), dataset))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sources


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    Downloads.of_this_user().sweep()
    sources = _sources(context)
    watch = Watch.over(_changeable(context.run, sources))
    if digest_of(STAGE.key_of(_inputs_of(sources, context), upstream)) != writer.key:
        raise TransientError("The data changed just before it was read. Start again when it is complete.")
    files: list[dict[str, Any]] = []
    facts = {"datasets": [_fetch(n, source, context, writer, watch, files) for n, source in enumerate(sources)]}
    lines = b"".join(orjson.dumps(file, option=orjson.OPT_APPEND_NEWLINE) for file in files)
    writer.write(FILES, lines, volatile=True)  # volatile, because it names paths, which the key leaves out
    return facts


def _fetch(
    number: int,
    source: Source,
    context: Context,
    writer: ArtifactWriter,
    watch: Watch,
    files: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the rows of a data set and return its facts; add to `files` which row each of its files begins with."""
    dataset, sampling = context.run.sources[number], sampling_of(context.run, number)
    shards: list[dict[str, Any]] = []
    rows = 0
    for name in source.unused:
        context.log(f"{dataset.shown}: {name} is not read: its name tells no split, and names of other files do")
    with problems_of(context.run.source_key(number), dataset):
        for stretch in _drawn(_stretches(source), sampling):
            writing = Shards(number, len(shards), writer, watch)
            for shard in _until(bytes_wanted(context.run), shards, _write_stretch(stretch, writing)):
                shards.append(shard)
                rows += shard["rows"]
                context.progress(rows, None, "rows", dataset=dataset.shown)
            files += ({"dataset": number, "row": row, "path": name} for row, name in writing.files)
        for file in (file for files in source.splits().values() for file in files):
            file.origin.release()
    if not rows:
        raise DataError(
            f"{dataset.shown}: the split {source.split} holds no rows. Check the file, or set another split."
        )
    return {"split": source.split, "rows": rows, "shards": shards}


def _changeable(run: RunConfig, sources: list[Source]) -> Iterator[Path]:
    for number, source in enumerate(sources):
        with problems_of(run.source_key(number), run.sources[number]):
            files = [file for split in source.splits().values() for file in split]
            yield from filter(None, (file.origin.changeable() for file in files))


@dataclass(frozen=True)
class _Stretch:
    """Rows `start : stop` (None: to the end) of some files; row i is number `offset + i` of the data set.

    With `drawn`, (rows,) rising, only these of the files are meant.
    """

    files: tuple[DataFile, ...]
    start: int
    stop: int | None
    offset: int
    drawn: Numbers | None = None


def _stretches(source: Source) -> list[_Stretch]:
    """Return what is to be read. Splits are numbered one after the other, in the order of their first mention."""
    splits = source.splits()
    if len(source.parts) == 1 and not source.parts[0].sliced:  # the usual case needs no counting
        return [_Stretch(splits[source.parts[0].name], 0, None, 0)]
    counts = {name: count_rows(files) for name, files in splits.items()}
    offsets = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
    ranges = [(part.name, part.rows(counts[part.name])) for part in source.parts]
    return [_Stretch(splits[name], rows.start, rows.stop, offsets[name]) for name, rows in ranges]


def _drawn(stretches: list[_Stretch], sampling: Sampling | None) -> list[_Stretch]:
    """Return the stretches with the rows that are drawn from all of them together."""
    if sampling is None:
        return stretches
    known = [s if s.stop is not None else replace(s, stop=count_rows(s.files)) for s in stretches]
    counts = [(s.stop or 0) - s.start for s in known]
    rows, begins = sampling.rows(sum(counts)), [0, *accumulate(counts)]
    return [
        replace(s, drawn=s.start + rows[(rows >= begin) & (rows < end)] - begin)
        for s, (begin, end) in zip(known, pairwise(begins), strict=True)
    ]


def _until(
    wanted: int | None, written: list[dict[str, Any]], more: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield more shards while those written hold fewer bytes than wanted, all of them if `wanted` is None."""
    while wanted is None or sum(facts["bytes"] for facts in written) < wanted:
        facts = next(more, None)
        if facts is None:
            return
        yield facts


def _write_stretch(stretch: _Stretch, shards: Shards) -> Iterator[dict[str, Any]]:
    """Write the shards of a stretch and yield their facts; skip those that an earlier try finished."""
    if stretch.drawn is not None:
        yield from _write_drawn(stretch, stretch.drawn, shards)
        return
    position, place = stretch.start, None
    while (stretch.stop is None or position < stretch.stop) and (found := shards.finished()) is not None:
        facts, place = found
        yield facts
        position += facts["rows"]
    place = place_of(stretch.files, position) if place is None else place
    most = None if stretch.stop is None else stretch.stop - position
    rows = Rows(stretch.files, place, most, release=stretch.stop is None)
    given = 0
    with closing(iter(rows)) as texts_of_rows:
        while texts := take(texts_of_rows):
            first, before, given = stretch.offset + position, given, given + len(texts)
            files = [(first - before + at, file.shown) for at, file in rows.files_after(before, given)]
            yield shards.write(texts, range(first, first + len(texts)), files, rows.place_after(given))
            position += len(texts)


def _write_drawn(stretch: _Stretch, left: Numbers, shards: Shards) -> Iterator[dict[str, Any]]:
    while len(left) and (found := shards.finished()) is not None:
        facts, _ = found
        yield facts
        left = left[facts["rows"] :]
    if not len(left):
        return
    wanted = np.zeros(left[-1] - left[0] + 1, np.bool_)
    wanted[left - left[0]] = True
    place = place_of(stretch.files, int(left[0]))
    rows, start, told = Rows(stretch.files, place, len(wanted), release=False), int(left[0]), 0
    with closing(iter(rows)) as texts_of_rows:
        drawn = compress(texts_of_rows, wanted.tobytes())
        while texts := take(drawn):
            until = int(left[len(texts) - 1]) - start + 1
            files = [(stretch.offset + start + at, file.shown) for at, file in rows.files_after(told, until)]
            yield shards.write(texts, stretch.offset + left[: len(texts)], files)
            left, told = left[len(texts) :], until


STAGE = Stage("fetch", 3, (), _inputs, _produce)
