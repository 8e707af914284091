"""One shard of raw rows to one shard of tokenized rows: what a worker does."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from configs.schema import RunConfig
from stages.formats import (
    ChatFormat,
    Piece,
    PlainChats,
    Rejected,
    RowFormat,
    TokenFormat,
    is_verbatim,
    make_format,
    make_plain,
    make_token_format,
)
from stages.formats.rows import read_row
from stages.templates.choice import NO_DAY, ChatTemplate
from stages.tokenize.encoder import BackendError, Encoded, Encoder, Tokenized, encoded_rows
from stages.tokenize.proofs import ConversationProver
from stages.tokens import TOKEN_SCHEMA, write_arrow

BATCH_ROWS = 2048
BATCH_CHARACTERS = 1 << 21
DETAIL_CHARACTERS = 300
SAMPLE_ROWS = 32
SAMPLE_CHARACTERS = 1 << 15
"""Rows of a shard that are looked at again, at most: until there are so many, or they have that many characters."""
COLLECT = (100_000, 20, 100)
"""Thresholds of garbage collection, which else takes up to 15 % of the time."""

Numbers = npt.NDArray[np.int64]
"""(rows,) numbers of rows in their data set."""

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
        today: the day that templates see.
    """

    model_config = ConfigDict(frozen=True)

    run: RunConfig
    folder: Path
    bos: int | None
    eos: int
    eot: tuple[int, ...]
    variables: dict[str, Any]
    templates: tuple[str | None, ...]
    today: date = NO_DAY


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
        control_tokens: how often the text of the data spells each control token.
        control_rows: rows in which it does.
        untrained_rows: rows of the target in which no token is trained.
        spans: runs of trained tokens.
        ended_spans: those of them whose last token is an end token.
        found, examples: of a second look at some rows, how often each thing was found, and one example.
        note: what is to be told of how it was done, empty if nothing.
    """

    rows_read: int = 0
    rows_written: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    rejected: list[dict[str, Any]] = []
    control_tokens: dict[str, int] = {}
    control_rows: int = 0
    untrained_rows: int = 0
    spans: int = 0
    ended_spans: int = 0
    found: dict[str, int] = {}
    examples: dict[str, str] = {}
    note: str = ""


class ShardTokenizer:
    """Tokenizes shards, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._encoder = Encoder(setup.folder, setup.bos, setup.eos, setup.eot)
        self._formats: list[RowFormat | TokenFormat] = []
        self._plain: list[PlainChats | None] = []
        self._provers: list[ConversationProver | None] = []
        self._ends = np.array([setup.eos, *setup.eot], np.int32)
        self._control_tokens = setup.run.control_tokens_in_data
        self._verbatim = frozenset(n for n, dataset in enumerate(setup.run.sources) if is_verbatim(dataset))
        for number, text in enumerate(setup.templates):
            variables = {**setup.variables, **setup.run.chat_template_kwargs}
            template = None if text is None else ChatTemplate(text, variables, setup.today)
            given = make_token_format(setup.run, number, setup.folder, self._encoder.vocabulary)
            self._formats.append(given or make_format(setup.run, number, template))
            self._plain.append(make_plain(setup.run, number, template))
            is_plain = template is not None and isinstance(self._formats[-1], ChatFormat)
            self._provers.append(self._prover(setup, number, template) if template and is_plain else None)

    def _prover(self, setup: Setup, number: int, template: ChatTemplate) -> ConversationProver:
        dataset, ends = setup.run.sources[number], [setup.eos, *setup.eot]
        encoder = self._encoder
        return ConversationProver(dataset, template, encoder.tokenizer, encoder.ids_of, ends, setup.run.train_on_inputs)

    def tokenize(self, job: Job, report: Report) -> Outcome:
        """Write the target of a job. Memory is that of the target and of one batch of rows."""
        reported = [0, 0]

        def counted(rows: int, tokens: int) -> None:
            reported[:] = reported[0] + rows, reported[1] + tokens
            report(rows, tokens)

        try:
            with _rare_collection():
                return self._tokenize(job, counted)
        except (BackendError, _RenderingError) as error:
            report(-reported[0], -reported[1])
            outcome = self._tokenize(job, report)
            outcome.note = f"{job.source.name}: {error}; the shard was tokenized again without it"
            return outcome

    def _tokenize(self, job: Job, report: Report) -> Outcome:
        outcome = Outcome()
        written: list[tuple[Numbers, Encoded]] = []
        for numbers, raw in _batches(job):
            encoded = self._encoded(raw, job.dataset, outcome)
            for at, why in sorted(encoded.rejected.items()):
                record = {"row": int(numbers[at]), "reason": why.reason, "detail": why.detail[:DETAIL_CHARACTERS]}
                outcome.rejected.append(record)
            written.append((numbers[encoded.owners], encoded))
            report(len(raw), len(encoded.ids))
            outcome.rows_read += len(raw)
            outcome.rows_written += len(raw) - len(encoded.rejected)
            outcome.tokens += len(encoded.ids)
            outcome.trained_tokens += int(np.count_nonzero(encoded.trained))
            self._count_spans(encoded, outcome)
            if len(written) == 1:
                self._look_again(raw, encoded, job.dataset, outcome)
        table = _table(written, job.dataset)
        write_arrow(job.target, table)
        outcome.rows = table.num_rows
        return outcome

    def _encoded(self, raw: list[bytes], dataset: int, outcome: Outcome) -> Encoded:
        """Return what becomes of raw rows."""
        form = self._formats[dataset]
        if isinstance(form, TokenFormat):
            return encoded_rows([_given(row, form) for row in raw])
        prepared = self._prepared(raw, dataset, form, outcome)
        refused = {at: row for at, row in enumerate(prepared) if isinstance(row, Rejected)}
        good = np.array([at for at in range(len(raw)) if at not in refused], np.int64)
        encoded = self._encoder.encode([row for row in prepared if not isinstance(row, Rejected)], form)
        refused |= {int(good[at]): why for at, why in encoded.rejected.items()}
        return replace(encoded, owners=good[encoded.owners], rejected=refused)

    def _look_again(self, raw: list[bytes], encoded: Encoded, dataset: int, outcome: Outcome) -> None:
        """Take a second look at some of the good rows, the same on every machine, by a way of its own."""
        prover, form = self._provers[dataset], self._formats[dataset]
        if prover is None or isinstance(form, TokenFormat):
            return
        good, looked, characters = np.unique(encoded.owners), 0, 0
        for number in good[:: max(1, len(good) // (4 * SAMPLE_ROWS))].tolist():  # more than wanted: some do not serve
            if looked == SAMPLE_ROWS or characters >= SAMPLE_CHARACTERS:
                break
            row, tokens = read_row(raw[number]), encoded.rows_of(number)
            pieces = form.pieces(row) if len(tokens) == 1 and not self._encoder.control.spelled(row) else []
            if len(pieces) != 1:
                continue
            looked, characters = looked + 1, characters + len(pieces[0].text)
            for found in prover.look(row, pieces[0], tokens[0].ids.tolist(), tokens[0].trained.tolist()):
                outcome.found[found.what] = outcome.found.get(found.what, 0) + 1
                outcome.examples.setdefault(found.what, found.example)

    def _count_spans(self, encoded: Encoded, outcome: Outcome) -> None:
        """Count runs of trained tokens, those that end with an end token, and rows without a trained token."""
        if not len(encoded.lengths):
            return
        ends = np.cumsum(encoded.lengths)
        followed = np.append(encoded.trained[1:], False)
        followed[ends - 1] = False
        last = np.flatnonzero(encoded.trained & ~followed)
        outcome.spans += len(last)
        outcome.ended_spans += int(np.isin(encoded.ids[last], self._ends).sum())
        outcome.untrained_rows += len(ends) - len(np.unique(np.searchsorted(ends, last, side="right")))

    def _prepared(
        self, raw: list[bytes], dataset: int, form: RowFormat, outcome: Outcome
    ) -> list[list[Piece] | Rejected]:
        """Return the pieces of rows; those that spell control tokens are counted, and treated as they are to be."""
        spelling = {} if dataset in self._verbatim else self._spelling(raw, outcome)
        if self._control_tokens == "special" or not spelling:
            return self._usual(raw, dataset, form)
        usual = iter(self._usual([row for number, row in enumerate(raw) if number not in spelling], dataset, form))
        return [
            self._spelled(row, spelling[number], form) if number in spelling else next(usual)
            for number, row in enumerate(raw)
        ]

    def _spelling(self, raw: list[bytes], outcome: Outcome) -> dict[int, list[str]]:
        """Return the control tokens that rows spell, and count these; rows that spell none are not among them."""
        found = {
            number: spelled for number, row in enumerate(raw) if (spelled := self._encoder.control.spelled_in(row))
        }
        for token, count in Counter(chain.from_iterable(found.values())).items():
            outcome.control_tokens[token] = outcome.control_tokens.get(token, 0) + count
        outcome.control_rows += len(found)
        return found

    def _spelled(self, raw: bytes, spelled: list[str], form: RowFormat) -> list[Piece] | Rejected:
        if self._control_tokens == "reject":
            return Rejected("control_token", f"its text spells the control token {spelled[0]}")
        try:
            return self._encoder.control.pieces_with_plain_text(read_row(raw), form)
        except Rejected as rejected:
            return rejected

    def _usual(self, raw: list[bytes], dataset: int, form: RowFormat) -> list[list[Piece] | Rejected]:
        """Return the pieces of rows, plain ones by the fast way; one of them is done the other way as well."""
        plain = self._plain[dataset]
        if plain is None or not raw:
            return [_pieces(row, form) for row in raw]
        found = [plain.pieces(row) for row in raw]
        number = sum(map(len, raw)) % len(raw)  # any one, the same on every machine
        if found[number] is not None and found[number] != _pieces(raw[number], form):
            self._plain[dataset] = None
            raise _RenderingError(f"the template's skeleton is not its text for {raw[number][:200]!r}")
        return [_pieces(row, form) if pieces is None else pieces for row, pieces in zip(raw, found, strict=True)]


class _RenderingError(Exception):
    """The fast way of plain rows gave another text: it is not used again."""


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Let Python look for cycles a hundred times as seldom: rows are many objects without any."""
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _pieces(raw: bytes, form: RowFormat) -> list[Piece] | Rejected:
    try:
        return form.pieces(read_row(raw))
    except Rejected as rejected:
        return rejected


def _given(raw: bytes, form: TokenFormat) -> list[Tokenized] | Rejected:
    try:
        return [Tokenized(row.ids, row.trained) for row in form.tokens(raw)]
    except Rejected as rejected:
        return rejected


def _batches(job: Job) -> Iterator[tuple[Numbers, list[bytes]]]:
    """Yield (numbers, raw rows), bounded in rows and in bytes."""
    for numbers, rows in _record_batches(job.source, job.first_row):
        ends = np.cumsum([len(row) for row in rows])
        cuts = np.searchsorted(ends, np.arange(BATCH_CHARACTERS, ends[-1], BATCH_CHARACTERS)).tolist()
        for start, end in pairwise(dict.fromkeys([0, *(cut + 1 for cut in cuts), len(rows)])):
            yield numbers[start:end], rows[start:end]


def numbered_rows(shard: Path, first_row: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number in its data set, raw row) of each row of a shard of `fetch`."""
    for numbers, rows in _record_batches(shard, first_row):
        yield from zip(numbers.tolist(), rows, strict=True)


def _record_batches(shard: Path, first_row: int) -> Iterator[tuple[Numbers, list[bytes]]]:
    with pq.ParquetFile(shard) as file:
        drawn = "number" in file.schema_arrow.names
        for records in file.iter_batches(batch_size=BATCH_ROWS):
            rows = records["row"].to_pylist()
            following = np.arange(first_row, first_row + len(rows))
            yield records["number"].to_numpy() if drawn else following, rows
            first_row += len(rows)


def _table(written: list[tuple[Numbers, Encoded]], dataset: int) -> pa.Table:
    blocks = [encoded for _, encoded in written]
    rows = np.concatenate([np.zeros(0, np.int64), *(numbers for numbers, _ in written)])
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(np.concatenate([np.zeros(0, np.int64), *(block.lengths for block in blocks)]), out=offsets[1:])
    ids = np.concatenate([np.zeros(0, np.int32), *(block.ids for block in blocks)])
    trained = np.concatenate([np.zeros(0, np.bool_), *(block.trained for block in blocks)])
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(ids)),
        pa.ListArray.from_arrays(offsets, pa.array(trained)),
        pa.array(np.full(len(rows), dataset, np.int32)),
        pa.array(rows),
    ]
    return pa.Table.from_arrays(columns, schema=TOKEN_SCHEMA)
