"""Asking again: growing delays with jitter, within a budget of time that starts anew with every progress."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from stages.remote.failures import can_pass, retry_after

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long, and how often, something is tried again.

    Attributes:
        seconds: since the last progress, after which an error is final.
        first: seconds of the first delay; each is twice the one before, up to `longest`, times a factor of 0.5 to 1.5.
        longest: seconds.
    """

    seconds: float
    first: float = 0.2
    longest: float = 20.0

    def call(self, work: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """Return what `work` returns, called until it succeeds or its error is final.

        Args:
            work: what is tried; it continues where the last try was, if it can.
            progress: how far it is, in any unit. More than at the last try starts the budget anew.

        Raises:
            Exception: the last error, if it cannot pass or the budget is spent.
        """
        reached, since, tries = progress(), time.monotonic(), 0
        while True:
            try:
                return work()
            except Exception as error:
                if progress() > reached:
                    reached, since, tries = progress(), time.monotonic(), 0
                delay = max(self._delay(tries), retry_after(error))
                if not can_pass(error) or time.monotonic() + delay - since > self.seconds:
                    raise
            time.sleep(delay)
            tries += 1

    def _delay(self, tries: int) -> float:
        return min(self.longest, self.first * 2.0 ** min(tries, 16)) * random.uniform(0.5, 1.5)  # noqa: S311  no secret


ASKING = Patience(4.0)
"""For questions that this machine may have the answer to: a laptop without network must not wait."""
FINDING = Patience(20.0)
"""For what a person waits for: listing, sizes."""
READING = Patience(180.0)
"""For downloads: a store that throttles for minutes, or restarts, is waited for."""
