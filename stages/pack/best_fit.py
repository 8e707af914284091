"""Best-fit-decreasing bin packing over the histogram of lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


def pack_best_fit(
    lengths: npt.NDArray[np.integer], capacity: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (offsets, order): bin i holds the rows `order[offsets[i] : offsets[i + 1]]`.

    Best-fit decreasing: rows go from the longest to the shortest (equal ones in the order given), each into the fullest
    bin that has room for it, else into a new one. Seven rows of 6, 6, 4, 3, 3, 2 and 1 tokens in bins of 10:

        bin 0 |6 6 6 6 6 6|4 4 4 4|      the 4 fits the first of two equal bins
        bin 1 |6 6 6 6 6 6|3 3 3|1|      the 3 fits bin 1; the 1 fits bin 1 (1 free) better than bin 2 (5 free)
        bin 2 |3 3 3|2 2|. . . . .|      the second 3 fits nowhere

    How full the bins get does not depend on which of equal rows or of equally full bins is taken. So whole groups move
    at once: of `n` rows of one length, the bins with `room` tokens free take `room // length` rows each, one bin after
    the other, because a bin that has just taken a row is now the fullest that fits the next one. The cost depends on
    the number of different lengths; the rows are only sorted. The bins are as full as by the row-by-row rule, each one.

    Args:
        lengths: (rows,) tokens of each row, each between 1 and `capacity`.
        capacity: tokens of a bin.

    Returns:
        offsets: (bins + 1,) int64. order: (rows,) int64, every row exactly once; in a bin the longest comes first.

    Raises:
        ValueError: a length is not between 1 and `capacity`.
    """
    if not len(lengths):
        return np.zeros(1, np.int64), np.zeros(0, np.int64)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths must be between 1 and {capacity}, found {lengths.min()} to {lengths.max()}")
    bins = _place_groups(lengths, capacity)
    bin_of_row = bins.bin_of_each_row()  # (rows,) for the rows from the longest to the shortest
    falling = _stable_argsort(capacity - lengths.astype(np.int64))
    order = falling[_stable_argsort(bin_of_row)]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bin_of_row, minlength=bins.opened))])
    return offsets.astype(np.int64), order


def _place_groups(lengths: npt.NDArray[np.integer], capacity: int) -> _Bins:
    """Place the rows of each length, longest first, and return the record of it."""
    histogram = np.bincount(lengths)
    bins = _Bins()
    for length in np.flatnonzero(histogram)[::-1].tolist():
        rows = int(histogram[length])
        while rows:
            room = bins.least_room(length)
            if room is None:
                room = capacity
                bins.open(room, -(-rows // (room // length)))
            rows -= bins.fill(room, length, rows)
    return bins


@dataclass
class _Bins:
    """Bins in groups of consecutive numbers, (first bin, bins), filed under the tokens that each bin has free.

    Attributes:
        opened: number of bins.
        groups: free tokens -> groups; every bin with free tokens is in exactly one group.
        rooms: bit r is set if `groups[r]` is not empty: finding the fullest bin that fits is one shift.
        placed: (first bin, bins, rows per bin) of each placement, in the order of the falling rows.
    """

    opened: int = 0
    groups: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    rooms: int = 0
    placed: list[tuple[int, int, int]] = field(default_factory=list)

    def open(self, room: int, bins: int) -> None:
        """Add empty bins."""
        self._file(room, self.opened, bins)
        self.opened += bins

    def least_room(self, length: int) -> int | None:
        """Return the free tokens of the fullest bin that has room for `length`, or None if there is no such bin."""
        fitting = self.rooms >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else None

    def fill(self, room: int, length: int, rows: int) -> int:
        """Put up to `rows` rows into one group of bins with `room` tokens free; return how many were put."""
        first, bins = self._take(room)
        each = room // length
        full = min(bins, rows // each)
        if full:
            self._put(first, full, each, room - each * length)
            first, bins, rows = first + full, bins - full, rows - full * each
        rest = rows if bins and rows < each else 0
        if rest:
            self._put(first, 1, rest, room - rest * length)
            first, bins = first + 1, bins - 1
        if bins:
            self._file(room, first, bins)
        return full * each + rest

    def bin_of_each_row(self) -> npt.NDArray[np.int64]:
        """Return (rows,) the bin of each row, for the rows from the longest to the shortest."""
        first, bins, each = np.asarray(self.placed, dtype=np.int64).T
        rows = bins * each
        begin = np.cumsum(rows) - rows
        within: npt.NDArray[np.int64] = np.arange(rows.sum()) - np.repeat(
            begin, rows
        )  # number of a row in its placement
        bin_of_row: npt.NDArray[np.int64] = np.repeat(first, rows) + within // np.repeat(each, rows)
        return bin_of_row

    def _put(self, first: int, bins: int, each: int, room: int) -> None:
        self.placed.append((first, bins, each))
        if room:
            self._file(room, first, bins)

    def _file(self, room: int, first: int, bins: int) -> None:
        self.groups.setdefault(room, []).append((first, bins))
        self.rooms |= 1 << room

    def _take(self, room: int) -> tuple[int, int]:
        groups = self.groups[room]
        group = groups.pop()
        if not groups:
            self.rooms &= ~(1 << room)
        return group


def _stable_argsort(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the order that sorts small non-negative numbers; equal ones keep theirs."""
    if values.max() < 2**16:
        return np.argsort(values.astype(np.uint16), kind="stable").astype(np.int64)  # by radix, in linear time
    return np.argsort(values, kind="stable").astype(np.int64)
