"""The packing core, against best-fit decreasing done row by row."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.pack import pack_best_fit

CASES = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=120), st.just(capacity))
)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Pack one row at a time; return the lengths in each bin."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [held for held in bins if sum(held) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return bins


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    """Return the rows of each bin."""
    offsets, order = pack_best_fit(np.asarray(lengths, dtype=np.int32), capacity)
    assert offsets[0] == 0
    assert offsets[-1] == len(order)
    return [order[begin:end].tolist() for begin, end in pairwise(offsets)]


def test_the_example_of_the_docstring() -> None:
    assert packed([6, 3, 1, 6, 2, 4, 3], 10) in ([[0, 5], [3, 1, 2], [6, 4]], [[0, 1, 2], [3, 5], [6, 4]])


@given(CASES)
def test_bins_are_filled_as_by_the_row_by_row_rule(case: tuple[list[int], int]) -> None:
    """Which of two equally full bins takes a row is open, so the fills are compared, not the rows."""
    lengths, capacity = case
    ours = sorted(sum(lengths[row] for row in rows) for rows in packed(lengths, capacity))
    assert ours == sorted(map(sum, best_fit_decreasing(lengths, capacity)))


@given(CASES)
def test_every_row_is_in_one_bin_and_no_bin_overflows(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    bins = packed(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= capacity for rows in bins)
    assert bins == packed(lengths, capacity)


@pytest.mark.parametrize("lengths", [[0], [11], [5, -1]])
def test_a_length_that_fits_no_bin_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="between 1 and 10"):
        pack_best_fit(np.asarray(lengths), 10)


@pytest.mark.parametrize("capacity", [2048, 8192])
def test_a_million_rows_are_packed_fast_and_tight(capacity: int) -> None:
    """Lengths spread as those of real chats are: log-normal, half of them below 330 tokens."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.8, 0.9, 1_000_000), 2, capacity).astype(np.int32)
    started = time.process_time()
    offsets, order = pack_best_fit(lengths, capacity)
    assert time.process_time() - started < 2  # 0.15 s where it was written; the slack is for slow machines
    fewest = -(-int(lengths.sum()) // capacity)
    assert fewest / (len(offsets) - 1) > 0.999
    assert np.add.reduceat(lengths[order], offsets[:-1]).max() <= capacity
