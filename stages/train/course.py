"""The course of a training, on all processes alike: evaluations, checkpoints, and where it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configs.schema import RunConfig
from stages.train.checkpoints import PREFIX, rotate, seal
from stages.train.schedule import Schedule
from stages.train.stopping import StopFlag

logger = logging.getLogger(__name__)


class Course(TrainerCallback):  # type: ignore[misc]
    """Evaluates, saves and stops at the steps of the schedule, or where the loss on the evaluation set says so.

    Attributes:
        stopped_at: step after which SIGTERM stopped the training; None if none did.
    """

    def __init__(self, run: RunConfig, schedule: Schedule, stop: StopFlag, *, key: str) -> None:
        self._run, self._schedule, self._stop, self._key = run, schedule, stop, key
        self.stopped_at: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the best checkpoint again."""
        self._note_best(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what follows this step."""
        step = state.global_step
        control.should_evaluate = step in self._schedule.evals
        control.should_save = step in self._schedule.saves
        if step < self._schedule.steps and self._asked_to_stop(args):
            self.stopped_at = step
            args.save_only_model = False  # from this checkpoint the training goes on
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep what is best so far; end a training that does not get better any more."""
        step = state.global_step
        if self._run.keeps_best and best_step(state.log_history) == step:
            control.should_save = True
        patience = self._run.early_stopping_patience
        if patience is not None and evaluations_since_best(state.log_history) >= patience:
            logger.info("step %d: no better than at step %d; training ends", step, best_step(state.log_history))
            control.should_training_stop, control.should_save, self.stopped_at = True, False, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint as whole when every process has written its part, then remove the oldest."""
        if args.world_size > 1:
            distributed.barrier()
        if args.process_index == 0:
            work, best = Path(args.output_dir), best_step(state.log_history) if self._run.keeps_best else None
            folder = work / f"{PREFIX}{state.global_step}"
            seal(folder, key=self._key, step=state.global_step, resumable=not args.save_only_model)
            rotate(work, self._run.save_total_limit, best=best)
        self._note_best(args, state)

    def _note_best(self, args: TrainingArguments, state: TrainerState) -> None:
        """Tell the Trainer which checkpoint it takes the final weights from; all processes see the same history."""
        best = best_step(state.log_history) if self._run.picks_best else None
        state.best_model_checkpoint = None if best is None else str(Path(args.output_dir) / f"{PREFIX}{best}")

    def _asked_to_stop(self, args: TrainingArguments) -> bool:
        """Return whether any process was asked to stop: the signal reaches them at different steps."""
        if args.world_size == 1:
            return self._stop.is_set
        flag = torch.tensor(int(self._stop.is_set), device=args.device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag.item())


Records = Iterable[Mapping[str, Any]]


def best_step(history: Records) -> int | None:
    """Return the first step with the lowest loss on the evaluation set; None before the first evaluation.

    >>> best_step([{"step": 2, "eval_loss": 3.0}, {"step": 4, "eval_loss": 2.5}, {"step": 6, "eval_loss": 2.5}])
    4
    """
    losses = _losses(history)
    return min(losses, key=lambda point: point[1])[0] if losses else None


def evaluations_since_best(history: Records) -> int:
    """Return how many evaluations in a row, the last ones, were no better than one before them.

    >>> evaluations_since_best([{"step": 2, "eval_loss": 2.5}, {"step": 4, "eval_loss": 2.6}])
    1
    """
    steps, best = [step for step, _ in _losses(history)], best_step(history)
    return 0 if best is None else len(steps) - 1 - steps.index(best)


def _losses(history: Records) -> list[tuple[int, float]]:
    found = ((int(record["step"]), float(record["eval_loss"])) for record in history if "eval_loss" in record)
    return [(step, loss) for step, loss in found if math.isfinite(loss)]
