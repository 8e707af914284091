"""When what happens in a training, by eye and over all inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import RunConfig
from stages.train.balance import EMPTY, epoch_order
from stages.train.schedule import Schedule, plan_schedule


def run_config(**keys: Any) -> RunConfig:
    base = {"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}], "learning_rate": 1e-4}
    return RunConfig.model_validate({**base, "micro_batch_size": 2, "gradient_accumulation_steps": 2, **keys})


def plan(sequences: int = 100, evals: int = 0, world_size: int = 1, **keys: Any) -> Schedule:
    return plan_schedule(run_config(**keys), sequences=sequences, eval_sequences=evals, world_size=world_size)


def test_steps_are_counted_exactly() -> None:
    assert plan(100).steps == 25
    assert plan(101).steps == 26  # one sequence is left over, and trained
    assert plan(101, world_size=2).steps == 13
    assert plan(101, num_epochs=3).steps == 78
    assert plan(100, num_epochs=0.5).steps == 13
    assert plan(40, num_epochs=1.1).steps == 11  # 1.1 * 10 is 11.000000000000002 in binary
    assert plan(101, num_epochs=3, max_steps=50).steps == 50
    assert plan(101, num_epochs=3, max_steps=500).steps == 78


def test_warmup_is_given_or_a_share_or_three_percent() -> None:
    assert plan(400, warmup_steps=7).warmup_steps == 7
    assert plan(400, warmup_ratio=0.1).warmup_steps == 10
    assert plan(400).warmup_steps == 3
    assert plan(400_000).warmup_steps == 100
    assert plan(400, warmup_steps=0).warmup_steps == 0
    assert plan(400, warmup_steps=1).warmup_steps == 2
    assert plan(160).warmup_steps == 2  # 3 % of 40 steps is 1, which would be one step at rate zero


def test_log_lines_are_half_a_percent_apart_and_at_most_ten_steps() -> None:
    assert plan(400).logging_steps == 1
    assert plan(4000).logging_steps == 5
    assert plan(40_000).logging_steps == 10
    assert plan(400, logging_steps=33).logging_steps == 33


@pytest.mark.parametrize(
    ("keys", "saves"),
    [
        ({}, {26, 52, 78}),
        ({"max_steps": 60}, {26, 52, 60}),
        ({"save_steps": 30}, {30, 60}),
        ({"save_steps": 0.5}, {39, 78}),
        ({"saves_per_epoch": 2}, {13, 26, 39, 52, 65, 78}),
        ({"saves_per_epoch": 0}, set()),
    ],
)
def test_checkpoints(keys: dict[str, Any], saves: set[int]) -> None:
    assert plan(101, num_epochs=3, **keys).saves == saves


def test_evaluation_is_always_made_at_the_end_if_there_is_a_set_for_it() -> None:
    assert plan(100, evals=5).evals == {25}
    assert plan(100, evals=5, val_set_size=5, eval_steps=10).evals == {10, 20, 25}
    assert plan(100, evals=5, evals_per_epoch=2).evals == {13, 25}
    assert plan(100, evals=0).evals == frozenset()


@given(
    sequences=st.integers(1, 60),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 4),
    epochs=st.floats(0.1, 4),
    seed=st.integers(0, 2**32),
)
def test_every_epoch_holds_every_sequence_once(
    sequences: int, micro: int, accumulation: int, world_size: int, epochs: float, seed: int
) -> None:
    keys = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "num_epochs": epochs, "seed": seed}
    schedule = plan(sequences, world_size=world_size, **keys)
    steps = list(schedule.step_sequences())
    assert len(steps) == schedule.steps
    assert schedule.steps >= epochs * sequences / (micro * accumulation * world_size) - 1e-6
    for epoch in range(math.floor(schedule.epochs)):
        seen = np.concatenate(steps[epoch * schedule.steps_per_epoch : (epoch + 1) * schedule.steps_per_epoch])
        assert sorted(seen[seen != EMPTY]) == list(range(sequences))


@given(sequences=st.integers(1, 60), epochs=st.floats(0.1, 3), first=st.integers(1, 40))
def test_a_resumed_training_sees_the_steps_that_are_left(sequences: int, epochs: float, first: int) -> None:
    schedule = plan(sequences, num_epochs=epochs)
    steps, rest = list(schedule.step_sequences()), list(schedule.step_sequences(first))
    assert [step.tolist() for step in rest] == [step.tolist() for step in steps[first - 1 :]]


@given(sequences=st.integers(1, 100), seed=st.integers(0, 2**64), epoch=st.integers(0, 5))
def test_the_order_depends_on_the_batch_of_all_processes_alone(sequences: int, seed: int, epoch: int) -> None:
    costs = np.ones(sequences)
    one, two = epoch_order(seed, epoch, costs, 8), epoch_order(seed, epoch, costs, 4)
    flat_one, flat_two = one.ravel(), two.ravel()
    assert flat_one[flat_one != EMPTY].tolist() == flat_two[flat_two != EMPTY].tolist()


def test_a_curriculum_keeps_the_order_in_every_epoch() -> None:
    steps = [step.tolist() for step in plan(10, num_epochs=2, curriculum_sampling=True).step_sequences()]
    assert steps == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, EMPTY, EMPTY]] * 2


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = [epoch_order(seed, epoch, np.ones(50), 1).ravel().tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(1, 0, np.ones(6), 3).tolist() == epoch_order(1, 0, np.ones(6), 3).tolist()
