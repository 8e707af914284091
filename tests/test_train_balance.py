"""Steps whose sequences cost the same, against costs and waiting worked out one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.pack import pack_best_fit
from stages.tokens import Packs
from stages.train.balance import (
    EMPTY,
    Costs,
    Order,
    epoch_order,
    rank_passes,
    sequence_costs,
    training_costs,
    waiting,
)
from tests.train_data import Bench

PAIR_COST = 1 / 49_152  # of a model as wide as Llama 3 8B would be without its grouped heads


def packs_of(sequences: list[list[int]]) -> Packs:
    """Sequences given as the lengths of their samples."""
    flat = np.array([length for sequence in sequences for length in sequence], np.int32)
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return Packs(offsets, np.arange(len(flat)), np.zeros(len(flat), np.int32), flat)


def real_packs(capacity: int) -> Packs:
    """Lengths as those of real chats with long ones among them: log-normal, half below 490 tokens, mean about 1,000."""
    drawn = np.random.default_rng(0).lognormal(6.2, 1.2, 200_000)
    lengths = np.clip(drawn, 2, capacity).astype(np.int32)
    offsets, order = pack_best_fit(lengths, capacity)
    return Packs(offsets, order, np.zeros(len(order), np.int32), lengths[order])


def time_lost(costs: Costs, steps: Order, passes: int, world_size: int) -> float:
    """Return the time that is waited over the time that is worked: every process waits for the slowest of a pass."""
    worked = waited = 0.0
    for step in steps.tolist():
        if EMPTY in step:
            continue
        shares = rank_passes(np.array(step), passes=passes, world_size=world_size).tolist()
        for number in range(passes):
            loads = [sum(costs[sequence] for sequence in share[number]) for share in shares]
            worked += sum(loads)
            waited += sum(max(loads) - load for load in loads)
    return waited / worked


def test_a_sequence_costs_its_tokens_and_the_squares_of_its_samples() -> None:
    packs = packs_of([[16], [2] * 8, [3, 5]])
    assert sequence_costs(packs, 0.5).tolist() == [16 + 0.5 * 256, 16 + 0.5 * 32, 8 + 0.5 * 34]
    assert sequence_costs(packs_of([]), 0.5).tolist() == []


@pytest.mark.parametrize("capacity", [16_384, 32_768])
@pytest.mark.parametrize(("passes", "world_size", "micro"), [(1, 8, 1), (4, 4, 2)])
def test_processes_wait_less_than_one_percent_of_the_time(
    capacity: int, passes: int, world_size: int, micro: int
) -> None:
    costs, batch = sequence_costs(real_packs(capacity), PAIR_COST), passes * world_size * micro
    balanced = epoch_order(1, 0, costs, batch)
    at_random = epoch_order(1, 0, np.ones(len(costs)), batch)
    assert time_lost(costs, balanced, passes, world_size) < 0.01
    assert time_lost(costs, at_random, passes, world_size) > 0.05
    told = waiting(costs, at_random, passes=passes, world_size=world_size)
    assert told / (1 - told) == pytest.approx(time_lost(costs, at_random, passes, world_size))


@given(
    lengths=st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=3), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_holds_every_sequence_once_and_only_its_last_step_is_short(
    lengths: list[list[int]], batch: int, seed: int
) -> None:
    costs = sequence_costs(packs_of(lengths), PAIR_COST)
    steps = epoch_order(seed, 0, costs, batch)
    assert sorted(steps[steps != EMPTY].tolist()) == list(range(len(lengths)))
    assert steps.shape == (-(-len(lengths) // batch), batch)
    assert EMPTY not in steps[:-1]
    assert steps.tolist() == epoch_order(seed, 0, costs, batch).tolist()


def test_the_steps_do_not_depend_on_who_computes_them() -> None:
    """Eight sequences on one process, or on four with a pass each, or on two with two passes: the same eight."""
    step = epoch_order(3, 1, sequence_costs(packs_of([[n, n % 7 + 1] for n in range(1, 90)]), PAIR_COST), 8)[2]
    for passes, world_size in ((1, 1), (8, 1), (1, 4), (2, 2), (1, 8)):
        shares = rank_passes(step, passes=passes, world_size=world_size)
        assert shares.shape == (world_size, passes, 8 // passes // world_size)
        assert sorted(shares.ravel().tolist()) == sorted(step.tolist())


def test_equal_costs_leave_the_order_random_and_epochs_differ() -> None:
    costs = sequence_costs(packs_of([[100 + n % 2] for n in range(64)]), PAIR_COST)  # within the tolerance
    first, second = epoch_order(1, 0, costs, 8), epoch_order(1, 1, costs, 8)
    assert first.tolist() != second.tolist()
    assert len({tuple(sorted(step % 2)) for step in first.tolist() for step in [np.array(step)]}) > 1


def test_dear_and_cheap_steps_are_mixed_over_the_epoch() -> None:
    costs = sequence_costs(packs_of([[n] for n in range(1, 801)]), PAIR_COST)
    means = costs[epoch_order(1, 0, costs, 8)].mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


def test_rows_are_grouped_by_what_they_cost_where_that_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [9, 30, 9, 30, 9, 30], [[row] for row in range(6)], held_out=0)
    costs = training_costs(bench.run(group_by_length=True), bench.train_packs, bench.model)
    steps = epoch_order(1, 0, costs, 3)
    assert sorted(sorted(step) for step in steps.tolist()) == [[0, 2, 4], [1, 3, 5]]
    assert np.ptp(training_costs(bench.run(), bench.train_packs, bench.model)) == 0
