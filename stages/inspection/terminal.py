"""Tokenized rows with their label mask in the terminal: turn by turn, which tokens are trained, in colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.inspection.rows import raw_rows
from stages.inspection.turns import Cell, RowReader, TurnView
from stages.pack.parts import told
from stages.tokens import IGNORED, TokenRows

TRAINED = "green"
UNTRAINED = "bright_black"
OPEN, CLOSE = "⟦", "⟧"  # so that the mask can be seen without colours too
LINE_END = "↵\n"
LONGEST = 1200
"""Tokens of a row that are shown."""


def show_masks(run: RunConfig, fetched: Artifact, tokens: Artifact, most: int) -> Iterator[RenderableType]:
    """Yield a legend, then a panel for each of the first `most` rows of every data set, then the counts of all."""
    rows, reader = TokenRows(tokens), RowReader(run, tokens)
    firsts = [np.flatnonzero(rows.datasets == number)[:most].tolist() for number in range(len(run.sources))]
    shown = [(number, *rows.source(number)) for numbers in firsts for number in numbers]
    raw = raw_rows(fetched, [(dataset, row) for _, dataset, row in shown])
    yield _legend()
    for number, dataset, row in shown:
        ids, labels = (part.tolist() for part in rows[number])
        known = raw.get((dataset, row)) if len(ids) <= LONGEST else None  # turns are told of a whole row
        turns = reader.turns(dataset, known, ids[:LONGEST], labels[:LONGEST])
        trained = sum(label != IGNORED for label in labels)
        counts = f"{len(ids):,} tokens, {trained:,} trained"
        if len(ids) > LONGEST:
            counts += f"; the first {LONGEST:,} are shown"
        title = f"{run.source_key(dataset)} {run.sources[dataset].shown} row {row}"
        yield Panel(Group(*_lines(turns)), title=title, subtitle=counts, title_align="left")
    yield _totals(tokens)


def _lines(turns: list[TurnView]) -> Iterator[RenderableType]:
    for turn in turns:
        tokens = sum(len(cell.ids) for cell in turn.cells)
        mark = f"{turn.trained:,} of {tokens:,} trained" if turn.trained else f"{tokens:,} tokens"
        yield Rule(Text(f"{turn.role}  {mark}", TRAINED if turn.trained else UNTRAINED), align="left", style=UNTRAINED)
        yield _marked(turn.cells)


def _marked(cells: list[Cell]) -> Text:
    text, inside = Text(), False
    for cell in cells:
        if cell.trained != inside:
            text.append(OPEN if cell.trained else CLOSE, TRAINED)
            inside = cell.trained
        text.append(cell.text.replace("\n", LINE_END), _style(cell))
    if inside:
        text.append(CLOSE, TRAINED)
    return text


def _style(cell: Cell) -> str:
    colour = TRAINED if cell.trained else UNTRAINED
    return f"reverse {colour}" if cell.special else colour


def _legend() -> Text:
    return Text.assemble(
        "Label mask: ",
        (f"{OPEN}trained{CLOSE}", TRAINED),
        "  ",
        ("not trained", UNTRAINED),
        "  ",
        ("special token", f"reverse {UNTRAINED}"),
        f"  {LINE_END.strip()} line break",
    )


def _totals(tokens: Artifact) -> Text:
    facts = tokens.facts
    share = facts["trained_tokens"] / facts["tokens"] if facts["tokens"] else 0.0
    rejected, reasons = sum(facts["rejected"].values()), told(facts["rejected"])
    lines = (
        f"{facts['rows_written']:,} rows, {facts['tokens']:,} tokens, {facts['trained_tokens']:,} trained ({share:.1%})"
    )
    return Text(lines + (f"; {rejected:,} rows rejected ({reasons}), see rejected.jsonl" if rejected else ""))
