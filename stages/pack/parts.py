"""What the data sets of a run come to, for people: rows and shares of rows and of trained tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import RunConfig


@dataclass(frozen=True)
class Part:
    """What one data set gives to one side.

    Attributes:
        key, path: which data set.
        side: "train" or "eval".
        rows, tokens, trained_tokens: a row that is repeated counts each time.
        share_of_rows, share_of_trained_tokens: of that side, from 0 to 1.
        line: all of it in one line.
    """

    key: str
    path: str
    side: str
    rows: int
    tokens: int
    trained_tokens: int
    share_of_rows: float
    share_of_trained_tokens: float
    line: str


def parts(run: RunConfig, facts: Mapping[str, Any]) -> list[Part]:
    """Return what each data set comes to, by the facts of a `pack` artifact; nothing for one that gives no row."""
    return [
        _part(run, number, side, counts, facts[side])
        for number, sides in enumerate(facts["datasets"])
        for side, counts in sides.items()
    ]


def _part(run: RunConfig, number: int, side: str, counts: Mapping[str, int], whole: Mapping[str, int]) -> Part:
    rows = counts["rows"] / max(1, whole["rows"])
    trained = counts["trained_tokens"] / max(1, whole["trained_tokens"])
    key, path = run.source_key(number), run.sources[number].shown
    told = "" if side == "train" else " of the evaluation"
    line = (
        f"{key} {path}: {counts['rows']:,} rows, {rows:.1%} of the rows and {trained:.1%} of the trained tokens{told}"
    )
    return Part(key, path, side, counts["rows"], counts["tokens"], counts["trained_tokens"], rows, trained, line)


def told(counts: Mapping[str, int]) -> str:
    """Return counts by reason as text, most first, without those that are zero.

    >>> told({"too_long": 2, "too_short": 0, "missing_field": 1200})
    'missing_field 1,200, too_long 2'
    """
    found = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,}" for name, count in found)
