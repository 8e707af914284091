"""A flag that SIGTERM sets: the training looks at it after each step."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_set = False

    @classmethod
    def on_sigterm(cls) -> StopFlag:
        """Return a flag that SIGTERM sets from now on, in place of ending the process."""
        flag = cls()
        signal.signal(signal.SIGTERM, flag._set)
        return flag

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
