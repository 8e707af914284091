"""A data set without a configuration: its first rows, the type that fits them, and how they look with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from configs.schema import DatasetConfig, RunConfig
from stages.errors import DataError
from stages.fetch.layout import find_files, is_files
from stages.fetch.problems import problems_of
from stages.fetch.readers import Rows, place_of
from stages.fetch.sources import find_source
from stages.fetch.splits import DEFAULT_SPLIT
from stages.formats import Piece, Rejected, RowFormat, is_chat, make_format
from stages.formats.rows import read_row
from stages.inspection.advice import Advice, advise
from stages.templates.choice import ChatTemplate, choose_template

SAMPLE = 400
"""Rows that are read."""
SHOWN_WITH = "chatml"
"""Template that rows are shown with: there is no model whose own it could be."""
PLACE = "PATH"


@dataclass(frozen=True)
class Tried:
    """An advice, and what it makes of the sample.

    Attributes:
        advice: the type and its options.
        usable: rows that it can use.
        rejected: the others, by reason.
        example: the first of those, with its number, in words; empty without one.
        rows: (number, pieces) of the rows that can be used.
    """

    advice: Advice
    usable: int
    rejected: Counter[str]
    example: str
    rows: list[tuple[int, list[Piece]]]


@dataclass(frozen=True)
class Sample:
    """The first rows of a data set.

    Attributes:
        path: as given.
        split: which one, if it has to be named; else None.
        rows: the raw rows.
    """

    path: str
    split: str | None
    rows: list[bytes]


def read_sample(path: str) -> Sample:
    """Return the first rows of a file, a folder, or a data set of the Hub.

    Raises:
        ConfigError: there is no such data set.
        DataError: it holds no rows.
    """
    dataset = DatasetConfig(path=path, type="completion")
    with problems_of(PLACE, dataset):
        splits = list(find_files(dataset).splits) if is_files(dataset) else [DEFAULT_SPLIT]
    split = None if DEFAULT_SPLIT in splits else splits[0]
    dataset = dataset.model_copy(update={"split": split})
    source = find_source(PLACE, dataset)
    with problems_of(PLACE, dataset):
        files = next(iter(source.splits().values()))
    with closing(iter(Rows(files, place_of(files, 0), SAMPLE, release=False))) as rows:
        found = list(rows)
    if not found:
        raise DataError(f"{path}: it holds no rows.")
    return Sample(path, split, found)


def tried(sample: Sample) -> list[Tried]:
    """Return each type that may fit with what it makes of the sample; what can use most rows first."""
    rows = [row for row in map(_read, sample.rows) if row is not None]
    outcomes = [_try(sample, advice) for advice in advise(rows)]
    return sorted(outcomes, key=lambda outcome: -outcome.usable)  # stable: the likeliest of equals stays first


def yaml_of(sample: Sample, advice: Advice) -> dict[str, Any]:
    """Return the entry of `datasets`."""
    split = {} if sample.split is None else {"split": sample.split}
    return {"path": sample.path, **split, **advice.options}


def dataset_of(sample: Sample, advice: Advice) -> DatasetConfig:
    """Return the entry of `datasets` as it would be read."""
    return DatasetConfig.model_validate(yaml_of(sample, advice))


def _read(raw: bytes) -> dict[str, Any] | None:
    try:
        return read_row(raw)
    except Rejected:
        return None


def _try(sample: Sample, advice: Advice) -> Tried:
    form = _format(sample, advice)
    usable, rejected, example = list[tuple[int, list[Piece]]](), Counter[str](), ""
    for number, raw in enumerate(sample.rows):
        try:
            row = read_row(raw)
            usable.append((number, form.pieces(row) if form is not None else []))
        except Rejected as why:
            rejected[why.reason] += 1
            example = example or f"row {number}: {why.detail}"
    return Tried(advice, len(usable), rejected, example, usable)


def _format(sample: Sample, advice: Advice) -> RowFormat | None:
    """Return the format of an advice, None for rows that are tokenized already."""
    if advice.options["type"] is None:
        return None
    run = RunConfig.model_validate({
        "base_model": ".",
        "datasets": [yaml_of(sample, advice)],
        "chat_template": SHOWN_WITH,
        "learning_rate": 1e-4,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
    })  # fmt: skip
    if not is_chat(run.datasets[0]):
        return make_format(run, 0, None)
    return make_format(run, 0, ChatTemplate(choose_template(run).text or "", {}))


def marked(pieces: list[Piece]) -> Iterator[tuple[str, bool]]:
    """Yield the text of a row in stretches, and whether each is trained."""
    for piece in pieces:
        position = 0
        for turn in sorted(piece.turns, key=lambda turn: turn.span.start):
            if turn.trained:
                yield piece.text[position : turn.span.start], piece.trained
                yield piece.text[turn.span.start : turn.span.end], True
                position = turn.span.end
        yield piece.text[position:], piece.trained
