"""The quick start's processes: torch is imported in them only, and only when there is work for it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from stages.errors import StageError


def output_of(command: Sequence[str]) -> bytes:
    """Return the standard output of a command; what it says beside that is shown only if it fails.

    Raises:
        StageError: it failed.
    """
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads wait for each other when the machine is busy
    done = subprocess.run(command, env=one_thread, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise StageError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{said}")
    return done.stdout


def exit_code_of(command: Sequence[str]) -> int:
    """Run a command on this terminal and return its exit code; SIGTERM is passed on to it."""
    with subprocess.Popen(command) as process:

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        previous = signal.signal(signal.SIGTERM, pass_on)
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
