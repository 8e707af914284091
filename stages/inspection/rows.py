"""Which rows are shown: some at random, the longest, the shortest, and one of each reason for rejection."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from stages.artifacts import Artifact
from stages.tokenize.shard import numbered_rows
from stages.tokens import TokenRows

SEED = 20240229
EXTREMES = 3
"""Longest and shortest rows that are shown of each data set."""


@dataclass(frozen=True)
class Pick:
    """A tokenized row that is shown, and why: "random", "longest", "shortest"."""

    number: int
    dataset: int
    row: int
    why: str


@dataclass(frozen=True)
class Refused:
    """A rejected row that is shown.

    Attributes:
        dataset, row: which one.
        reason, detail: why it was rejected.
        count: rows of the data set that were rejected for this reason.
    """

    dataset: int
    row: int
    reason: str
    detail: str
    count: int


def masked_rows(tokens: Artifact) -> Iterator[dict[str, Any]]:
    """Yield `{"dataset", "row", "input_ids", "labels"}` of each row of a `tokenize` artifact, in source order.

    Labels are not shifted, -100 where not trained. A row that was cut gives several, with the same number.
    """
    rows = TokenRows(tokens)
    for number in range(len(rows)):
        dataset, row = rows.source(number)
        ids, labels = rows[number]
        yield {"dataset": dataset, "row": row, "input_ids": ids.tolist(), "labels": labels.tolist()}


def picks(rows: TokenRows, datasets: int, most: int) -> list[Pick]:
    """Return rows to show of each data set: up to `most` at random (the same each time), the longest, the shortest."""
    found: dict[int, Pick] = {}
    for dataset in range(datasets):
        own = np.flatnonzero(rows.datasets == dataset)
        by_length = own[np.argsort(rows.lengths[own], kind="stable")].tolist()
        chance = random.Random(SEED + dataset)  # noqa: S311  the same rows each time, no secret
        chosen = {
            "random": sorted(chance.sample(own.tolist(), min(most, len(own)))),
            "longest": by_length[::-1][:EXTREMES],
            "shortest": by_length[:EXTREMES],
        }
        for why, numbers in chosen.items():
            for number in numbers:
                found.setdefault(number, Pick(number, dataset, rows.source(number)[1], why))
    return list(found.values())


def refused(tokens: Artifact) -> list[Refused]:
    """Return the first rejected row of each data set and reason."""
    first: dict[tuple[int, str], dict[str, Any]] = {}
    counts: dict[tuple[int, str], int] = {}
    with tokens.path("rejected.jsonl").open("rb") as file:
        for line in file:
            record = orjson.loads(line)
            key = (record["dataset"], record["reason"])
            first.setdefault(key, record)
            counts[key] = counts.get(key, 0) + 1
    return [
        Refused(dataset, record["row"], reason, record["detail"], counts[dataset, reason])
        for (dataset, reason), record in first.items()
    ]


def raw_rows(fetched: Artifact, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Return (data set, row) -> the raw row, as it stands in the data; reads the shards that hold one of them."""
    found: dict[tuple[int, int], bytes] = {}
    for dataset, facts in enumerate(fetched.facts["datasets"]):
        left = {row for of, row in wanted if of == dataset}
        for shard in facts["shards"]:
            if not left:
                break
            for number, raw in numbered_rows(fetched.path(shard["file"]), shard["first_row"]):
                if number in left:
                    found[dataset, number] = raw
                    left.discard(number)
    return found
