"""Bins filled in the order of the rows: next fit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_in_order(lengths: npt.NDArray[np.integer], capacity: int) -> npt.NDArray[np.int64]:
    """Return (bins + 1,) offsets: bin i holds the rows from `offsets[i]` on, up to `offsets[i + 1]`.

    A row goes beside the one before it, or begins a bin if there is no room.

    Args:
        lengths: (rows,) tokens of each row, at most `capacity`.
        capacity: tokens of a bin.

    >>> pack_in_order(np.array([6, 3, 3, 2, 6]), 10).tolist()
    [0, 2, 4, 5]
    """
    ends, offsets = np.cumsum(lengths, dtype=np.int64), [0]
    while offsets[-1] < len(lengths):
        before = int(ends[offsets[-1] - 1]) if offsets[-1] else 0
        offsets.append(int(np.searchsorted(ends, before + capacity, side="right")))
    return np.asarray(offsets, np.int64)
