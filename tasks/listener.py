"""Who is told what the stages of this run do: the terminal, when `sft run` started it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from stages.stage import StageResult


class Listener(Protocol):
    """Is told about the stages of a run, in the thread that runs them."""

    def started(self, stage: str) -> None:
        """A stage is being looked up or produced."""

    def progress(self, stage: str, done: float, total: float | None, unit: str, **detail: Any) -> None:
        """A stage has got this far."""

    def log(self, stage: str, line: str) -> None:
        """A stage says something."""

    def retrying(self, stage: str, reason: str) -> None:
        """A stage failed in a way that can pass and will be tried again."""

    def finished(self, result: StageResult) -> None:
        """A stage has its artifact."""


class Silence:
    """A listener that does nothing."""

    def started(self, stage: str) -> None:
        """Ignore it."""

    def progress(self, stage: str, done: float, total: float | None, unit: str, **detail: Any) -> None:
        """Ignore it."""

    def log(self, stage: str, line: str) -> None:
        """Ignore it."""

    def retrying(self, stage: str, reason: str) -> None:
        """Ignore it."""

    def finished(self, result: StageResult) -> None:
        """Ignore it."""


_current: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listener() -> Listener:
    """Return who listens to this run."""
    return _current.get() or Silence()


@contextmanager
def listening(who: Listener) -> Iterator[None]:
    """Let `who` listen to the runs inside this block."""
    token = _current.set(who)
    try:
        yield
    finally:
        _current.reset(token)
