"""Whether a training fits a device, and what to change, in order, if it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from configs.schema import FsdpConfig, RunConfig
from stages.estimate.activations import Pass
from stages.estimate.memory import Memory, estimate
from stages.estimate.shapes import ModelShape

SAFE = 0.92
"""Share of a device that a training may fill: the rest goes to fragments, and covers the estimate's error."""


HELPS = 0.98
"""A change counts if no more than this share of the memory is left."""


@dataclass(frozen=True)
class Change:
    """Something to set, and the bytes that are needed with it and all changes before it."""

    keys: str
    total: int


@dataclass(frozen=True)
class Fit:
    """Whether a training fits.

    Attributes:
        memory: what it needs on each device.
        available: bytes of a device; None if it is not known.
        fits: None if the device is not known.
        changes: what to set, one on top of the other, until it fits.
    """

    memory: Memory
    available: int | None
    fits: bool | None
    changes: tuple[Change, ...] = ()

    @property
    def enough(self) -> bool:
        """Return whether it fits with all the changes."""
        return bool(self.changes) and self.available is not None and self.changes[-1].total <= SAFE * self.available


def fit(run: RunConfig, shape: ModelShape, step: Pass, processes: int, available: int | None) -> Fit:
    """Return whether a training fits into the available bytes of each device, and else what to change."""
    memory = estimate(run, shape, step, processes)
    if available is None:
        return Fit(memory, None, None)
    fits = memory.total <= SAFE * available
    changes = () if fits else tuple(_changes(run, shape, step, processes, available))
    return Fit(memory, available, fits, changes)


def _changes(run: RunConfig, shape: ModelShape, step: Pass, processes: int, available: int) -> Iterator[Change]:
    """Yield changes one on top of the other, each the first that helps by then, until the training fits."""
    needed = estimate(run, shape, step, processes).total
    while needed > SAFE * available:
        for keys, update in _candidates(run, shape, processes):
            changed = run.model_copy(update=update)
            smaller = replace(step, rows=changed.sequences_per_pass, width=min(step.width, changed.sequence_len))
            total = estimate(changed, shape, smaller, processes).total
            if total <= HELPS * needed:
                run, step, needed = changed, smaller, total
                yield Change(keys, total)
                break
        else:
            return


def _candidates(run: RunConfig, shape: ModelShape, processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (keys as in YAML, update): first what leaves the result as it is, last what changes it most."""
    if not run.recomputes_activations:
        yield "gradient_checkpointing: true", {"gradient_checkpointing": True}
    if run.sequences_per_pass > 1:
        passes = run.passes_per_step * run.sequences_per_pass
        keys = f"micro_batch_size: 1, gradient_accumulation_steps: {passes}"
        yield keys, {"micro_batch_size": 1, "gradient_accumulation_steps": passes, "batch_size": None}
    if processes > 1 and run.sharding == "none":
        yield "fsdp_config: {reshard_after_forward: true}", {"fsdp_config": FsdpConfig()}
    if run.optimizer.startswith("adamw_torch") and run.sharding == "none" and processes == 1:
        yield "optimizer: adamw_8bit", {"optimizer": "adamw_8bit"}
    if run.adapter is None and not shape.quantised:
        lora = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
        yield "adapter: lora, lora_r: 16, lora_alpha: 32, lora_target_linear: true, learning_rate: 0.0002", lora
    if not run.load_in_4bit and not shape.quantised and run.sharding != "zero3":
        update = {"adapter": "qlora", "load_in_4bit": True, "load_in_8bit": False}
        yield "adapter: qlora, load_in_4bit: true", update
    if run.sequence_len > 1024:
        yield f"sequence_len: {run.sequence_len // 2}", {"sequence_len": run.sequence_len // 2}
