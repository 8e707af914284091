"""One shard of raw rows to one shard of tokenized rows: what a worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from configs.schema import RunConfig
from stages.formats import Piece, PlainChats, Rejected, RowFormat, make_format, make_plain
from stages.formats.rows import read_row
from stages.templates import ChatTemplate
from stages.tokenize.encoder import BackendError, Encoder, Tokenized
from stages.tokens import TOKEN_SCHEMA, write_arrow

BATCH_ROWS = 512
BATCH_CHARACTERS = 1 << 21
DETAIL_CHARACTERS = 300
Report = Callable[[int, int], None]
"""Is told rows read and tokens written since the last call."""


class Setup(BaseModel):
    """What every worker of a run needs, small enough for one line of JSON.

    Attributes:
        run: the configuration.
        folder: the resolved tokenizer.
        bos, eos, eot: ids of its end and beginning tokens.
        variables: what every template sees, `bos_token` and the like.
        templates: the Jinja text of each data set, None for those that are not conversations.
    """

    model_config = ConfigDict(frozen=True)

    run: RunConfig
    folder: Path
    bos: int | None
    eos: int
    eot: tuple[int, ...]
    variables: dict[str, Any]
    templates: tuple[str | None, ...]


class Job(BaseModel):
    """A shard to tokenize: the raw rows in `source`, the first of which is row `first_row` of its data set."""

    model_config = ConfigDict(frozen=True)

    dataset: int
    source: Path
    target: Path
    first_row: int


class Outcome(BaseModel):
    """What became of a shard.

    Attributes:
        rows_read: rows of the source.
        rows_written: those of them that gave tokens.
        rows: rows of the target; more than `rows_written` where rows are cut.
        rejected: `{"row", "reason", "detail"}` of each other row.
        note: what is to be told of how it was done, empty if nothing.
    """

    rows_read: int = 0
    rows_written: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    rejected: list[dict[str, Any]] = []
    note: str = ""


class ShardTokenizer:
    """Tokenizes shards, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._encoder = Encoder(setup.folder, setup.bos, setup.eos, setup.eot)
        self._formats: list[RowFormat] = []
        self._plain: list[PlainChats | None] = []
        for number, text in enumerate(setup.templates):
            variables = {**setup.variables, **setup.run.chat_template_kwargs}
            template = None if text is None else ChatTemplate(text, variables)
            self._formats.append(make_format(setup.run, number, template))
            self._plain.append(make_plain(setup.run, number, template))

    def tokenize(self, job: Job, report: Report) -> Outcome:
        """Write the target of a job. Memory is that of the target and of one batch of rows."""
        reported = [0, 0]

        def counted(rows: int, tokens: int) -> None:
            reported[:] = reported[0] + rows, reported[1] + tokens
            report(rows, tokens)

        try:
            return self._tokenize(job, counted)
        except (BackendError, _RenderingError) as error:
            report(-reported[0], -reported[1])
            outcome = self._tokenize(job, report)
            outcome.note = f"{job.source.name}: {error}; the shard was tokenized again without it"
            return outcome

    def _tokenize(self, job: Job, report: Report) -> Outcome:
        outcome = Outcome()
        written: list[tuple[int, Tokenized]] = []
        for numbers, raw in _batches(job):
            begun = len(written)
            for number, result in zip(numbers, self._batch(raw, job.dataset), strict=True):
                if isinstance(result, Rejected):
                    detail = result.detail[:DETAIL_CHARACTERS]
                    outcome.rejected.append({"row": number, "reason": result.reason, "detail": detail})
                else:
                    written += [(number, tokens) for tokens in result]
                    outcome.rows_written += 1
            tokens = sum(len(tokens.ids) for _, tokens in written[begun:])
            report(len(raw), tokens)
            outcome.rows_read += len(raw)
            outcome.tokens += tokens
        table = _table(written, job.dataset)
        write_arrow(job.target, table)
        outcome.rows = table.num_rows
        outcome.trained_tokens = sum(int(np.count_nonzero(tokens.trained)) for _, tokens in written)
        return outcome

    def _batch(self, raw: list[bytes], dataset: int) -> list[list[Tokenized] | Rejected]:
        form = self._formats[dataset]
        prepared = self._prepared(raw, dataset)
        encoded = iter(self._encoder.encode([row for row in prepared if not isinstance(row, Rejected)], form))
        return [row if isinstance(row, Rejected) else next(encoded) for row in prepared]

    def _prepared(self, raw: list[bytes], dataset: int) -> list[list[Piece] | Rejected]:
        """Return the pieces of rows, plain ones by the fast way; one of them is done the other way as well."""
        form, plain = self._formats[dataset], self._plain[dataset]
        if plain is None:
            return [_pieces(row, form) for row in raw]
        found = [plain.pieces(row) for row in raw]
        number = sum(map(len, raw)) % len(raw)  # any one, the same on every machine
        if found[number] is not None and found[number] != _pieces(raw[number], form):
            self._plain[dataset] = None
            raise _RenderingError(f"the template's skeleton is not its text for {raw[number][:200]!r}")
        return [_pieces(row, form) if pieces is None else pieces for row, pieces in zip(raw, found, strict=True)]


class _RenderingError(Exception):
    """The fast way of plain rows gave another text: it is not used again."""


def _pieces(raw: bytes, form: RowFormat) -> list[Piece] | Rejected:
    try:
        return form.pieces(read_row(raw))
    except Rejected as rejected:
        return rejected


def _batches(job: Job) -> Iterator[tuple[Sequence[int], list[bytes]]]:
    """Yield (numbers, raw rows), bounded in rows and in bytes."""
    numbers, batch, size = list[int](), list[bytes](), 0
    for number, raw in numbered_rows(job.source, job.first_row):
        numbers.append(number)
        batch.append(raw)
        size += len(raw)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield numbers, batch
            numbers, batch, size = [], [], 0
    if batch:
        yield numbers, batch


def numbered_rows(shard: Path, first_row: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number in its data set, raw row) of each row of a shard of `fetch`."""
    with pq.ParquetFile(shard) as file:
        drawn = "number" in file.schema_arrow.names
        following = count(first_row)
        for records in file.iter_batches(batch_size=BATCH_ROWS):
            numbers = records["number"].to_pylist() if drawn else following
            rows = zip(
                records["row"].to_pylist(), numbers, strict=False
            )  # rows first: they end, and take no number more
            yield from ((number, row) for row, number in rows)


def _table(written: list[tuple[int, Tokenized]], dataset: int) -> pa.Table:
    offsets = np.zeros(len(written) + 1, np.int32)
    np.cumsum([len(tokens.ids) for _, tokens in written], out=offsets[1:])
    ids = np.concatenate([np.zeros(0, np.int32), *(tokens.ids for _, tokens in written)])
    trained = np.concatenate([np.zeros(0, np.bool_), *(tokens.trained for _, tokens in written)])
    rows = np.array([row for row, _ in written], np.int64)
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(trained)),
        pa.array(np.full(len(written), dataset, np.int32)),
        pa.array(rows),
    ]
    return pa.Table.from_arrays(columns, schema=TOKEN_SCHEMA)
