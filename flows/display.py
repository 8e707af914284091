"""What a person sees on the terminal while a run goes on: a live table of the stages, or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stages.pack.parts import told
from stages.stage import StageResult

SECONDS_BETWEEN_LINES = 5.0
LOG_LINES_SHOWN = 4
_COLOURS = {
    "waiting": "dim",
    "running": "yellow",
    "retrying": "magenta",
    "ran": "green",
    "reused": "cyan",
    "failed": "red",
}


@dataclass
class _Row:
    status: str = "waiting"
    started: float = 0.0
    seconds: float | None = None
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    first: tuple[float, float] | None = None  # (time, done) of the first report: rates count from there
    detail: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def rate(self) -> float | None:
        """Return units per second since the first report."""
        if self.first is None or time.monotonic() - self.first[0] < 0.5:
            return None
        return (self.done - self.first[1]) / (time.monotonic() - self.first[0])

    def remaining(self) -> float | None:
        """Return the seconds that are left at this rate."""
        rate = self.rate()
        return (self.total - self.done) / rate if self.total and rate else None


class LiveTable:
    """A table with a row per stage that is redrawn in place, and the last log lines below it."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        self._rows = {stage: _Row() for stage in stages}
        self._log: list[str] = []
        self._live = Live(self, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        for row in self._rows.values():
            if row.status in ("running", "retrying"):
                row.status = "failed" if kind else row.status
        if kind is None:
            self._log.clear()
        self._live.stop()

    def started(self, stage: str) -> None:
        """A stage begins."""
        self._rows[stage] = _Row(status="running", started=time.monotonic())

    def progress(self, stage: str, done: float, total: float | None, unit: str, **detail: Any) -> None:
        """A stage has got this far."""
        row = self._rows[stage]
        row.first = row.first or (time.monotonic(), done)
        row.done, row.total, row.unit = done, total, unit
        row.detail.update(detail)

    def log(self, stage: str, line: str) -> None:
        """Show a line below the table."""
        self._log = [*self._log, f"{stage}: {line}"][-LOG_LINES_SHOWN:]

    def retrying(self, stage: str, reason: str) -> None:
        """A stage will be tried again."""
        self._rows[stage].status, self._rows[stage].note = "retrying", reason.splitlines()[0]

    def finished(self, result: StageResult) -> None:
        """A stage has its artifact."""
        row = self._rows[result.stage]
        row.status, row.seconds, row.note = result.status, result.seconds, summary(result)

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, width in (("stage", 9), ("", 9), ("", 20)):
            table.add_column(name, width=width)
        table.add_column("time", justify="right", width=7)
        table.add_column("")
        for stage, row in self._rows.items():
            table.add_row(stage, Text(row.status, _COLOURS[row.status]), _bar(row), _clock(row), _note(row))
        return Group(table, *(Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in self._log))


def _bar(row: _Row) -> ProgressBar | str:
    if row.status == "running" and row.total:
        return ProgressBar(total=row.total, completed=row.done, width=20)
    return ProgressBar(total=None, pulse=True, width=20) if row.status == "running" else ""


def _clock(row: _Row) -> str:
    if row.status == "waiting":
        return ""
    return duration(row.seconds if row.seconds is not None else time.monotonic() - row.started)


def _note(row: _Row) -> Text:
    if row.status != "running" or not row.unit:
        return Text(row.note, no_wrap=True, overflow="ellipsis")
    parts = [f"{row.done:,.0f}{f'/{row.total:,.0f}' if row.total else ''} {row.unit}"]
    if (rate := row.rate()) is not None:
        parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
    if (left := row.remaining()) is not None:
        parts.append(f"{duration(left)} left")
    parts += [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in row.detail.items() if value is not None]
    return Text(" · ".join(parts), no_wrap=True, overflow="ellipsis")


class PlainLines:
    """One line per event, for logs: no colours, no cursor movements."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._last = 0.0

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *error: object) -> None:
        sys.stderr.flush()

    def started(self, stage: str) -> None:
        """A stage begins."""
        if not self._quiet:
            _line(f"{stage}: started")

    def progress(self, stage: str, done: float, total: float | None, unit: str, **detail: Any) -> None:
        """Write a line every few seconds."""
        if self._quiet or time.monotonic() - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = time.monotonic()
        figures = "".join(f" {name}={_figure(value)}" for name, value in detail.items() if value is not None)
        _line(f"{stage}: {done:,.0f}{f' of {total:,.0f}' if total else ''} {unit}{figures}")

    def log(self, stage: str, line: str) -> None:
        """Write the line."""
        if not self._quiet:
            _line(f"{stage}: {line}")

    def retrying(self, stage: str, reason: str) -> None:
        """A stage will be tried again."""
        _line(f"{stage}: will be tried again: {reason.splitlines()[0]}")

    def finished(self, result: StageResult) -> None:
        """Write what became of the stage."""
        if not self._quiet:
            note = summary(result)
            _line(f"{result.stage}: {result.status} in {result.seconds:.1f} s{f': {note}' if note else ''}")


def _line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def summary(result: StageResult) -> str:
    """Return the figures of an artifact that a person wants to see, in a few words."""
    facts = result.artifact.facts
    match result.stage:
        case "fetch":
            return f"{sum(dataset['rows'] for dataset in facts['datasets']):,} rows"
        case "tokenize":
            share = facts["trained_tokens"] / max(1, facts["tokens"])
            return f"{facts['tokens']:,} tokens, {share:.0%} trained{_rejected(facts)}"
        case "pack":
            train = facts["train"]
            return f"{train['sequences']:,} sequences, {train['efficiency']:.1%} full{_rejected(facts)}"
        case "train":
            return f"{facts['steps']:,} steps, loss {_figure(facts['first_loss'])} to {_figure(facts['final_loss'])}"
        case "publish":
            return str(facts["to"])
    return ""


def _rejected(facts: dict[str, Any]) -> str:
    lost = told(facts["rejected"])
    return f"; rows rejected: {lost}" if lost else ""


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Return seconds as a person says them.

    >>> duration(4.21), duration(75), duration(4000)
    ('4.2s', '1m15s', '1h07m')
    """
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
