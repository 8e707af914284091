"""Rows with the same tokens and the same mask."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from stages.shuffling import Numbers
from stages.tokens import TokenRows

DIGEST_BYTES = 16


def duplicates(rows: TokenRows, lengths: npt.NDArray[np.int32], *sides: Numbers) -> dict[int, int]:
    """Return duplicate row -> the row that it repeats.

    Args:
        rows: all tokenized rows.
        lengths: (rows,) tokens of each that are used.
        sides: numbers of rows in the order in which they come; the first of several like ones is no duplicate.
    """
    seen: dict[bytes, int] = {}
    repeated: dict[int, int] = {}
    for side in sides:
        for row in side.tolist():
            first = seen.setdefault(_digest(rows, row, int(lengths[row])), row)
            if first != row:
                repeated[row] = first
    return repeated


def _digest(rows: TokenRows, row: int, length: int) -> bytes:
    ids, labels = rows.slice(row, 0, length)
    return blake2b(labels.tobytes(), digest_size=DIGEST_BYTES, key=blake2b(ids.tobytes()).digest()).digest()
