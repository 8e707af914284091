"""One page, complete in itself, that shows what a run learns from."""

from __future__ import annotations

from importlib import resources
from typing import Any

import orjson

from configs.schema import RunConfig
from configs.secrets import redacted
from stages.artifacts import Artifact
from stages.inspection.rows import Pick, Refused, picks, raw_rows, refused
from stages.inspection.turns import RowReader, TurnView
from stages.tokens import IGNORED, TokenRows

LONGEST = 4000
"""Tokens of a row that are on the page."""
LONGEST_RAW = 20_000  # bytes
OPEN = 4
"""Rows that are open when the page is."""


def page(run: RunConfig, fetched: Artifact, tokens: Artifact, most: int) -> str:
    """Return the HTML: of each data set up to `most` rows at random, the longest, the shortest, and rejected ones."""
    rows, reader = TokenRows(tokens), RowReader(run, tokens)
    picked, out = picks(rows, len(run.sources), most), refused(tokens)
    raw = raw_rows(fetched, [*((pick.dataset, pick.row) for pick in picked), *((one.dataset, one.row) for one in out)])
    shown = [_row(pick, rows, reader, raw.get((pick.dataset, pick.row))) for pick in picked]
    data = {
        "about": _about(run, tokens),
        "datasets": [_dataset(run, number, facts) for number, facts in enumerate(tokens.facts["datasets"])],
        "rows": [*shown, *(_refused(one, raw.get((one.dataset, one.row))) for one in out)],
        "open": OPEN,
    }
    text = orjson.dumps(data).decode().replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return resources.files("stages.inspection").joinpath("page.html").read_text("utf-8").replace("{{DATA}}", text)


def _about(run: RunConfig, tokens: Artifact) -> str:
    facts, name = tokens.facts, redacted(run.tokenizer_config or run.base_model)
    return (
        f"{name}: {facts['rows_written']:,} rows, {facts['tokens']:,} tokens. "
        "Shown of each data set: rows at random, the longest, the shortest, and one of each reason for rejection."
    )


def _dataset(run: RunConfig, number: int, facts: dict[str, Any]) -> dict[str, Any]:
    dataset = run.sources[number]
    return {
        "key": run.source_key(number),
        "path": dataset.shown,
        "type": dataset.type if isinstance(dataset.type, str) else "own format",
        "rows": facts["rows_written"],
        "tokens": facts["tokens"],
        "trained": facts["trained_tokens"],
        "rejected": facts["rejected"],
        "checks": facts["checks"],
    }


def _row(pick: Pick, rows: TokenRows, reader: RowReader, raw: bytes | None) -> dict[str, Any]:
    ids, labels = (part.tolist() for part in rows[pick.number])
    whole = len(ids) <= LONGEST
    turns = reader.turns(pick.dataset, raw if whole else None, ids[:LONGEST], labels[:LONGEST])
    return {
        "dataset": pick.dataset,
        "row": pick.row,
        "why": pick.why,
        "tokens": len(ids),
        "trained": sum(label != IGNORED for label in labels),
        "hidden": max(0, len(ids) - LONGEST),
        "turns": [_turn(turn) for turn in turns],
        "raw": _text(raw),
    }


def _turn(turn: TurnView) -> dict[str, Any]:
    return {
        "role": turn.role,
        "tokens": sum(len(cell.ids) for cell in turn.cells),
        "trained": turn.trained,
        "cells": [[cell.text, cell.ids, cell.trained + 2 * cell.special] for cell in turn.cells],
    }


def _refused(one: Refused, raw: bytes | None) -> dict[str, Any]:
    return {**vars(one), "raw": _text(raw)}


def _text(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    text = raw[:LONGEST_RAW].decode(errors="replace")
    return text if len(raw) <= LONGEST_RAW else f"{text} … {len(raw):,} bytes in all"
