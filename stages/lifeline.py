"""Processes that never outlive the one that started them, however it dies.

`python -m stages.lifeline PARENT_PID COMMAND ...` becomes COMMAND, which the kernel kills when PARENT_PID is gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process (SIGKILL) when its parent dies; exit if it is dead already.

    The request survives `exec`, not `fork`. It is tied to the parent's thread that started this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def end_with_parent() -> None:
    """Ask the kernel to end this process (SIGTERM: it may tidy up) when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@contextmanager
def sigterm_once() -> Iterator[None]:
    """Let only the first SIGTERM interrupt this process meanwhile, so that no other cuts its tidying up short.

    A parent that dies sends one for each of its threads, and who cancels may ask twice. Elsewhere than in the main
    thread, which alone is interrupted, nothing is changed.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler(number, frame)

    signal.signal(signal.SIGTERM, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def bound(command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` bound to the life of this process."""
    return [sys.executable, "-m", "stages.lifeline", str(os.getpid()), *command]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
