"""Proportions: how many rows of each data set make a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.shuffling import Numbers


def mix(amounts: Sequence[npt.NDArray[np.integer]], weights: Sequence[float], *, repeat: bool) -> list[Numbers]:
    """Return for each data set which of its rows are used, as positions, in their order.

    The mixture is as large as it can be without using a row twice; with `repeat` as small as it can be with every row
    used. Each data set comes as near to its proportion as whole rows allow, and gives at least one.

    >>> mix([np.array([1, 1, 1, 1]), np.array([1, 1])], [0.5, 0.5], repeat=False)
    [array([0, 1]), array([0, 1])]
    >>> mix([np.array([1, 1, 1, 1]), np.array([1, 1])], [0.5, 0.5], repeat=True)
    [array([0, 1, 2, 3]), array([0, 1, 0, 1])]

    Args:
        amounts: for each data set (rows,) how much each row counts: 1, or its trained tokens. None is empty.
        weights: the proportions, in any scale.
        repeat: use rows several times rather than leave rows out.
    """
    totals = [int(amount.sum(dtype=np.int64)) for amount in amounts]
    reach = [total / weight for total, weight in zip(totals, weights, strict=True)]
    scale = max(reach) if repeat else min(reach)
    return [_rows(amount, weight * scale) for amount, weight in zip(amounts, weights, strict=True)]


def _rows(amount: npt.NDArray[np.integer], wanted: float) -> Numbers:
    """Return the positions of rows that together count nearest to `wanted`, going round as often as needed."""
    sums = np.cumsum(amount, dtype=np.int64)
    rounds, rest = divmod(round(wanted, 6), int(sums[-1]))
    before = np.append(0, sums)  # what the first n rows count
    rows = int(np.argmin(np.abs(before - rest)))
    every = np.arange(len(amount), dtype=np.int64)
    return np.concatenate([np.tile(every, int(rounds)), every[: rows if rounds else max(rows, 1)]])
