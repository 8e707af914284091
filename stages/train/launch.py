"""Starts torchrun, follows what the training writes, and ends every process of it, whatever happens here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from stages.lifeline import sigterm_once
from stages.stage import Context
from stages.train.engines import start_agents
from stages.train.job import Job, WorkFolder
from stages.train.metrics import MetricsTail

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0
"""Time for a last checkpoint between SIGTERM and SIGKILL; whoever cancels this process waits 30 s."""


def launch(job: Job, work: WorkFolder, context: Context, *, threads: int, steps: int) -> int:
    """Train in child processes until they end, and return torchrun's exit code.

    Whatever leaves this function (an error, a cancellation), no process of the training is left behind.
    """
    with sigterm_once():
        follower = Follower(work, context, steps)
        agents = start_agents(job, work, threads=threads)
        try:
            while (code := agents.poll()) is None:
                follower.look()
                time.sleep(POLL_SECONDS)
            follower.look()
            return code
        finally:
            agents.end(GRACE_SECONDS)


class Follower:
    """Hands on what a training writes: log lines, at a bearable rate, and metrics as progress."""

    def __init__(self, work: WorkFolder, context: Context, steps: int) -> None:
        self._lines = LineTail(work.log)
        self._metrics = MetricsTail(work.metrics)
        self._gate = RateLimit()
        self._context, self._steps = context, steps
        self._metrics.read()  # an earlier try wrote these

    def look(self) -> None:
        """Hand on what is new."""
        for line in self._lines.read():
            self._gate(line, self._context.log)
        for record in self._metrics.read():
            if "loss" in record:
                detail = {name: record[name] for name in ("loss", "learning_rate", "tokens_per_second")}
                self._context.progress(record["step"], self._steps, "steps", **detail)
            else:
                self._context.progress(record["step"], self._steps, "steps", eval_loss=record["eval_loss"])


class LineTail:
    """Reads a growing text file from where it ends now; a progress bar's carriage returns end lines too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[str]:
        """Return the lines that were finished since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        self._offset += len(content)
        *lines, self._rest = (self._rest + content.replace(b"\r", b"\n")).split(b"\n")
        return [line.decode(errors="replace") for line in lines if line.strip()]


class RateLimit:
    """Lets a burst of lines through, then a few a second; says how many it held back."""

    def __init__(self, burst: int = 50, per_second: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._credit, self._at, self._held = float(burst), clock(), 0

    def __call__(self, line: str, log: Callable[[str], None]) -> None:
        """Pass a line on, or hold it back."""
        now = self._clock()
        self._credit = min(self._burst, self._credit + (now - self._at) * self._per_second)
        self._at = now
        if self._credit < 1:
            self._held += 1
            return
        if self._held:
            log(f"({self._held} lines are only in train.log)")
            self._held = 0
        self._credit -= 1
        log(line)
