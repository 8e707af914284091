"""Hugging Face's Trainer with our batches, and the callback that records what it does."""

from __future__ import annotations

import logging
import math
import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from configs.schema import RunConfig
from stages.errors import StageError
from stages.lifeline import die_with_parent
from stages.train.data import Batch, Batches, RankPasses, eval_passes
from stages.train.learning_rate import own_schedule, parameter_groups
from stages.train.metrics import MetricsLog
from stages.train.offload import OnHost
from stages.train.schedule import Schedule

MOST_ROWS_NAMED = 8

logger = logging.getLogger(__name__)


class PackedTrainer(Trainer):  # type: ignore[misc]
    """Trains on `Batches` in the order of a `Schedule`; the whole training is one of the Trainer's epochs."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        run: RunConfig,
        schedule: Schedule,
        batches: Batches,
        eval_batches: Batches,
        callbacks: list[TrainerCallback],
        inspect: Callable[[PackedTrainer], None],
    ) -> None:
        first = Inspection(lambda: inspect(self))
        super().__init__(model=model, args=args, train_dataset=batches, callbacks=[first, *callbacks])
        self.remove_callback(PrinterCallback)
        self._run, self._schedule, self._batches = run, schedule, batches
        self._eval_batches = eval_batches.by_dataset()
        self._step_tokens: torch.Tensor | int | None = 0
        self.control: TrainerControl
        self.lr_scheduler: LRScheduler | None
        if not self.model_accepts_loss_kwargs:
            raise StageError(
                f"{type(model).__name__}: its loss is a mean per pass, not over all tokens of a step, so short rows "
                "would weigh more than long ones. This model cannot be trained rightly with this version."
            )

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Return this process's batches. Its own generator keeps it away from the one that dropout draws from."""
        sampler = RankPasses(
            self._schedule,
            passes_per_step=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        workers, this_process = self.args.dataloader_num_workers, os.getpid()
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,  # they share the mapped rows
            worker_init_fn=lambda worker: die_with_parent(this_process),
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator(),
        )

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Return the optimizer, over groups of parameters with their own learning rates if there are any."""
        trained = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(trained))
        groups = parameter_groups(trained.named_parameters(), decayed, self._run)
        if groups is not None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Return the schedule of the learning rate: one of ours, or of the Trainer's."""
        if self.lr_scheduler is None:
            self.lr_scheduler = own_schedule(optimizer or self.optimizer, self._run, self._schedule)
        made: LRScheduler = super().create_scheduler(num_training_steps, optimizer)
        return made

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Batch], Any]:
        """Return the passes of a step and its number of trained tokens over all processes, which is kept."""
        samples, self._step_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, self._step_tokens

    def compute_loss_context_manager(self) -> ExitStack:
        """Return what the forward pass runs in: the Trainer's precision, and activations on the CPU if asked for."""
        inside: ExitStack = super().compute_loss_context_manager()
        if self._run.offloads_activations and self.args.device.type == "cuda":
            inside.enter_context(OnHost())
        return inside

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint; FSDP's and DeepSpeed's are in files of their own, written next."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call=_internal_call)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the trained tokens seen so far to a step's record.

        Raises:
            StageError: the loss or the gradient is not finite.
        """
        if "loss" in logs:
            self._refuse_non_finite(logs)
            seen = next((r["trained_tokens"] for r in reversed(self.state.log_history) if "trained_tokens" in r), 0)
            logs["trained_tokens"] = seen + int(self._step_tokens or 0)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss over every trained token of the evaluation set, and of each of its data sets."""
        sums = {d: self._eval_sums(batches) for d, batches in self._eval_batches}
        loss, tokens = (sum(column) for column in zip(*sums.values(), strict=True))
        metrics: dict[str, Any] = {"eval_loss": loss / max(tokens, 1)}
        if len(sums) > 1:
            names = {d: f"{d}: {self._run.sources[d].shown}" for d in sums}  # one path may stand in two of them
            metrics["eval_losses"] = {names[d]: loss / max(tokens, 1) for d, (loss, tokens) in sums.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def rest_optimizer(self) -> None:
        """Take the weights that a schedule-free optimizer is for into the model; while it trains, it holds others."""
        if callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()

    @torch.no_grad()
    def _eval_sums(self, batches: Batches) -> tuple[float, float]:
        """Return the sum of the losses and the number of trained tokens, over all processes."""
        self.model.eval()
        self.rest_optimizer()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # loss, tokens
        rank, world_size = self.args.process_index, self.args.world_size
        per_pass = self.args.per_device_eval_batch_size
        for sequences in eval_passes(len(batches), per_pass, rank=rank, world_size=world_size):
            batch = self._prepare_inputs(batches.__getitems__(sequences))
            tokens = (batch["labels"][:, 1:] != -100).sum()
            loss = self.model(**batch, num_items_in_batch=torch.ones_like(tokens)).loss  # divided by one: the sum
            sums += torch.stack([loss.double(), tokens.double()])
        loss_sum, tokens_sum = self.accelerator.reduce(sums, "sum").tolist()
        return loss_sum, tokens_sum

    def _refuse_non_finite(self, logs: dict[str, float]) -> None:
        names = ["loss"] if self.args.fp16 else ["loss", "grad_norm"]  # float16 scales until the gradient fits
        for name in names:
            if not math.isfinite(logs.get(name, 0.0)):
                raise StageError(
                    f"step {self.state.global_step}: {name} is {logs[name]}, so the weights are lost from here on. "
                    f"Lower learning_rate (now {self._run.learning_rate:g}), lengthen warmup_steps, or set bf16: true "
                    f"in place of fp16. In that step: {self._rows_of_step()}. Checkpoints before it are kept."
                )

    def _rows_of_step(self) -> str:
        """Return the rows of the last step, for people: the first few by number."""
        rows = self._batches.sources(next(self._schedule.step_sequences(self.state.global_step)))
        named = ", ".join(f"{self._run.sources[d].shown} row {row}" for d, row in rows[:MOST_ROWS_NAMED])
        more = f" and {len(rows) - MOST_ROWS_NAMED} more" if len(rows) > MOST_ROWS_NAMED else ""
        return named + more


class Inspection(TrainerCallback):  # type: ignore[misc]
    """Looks at the model when it is sharded, on its device, and about to train."""

    def __init__(self, inspect: Callable[[], None]) -> None:
        self._inspect = inspect

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look, before the clock starts."""
        self._inspect()


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes metrics: the mean loss since the last record, and the speed without evaluations and checkpoints."""

    def __init__(self, log: MetricsLog, schedule: Schedule, batches: Batches) -> None:
        self._log, self._schedule, self._batches = log, schedule, batches
        self._started = self._mark = time.monotonic()
        self._seconds, self._tokens = 0.0, 0
        self._sequences = schedule.step_sequences()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock at the step that training starts from."""
        self._sequences = self._schedule.step_sequences(state.global_step + 1)
        self._started = self._mark = time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record a step or an evaluation."""
        logs, step = kwargs["logs"], state.global_step
        if "eval_loss" in logs:
            logger.info("step %d: loss on the evaluation set %.4f", step, logs["eval_loss"])
            epoch = round(step / self._schedule.steps_per_epoch, 4)
            losses = {name: logs[name] for name in ("eval_loss", "eval_losses") if name in logs}
            self._log.append({"step": step, "epoch": epoch, **losses})
        if "loss" not in logs:
            return
        now = time.monotonic()
        self._seconds += now - self._mark
        self._mark = now
        self._tokens += self._batches.tokens(next(self._sequences))
        if self._schedule.logs_at(step):
            self._log.append(self._step_record(args, state, logs, now))
            self._seconds, self._tokens = 0.0, 0

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the time of the evaluation out of the speed."""
        self._mark = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the time of the checkpoint out of the speed."""
        self._mark = time.monotonic()

    def _step_record(
        self, args: TrainingArguments, state: TrainerState, logs: dict[str, float], now: float
    ) -> dict[str, Any]:
        """Return the record of the steps since the last one, and write it to the log for people."""
        step, loss, speed = state.global_step, self._mean_loss(state), self._tokens / max(self._seconds, 1e-9)
        logger.info("step %d of %d: loss %.4f, %.0f tokens/s", step, self._schedule.steps, loss, speed)
        return {
            "step": step,
            "epoch": round(step / self._schedule.steps_per_epoch, 4),
            "loss": loss,
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": round(speed, 1),
            "trained_tokens": logs["trained_tokens"],
            "seconds": round(now - self._started, 3),
            "memory_bytes": _peak_memory(args.device),
        }

    def _mean_loss(self, state: TrainerState) -> float:
        """Return the mean loss of the steps since the last record, those before a resume included."""
        step = state.global_step
        before = step - 1
        while before and not self._schedule.logs_at(before):
            before -= 1
        losses = []
        for record in reversed(state.log_history):
            if record["step"] <= before:
                break
            losses += [record["loss"]] if "loss" in record else []
        return float(sum(losses) / len(losses))


def _as_it_is(batch: Any) -> Any:
    return batch


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
