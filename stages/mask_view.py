"""Tokenized rows with their label mask, for people: which tokens are trained, in colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text
from tokenizers import Tokenizer

from stages.artifacts import Artifact
from stages.tokens import IGNORED, TokenRows

TRAINED = "green"
UNTRAINED = "bright_black"
OPEN, CLOSE = "⟦", "⟧"  # so that the mask can be seen without colours too
LINE_END = "↵\n"


def masked_rows(tokens: Artifact) -> Iterator[dict[str, Any]]:
    """Yield `{"dataset", "row", "input_ids", "labels"}` of each row of a `tokenize` artifact, in source order.

    Labels are not shifted, -100 where not trained. A row that was cut gives several, with the same number.
    """
    rows = TokenRows(tokens)
    for number in range(len(rows)):
        dataset, row = rows.source(number)
        ids, labels = rows[number]
        yield {"dataset": dataset, "row": row, "input_ids": ids.tolist(), "labels": labels.tolist()}


def show_masks(tokens: Artifact, rows: int) -> Iterator[RenderableType]:
    """Yield a legend, then a panel for each of the first `rows` rows of every data set, then the counts of all."""
    view = _View(Tokenizer.from_file(str(tokens.path("tokenizer/tokenizer.json"))))
    shown: dict[int, int] = {}
    yield _legend()
    for row in masked_rows(tokens):
        dataset = row["dataset"]
        shown[dataset] = shown.get(dataset, 0) + 1
        if shown[dataset] <= rows:
            yield _panel(row, view)
        elif min(shown.get(number, 0) for number in range(len(tokens.facts["datasets"]))) >= rows:
            break
    yield _totals(tokens)


@dataclass(frozen=True)
class _Run:
    """Consecutive tokens that are shown alike."""

    text: str
    trained: bool
    special: bool


class _View:
    """Tokens as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = np.array([number for number, token in added.items() if token.special], np.int64)

    def runs(self, input_ids: list[int], labels: list[int]) -> Iterator[_Run]:
        """Yield the row in runs; tokens are decoded together, because one character may take several."""
        ids = np.array(input_ids, np.int64)
        trained = np.array(labels, np.int64) != IGNORED
        special = np.isin(ids, self._special)
        changes = np.flatnonzero((trained[1:] != trained[:-1]) | (special[1:] != special[:-1])) + 1
        for start, stop in zip([0, *changes], [*changes, len(ids)], strict=True):
            if start < stop:
                text = self._tokenizer.decode(input_ids[start:stop], skip_special_tokens=False)
                yield _Run(text, bool(trained[start]), bool(special[start]))


def _panel(row: dict[str, Any], view: _View) -> Panel:
    text, inside = Text(), False
    for run in view.runs(row["input_ids"], row["labels"]):
        if run.trained != inside:
            text.append(OPEN if run.trained else CLOSE, TRAINED)
            inside = run.trained
        text.append(run.text.replace("\n", LINE_END), _style(run))
    if inside:
        text.append(CLOSE, TRAINED)
    tokens = len(row["labels"])
    trained = sum(label != IGNORED for label in row["labels"])
    counts = f"{tokens} tokens, {trained} trained"
    return Panel(text, title=f"datasets.{row['dataset']} row {row['row']}", subtitle=counts, title_align="left")


def _style(run: _Run) -> str:
    colour = TRAINED if run.trained else UNTRAINED
    return f"reverse {colour}" if run.special else colour


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
    rejected = sum(facts["rejected"].values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in facts["rejected"].items())
    lines = (
        f"{facts['rows_written']:,} rows, {facts['tokens']:,} tokens, {facts['trained_tokens']:,} trained ({share:.1%})"
    )
    return Text(lines + (f"; {rejected:,} rows rejected ({reasons}), see rejected.jsonl" if rejected else ""))
