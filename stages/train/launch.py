"""Starts torchrun, follows what the training writes, and ends every process of it, whatever happens here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from stages.lifeline import bound
from stages.stage import Context
from stages.train.job import Job, WorkFolder
from stages.train.metrics import MetricsTail

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0
"""Time for a last checkpoint between SIGTERM and SIGKILL; whoever cancels this process waits 30 s."""


def launch(job: Job, work: WorkFolder, context: Context, *, threads: int, steps: int) -> int:
    """Train in child processes until they end, and return torchrun's exit code.

    Whatever leaves this function (an error, a cancellation), no process of the training is left behind.
    """
    with work.log.open("ab") as log:
        process = subprocess.Popen(
            _command(job, work), stdout=log, stderr=log, env=_environment(threads), start_new_session=True
        )
    follower = Follower(work, context, steps)
    try:
        while process.poll() is None:
            follower.look()
            time.sleep(POLL_SECONDS)
        follower.look()
        return process.returncode
    finally:
        end_tree(process, GRACE_SECONDS)


def end_tree(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask a process to end, give it `grace` seconds, then kill it and all its descendants."""
    family = _family(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    for member in [*family, *_family(process.pid)]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=5)
    process.wait()


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


def _command(job: Job, work: WorkFolder) -> list[str]:
    torchrun = ["--nnodes=1", f"--nproc-per-node={job.world_size}", "--max-restarts=0"]
    meeting = [
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        f"--rdzv-id={job.key[:16]}",
        "--local-addr=127.0.0.1",
    ]
    training = ["-m", "stages.train", str(work.job)]
    agent = [sys.executable, "-m", "stages.train.agent", str(work.agent_report)]
    return bound([*agent, *torchrun, *meeting, *training])


def _environment(threads: int) -> Mapping[str, str]:
    """Return the environment of the training: ours, on this machine's loopback alone."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "COMET_DISABLE_AUTO_LOGGING": "1",  # where it is installed it would log on its own, asked or not
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS gives the same bits again only with a fixed workspace
        "GLOO_SOCKET_IFNAME": "lo",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; psutil recognises a reused process id and never kills a stranger."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
