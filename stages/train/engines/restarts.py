"""Agents that are all started again when a process or a machine of theirs is lost.

A new start continues from the newest checkpoint. torchrun's own elasticity is not used: agents that stay would wait for
the one that is gone, under its old name, until a time-out ends them.
"""

from __future__ import annotations

from collections.abc import Callable

from stages.train.engines.agents import RestartableAgents
from stages.train.job import WorkFolder
from stages.train.outcome import is_lost

GRACE_SECONDS = 25.0


class RestartedAgents:
    """The agents of the newest start."""

    def __init__(self, start: Callable[[int], RestartableAgents], work: WorkFolder, restarts: int) -> None:
        """Start the agents.

        Args:
            start: starts them, given how many starts there were before.
            work: where they leave reports and the log.
            restarts: how often they are started again.
        """
        self._start, self._work, self._left = start, work, restarts
        self._starts = 0
        self._agents = start(0)

    def poll(self) -> int | None:
        """Return the code of the training when it is done, or has failed for good."""
        code = self._agents.poll()
        if not code or not self._left or not is_lost(self._work, code):
            return code
        where = ", ".join(self._agents.failed())  # the lost one, or one that missed it first
        self._agents.end(GRACE_SECONDS)
        self._left -= 1
        self._starts += 1
        self._work.clear_reports()
        with self._work.log.open("a") as log:
            log.write(f"a process or node is lost, as {where} tells; all agents are started again ({self._starts})\n")
        self._agents = self._start(self._starts)
        return None

    def end(self, grace: float) -> None:
        """End the agents of the newest start."""
        self._agents.end(grace)
