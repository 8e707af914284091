"""The monitor of a running training: says when it falls ill, and stops it when it is past help."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from configs.schema import RunConfig
from stages.errors import StageError
from stages.train.checkpoints import write_whole
from stages.train.health import ENOUGH_STEPS, SEVERITY, Setting, as_record, judge
from stages.train.schedule import Schedule

NEEDS_TIME = frozenset({"flat", "rising", "unusual", "apart", "none"})
"""Signs that say little in the first tenth of a training, or little at all while it runs."""

logger = logging.getLogger(__name__)


def setting_of(run: RunConfig, schedule: Schedule, model: PreTrainedModel) -> Setting:
    """Return what a judgement needs to know of a training."""
    vocabulary = model.config.get_text_config().vocab_size
    flat = run.lr_scheduler == "cosine" and run.cosine_min_lr_ratio == 1
    shape = "constant_with_warmup" if flat else run.lr_scheduler
    return Setting(schedule.steps, schedule.warmup_steps, run.learning_rate, shape, vocabulary)


def watchers(run: RunConfig, schedule: Schedule, model: PreTrainedModel, verdict: Path | None) -> list[TrainerCallback]:
    """Return what watches a training; one process writes the verdict to a file when the training ends."""
    monitor = HealthMonitor(setting_of(run, schedule, model), verdict)
    if run.loss_watchdog_threshold is None:
        return [monitor]
    return [monitor, Watchdog(run.loss_watchdog_threshold, run.loss_watchdog_patience)]


class HealthMonitor(TrainerCallback):  # type: ignore[misc]
    """Warns in the log once for each sign of illness, with the evidence and what to do."""

    def __init__(self, setting: Setting, verdict: Path | None) -> None:
        self._setting, self._verdict = setting, verdict
        self._every = max(1, min(50, setting.steps // 20))
        self._told: set[tuple[str, str]] = set()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Judge what was recorded so far."""
        step = state.global_step
        if step % self._every and "eval_loss" not in kwargs["logs"]:
            return
        early = step < self._setting.warmup_steps + max(ENOUGH_STEPS, self._setting.steps // 10)
        for finding in judge(state.log_history, self._setting):
            mark = (finding.row, finding.sign)
            unsure = finding.sign in NEEDS_TIME and (early or finding.sign in ("unusual", "none"))
            if SEVERITY.index(finding.status) < SEVERITY.index("watch") or mark in self._told or unsure:
                continue
            self._told.add(mark)
            logger.warning("health, step %d, %s: %s %s", step, finding.row, finding.text, finding.remedy)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the verdict."""
        if self._verdict is not None:
            write_whole(self._verdict, as_record(judge(state.log_history, self._setting)))


class Watchdog(TrainerCallback):  # type: ignore[misc]
    """Stops a training whose loss stays above a threshold for some steps in a row, on all processes alike."""

    def __init__(self, threshold: float, patience: int) -> None:
        self._threshold, self._patience = threshold, patience

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the last steps.

        Raises:
            StageError: the loss was above the threshold in every one of them.
        """
        losses = [record["loss"] for record in state.log_history if "loss" in record][-self._patience :]
        if len(losses) == self._patience and all(loss > self._threshold for loss in losses):
            raise StageError(
                f"step {state.global_step}: the loss was above loss_watchdog_threshold ({self._threshold:g}) for "
                f"{self._patience} steps in a row; it is {losses[-1]:.4g}. Lower learning_rate, look at the label mask "
                "with `sft inspect`, or raise loss_watchdog_threshold. Checkpoints before this step are kept."
            )
