"""Which tokenized rows are kept, cut or rejected, in which order they come, and which are held out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.tokens import IGNORED, TokenRows

REASONS = ("too_long", "too_short", "nothing_trained")
FIRST_REASON = 1  # verdicts: the position of the reason from here; 0: kept


@dataclass(frozen=True)
class Selection:
    """The verdict on every tokenized row.

    Attributes:
        lengths: (rows,) int32, tokens that are used: the row's, or `sequence_len` where it was cut.
        trained: (rows,) int32, trained tokens among them.
        verdicts: (rows,) uint8, 0 for a kept row, else 1 + the position in `REASONS` of why it is rejected.
        whole: (rows,) int32, tokens of the row before it was cut.
    """

    lengths: npt.NDArray[np.int32]
    trained: npt.NDArray[np.int32]
    verdicts: npt.NDArray[np.uint8]
    whole: npt.NDArray[np.int32]

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Return the numbers of the rows that are kept, rising."""
        return np.flatnonzero(self.verdicts == 0).astype(np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Return the rejected rows by reason."""
        found = Counter(self.verdicts.tolist())
        return {reason: found[code] for code, reason in enumerate(REASONS, FIRST_REASON)}

    def rejected(self) -> Iterator[tuple[int, str]]:
        """Yield (row, reason) of each rejected row, rows rising."""
        for row in np.flatnonzero(self.verdicts).tolist():
            yield row, REASONS[int(self.verdicts[row]) - FIRST_REASON]


def select(rows: TokenRows, sequence_len: int, min_sample_len: int, *, cut: bool) -> Selection:
    """Return the verdict on every row.

    A row that is too long is rejected, or with `cut` loses its end; it is rejected all the same if no trained token
    would be left. Nothing predicts a row's first token, so a row trained on that token only has nothing to train.
    """
    lengths, trained = rows.lengths.copy(), rows.trained.copy()
    long = rows.lengths > sequence_len
    if cut:
        lengths[long] = sequence_len
        trained[long] = [_trained_within(rows, row, sequence_len) for row in np.flatnonzero(long).tolist()]
    for row in np.flatnonzero(trained == 1).tolist():
        if _trained_within(rows, row, 1):
            trained[row] = 0
    verdicts = np.zeros(len(rows), np.uint8)
    verdicts[trained == 0] = _code("nothing_trained")
    verdicts[lengths < min_sample_len] = _code("too_short")
    verdicts[long & ((trained == 0) & (rows.trained > 0) if cut else True)] = _code("too_long")
    return Selection(lengths, trained, verdicts, rows.lengths)


def _code(reason: str) -> int:
    return REASONS.index(reason) + FIRST_REASON


def _trained_within(rows: TokenRows, row: int, length: int) -> int:
    _, labels = rows.slice(row, 0, length)
    return int(np.count_nonzero(labels != IGNORED))


def shuffled(rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the rows in a random order that depends on `seed` alone.

    Sorted by raw numbers of PCG64, whose stream numpy promises to keep; what `Generator.shuffle` makes of that stream
    may change between versions of numpy.
    """
    raw = np.random.PCG64(seed).random_raw(len(rows))
    return rows[np.argsort(raw, kind="stable")]


def held_out_rows(rows: int, val_set_size: float) -> int:
    """Return how many of `rows` are held out: a fraction below 1 (rounded up, so at least one), or a number.

    >>> held_out_rows(1001, 0.01), held_out_rows(1001, 50)
    (11, 50)
    """
    if val_set_size >= 1:
        return int(val_set_size)
    exact = round(rows * val_set_size, 6)  # 0.07 * 100 is a little more than 7 in floating point
    return max(math.ceil(exact), 1 if val_set_size else 0)
