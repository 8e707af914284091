"""In which order the rows of all data sets come, and which of them are held out: as the original merges and splits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.shuffling import Numbers, permutation


def merged(
    datasets: npt.NDArray[np.int32], members: Sequence[int], seed: int, *, each: bool, together: bool
) -> Numbers:
    """Return the rows of some data sets in the order in which they are merged.

    Args:
        datasets: (rows,) the data set of every row.
        members: the data sets that are wanted, in their order.
        seed: of every shuffle.
        each: shuffle each data set alone, before they are put one behind the other.
        together: shuffle all of them at the end.
    """
    parts = [np.flatnonzero(datasets == member).astype(np.int64) for member in members]
    if each:
        parts = [rows[permutation(len(rows), seed)] for rows in parts]
    rows = np.concatenate([np.zeros(0, np.int64), *parts])
    return rows[permutation(len(rows), seed)] if together else rows


def held_out_rows(rows: int, val_set_size: float) -> int:
    """Return how many of `rows` are held out: a fraction below 1 (rounded up, so at least one), or a number.

    >>> held_out_rows(1001, 0.01), held_out_rows(1001, 50)
    (11, 50)
    """
    if val_set_size >= 1:
        return int(val_set_size)
    exact = round(rows * val_set_size, 6)  # 0.07 * 100 is a little more than 7 in floating point
    return max(math.ceil(exact), 1 if val_set_size else 0)
