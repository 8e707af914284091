"""A window of steps under PyTorch's profiler: where the time goes, and on a GPU which memory is held."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

MOST_MEMORY_EVENTS = 200_000


class Profiler(TrainerCallback):  # type: ignore[misc]
    """Records `steps` steps after step `start`, in one process, and writes them when the window ends."""

    def __init__(self, start: int, steps: int, trace: Path, snapshot: Path) -> None:
        self._start, self._steps, self._trace, self._snapshot = start, steps, trace, snapshot
        self._window: profile | None = None
        self._began = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the window if it begins with the first step, or where a resumed training is inside it."""
        self._look(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open or close the window: the wait for a step's data comes right after the step before it."""
        self._look(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close a window that goes over the end."""
        self._close(state.global_step)

    def _look(self, step: int) -> None:
        end = self._start + self._steps
        if self._window is not None and step >= end:
            self._close(step)
        elif self._window is None and self._start <= step < end:
            self._open(step)

    def _open(self, step: int) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MOST_MEMORY_EVENTS)
        self._window, self._began = profile(activities=activities, record_shapes=True), step
        self._window.start()

    def _close(self, step: int) -> None:
        if self._window is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels that were asked for belong to the window
            torch.cuda.memory._dump_snapshot(str(self._snapshot))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        self._window.add_metadata_json("sft_steps", f"[{self._began + 1}, {step}]")
        self._window.stop()
        self._window.export_chrome_trace(str(self._trace))
        self._window = None
        logger.info("recorded steps %d to %d in %s: see `sft profile`", self._began + 1, step, self._trace.name)
