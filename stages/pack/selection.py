"""Which tokenized rows are kept, cut or rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stages.tokens import IGNORED, TokenRows

REASONS = ("too_long", "too_short", "nothing_trained", "duplicate")
FIRST_REASON = 1  # verdicts: the position of the reason from here; 0: kept


@dataclass(frozen=True)
class Selection:
    """The verdict on every tokenized row.

    Attributes:
        lengths: (rows,) int32, tokens that are used: the row's, or its limit where it was cut.
        trained: (rows,) int32, trained tokens among them.
        verdicts: (rows,) uint8, 0 for a kept row, else 1 + the position in `REASONS` of why it is rejected.
        whole: (rows,) int32, tokens of the row before it was cut.
    """

    lengths: npt.NDArray[np.int32]
    trained: npt.NDArray[np.int32]
    verdicts: npt.NDArray[np.uint8]
    whole: npt.NDArray[np.int32]

    def without(self, duplicates: Collection[int]) -> Selection:
        """Return the selection with these rows rejected as duplicates."""
        verdicts = self.verdicts.copy()
        verdicts[list(duplicates)] = _code("duplicate")
        return replace(self, verdicts=verdicts)

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


def select(rows: TokenRows, limits: npt.NDArray[np.int32], min_sample_len: int, *, cut: bool) -> Selection:
    """Return the verdict on every row, given the (rows,) tokens that each may have.

    A row that is too long is rejected, or with `cut` loses its end; it is rejected all the same if no trained token
    would be left. Nothing predicts a row's first token, so a row trained on that token only has nothing to train.
    """
    lengths, trained = rows.lengths.copy(), rows.trained.copy()
    long = rows.lengths > limits
    if cut:
        lengths[long] = limits[long]
        trained[long] = [_trained_within(rows, row, int(limits[row])) for row in np.flatnonzero(long).tolist()]
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
