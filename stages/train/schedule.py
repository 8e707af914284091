"""When what happens in a training: steps, the order of sequences, warm-up, log lines, checkpoints, evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from configs.schema import RunConfig
from stages.train.balance import Costs, Order, epoch_order, in_order, waiting

SAVE_STEPS = 500
"""Steps between checkpoints with `save_strategy: steps` alone: the Trainer's."""


@dataclass(frozen=True)
class Schedule:
    """The course of a training, in optimizer steps counted from 1.

    Attributes:
        sequences: packed sequences of an epoch.
        batch: sequences of a step, over all processes and passes.
        steps_per_epoch: steps of an epoch; its last one may hold fewer sequences than `batch`.
        steps: steps of the training.
        warmup_steps: steps in which the learning rate rises.
        logging_steps: steps between two records of metrics.
        saves: steps after which a checkpoint is written.
        evals: steps after which the loss on the evaluation set is taken; the last step is always among them.
        seed: seed of the order of sequences.
        in_order: whether each epoch has the sequences in their own order.
        costs: (sequences,) what each costs: those of a step are nearly equal; all the same for a random order.
    """

    sequences: int
    batch: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    logging_steps: int
    saves: frozenset[int]
    evals: frozenset[int]
    seed: int
    in_order: bool
    costs: Costs = field(repr=False, compare=False)

    @property
    def epochs(self) -> float:
        """Return how often each sequence is seen."""
        return self.steps / self.steps_per_epoch

    def step_sequences(self, first: int = 1) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the (batch,) sequence numbers of each step from step `first` on, `EMPTY` where there is none."""
        for epoch in range((first - 1) // self.steps_per_epoch, math.ceil(self.steps / self.steps_per_epoch)):
            order = self.epoch(epoch)
            begin = epoch * self.steps_per_epoch
            yield from order[max(0, first - 1 - begin) : self.steps - begin]

    def epoch(self, epoch: int) -> Order:
        """Return the sequences of an epoch, (steps, batch), `EMPTY` where there is none."""
        if self.in_order:
            return in_order(self.sequences, self.batch)
        return epoch_order(self.seed, epoch, self.costs, self.batch)

    def logs_at(self, step: int) -> bool:
        """Return whether metrics are recorded after this step; they always are after the first and the last."""
        return step in (1, self.steps) or step % self.logging_steps == 0


def plan_schedule(
    run: RunConfig, *, sequences: int, eval_sequences: int, world_size: int, costs: Costs | None = None
) -> Schedule:
    """Return the exact course of a training of `sequences` packed sequences on `world_size` processes."""
    batch = run.sequences_per_pass * run.passes_per_step * world_size
    per_epoch = math.ceil(sequences / batch)
    steps = math.ceil(round(run.num_epochs * per_epoch, 6))  # 1.1 * 10 is a little more than 11 in binary
    if run.max_steps is not None:
        steps = min(steps, run.max_steps)
    evals = _cadence(steps, per_epoch, run.eval_steps, run.evals_per_epoch or (run.eval_strategy == "epoch")) | {steps}
    return Schedule(
        sequences=sequences,
        batch=batch,
        steps_per_epoch=per_epoch,
        steps=steps,
        warmup_steps=_warmup_steps(run, steps),
        logging_steps=run.logging_steps or min(max(int(0.005 * steps), 1), 10),
        saves=_saves(run, steps, per_epoch),
        evals=evals if eval_sequences else frozenset(),
        seed=run.seed,
        in_order=run.curriculum_sampling,
        costs=np.ones(sequences) if costs is None else costs,
    )


def waiting_of(schedule: Schedule, run: RunConfig, world_size: int) -> dict[str, float] | None:
    """Return the share of the first epoch that processes wait for each other, and that of a random order.

    None if there is one process, or if all sequences count as equal.
    """
    if world_size == 1 or np.ptp(schedule.costs) == 0:
        return None
    orders = {
        "share": schedule.epoch(0),
        "in_random_order": epoch_order(schedule.seed, 0, np.ones(schedule.sequences), schedule.batch),
    }
    return {
        name: round(waiting(schedule.costs, order, passes=run.passes_per_step, world_size=world_size), 4)
        for name, order in orders.items()
    }


def _warmup_steps(run: RunConfig, steps: int) -> int:
    """Return the steps of warm-up: as given, or a share of all, or 3 % and at most 100.

    A single step would be one at learning rate zero, so one becomes two.
    """
    if run.warmup_steps is not None:
        wanted = run.warmup_steps
    elif run.warmup_ratio is not None:
        wanted = int(run.warmup_ratio * steps)
    else:
        wanted = min(int(0.03 * steps), 100)
    return 2 if wanted == 1 else wanted


def _saves(run: RunConfig, steps: int, steps_per_epoch: int) -> frozenset[int]:
    """Return the steps after which a checkpoint is written whatever the evaluations say."""
    first = frozenset({1}) if run.save_first_step else frozenset()
    if run.save_steps is not None or run.saves_per_epoch is not None:
        return first | _cadence(steps, steps_per_epoch, run.save_steps, run.saves_per_epoch)
    if run.save_strategy in ("no", "best"):
        return first
    if run.save_strategy == "steps":
        return first | _cadence(steps, steps_per_epoch, SAVE_STEPS, None)
    return first | _cadence(steps, steps_per_epoch, None, 1) | {steps}


def _cadence(steps: int, steps_per_epoch: int, every: float | None, per_epoch: int | None) -> frozenset[int]:
    """Return the steps of something that happens `every` so many steps (below 1: a share of all), or `per_epoch`."""
    if every is not None:
        stride = int(every) if every >= 1 else math.ceil(every * steps)
        return frozenset(range(stride, steps + 1, stride))
    if not per_epoch:
        return frozenset()
    epochs = math.ceil(steps / steps_per_epoch)
    points = (math.ceil(n * steps_per_epoch / per_epoch) for n in range(1, epochs * per_epoch + 1))
    return frozenset(point for point in points if point <= steps)
