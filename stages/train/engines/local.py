"""One agent on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

from stages.lifeline import bound
from stages.train.engines.agents import agent_module, environment
from stages.train.job import Job, WorkFolder


class LocalAgents:
    """torchrun's agent as a child of this process, which the kernel ends with it."""

    def __init__(self, job: Job, work: WorkFolder, threads: int) -> None:
        command = [sys.executable, *agent_module(job, work, node=0, meeting="127.0.0.1:0", address="127.0.0.1")]
        variables = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, **environment(threads)}
        with work.log.open("ab") as log:
            self._process = subprocess.Popen(
                bound(command), stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def poll(self) -> int | None:
        """Return torchrun's exit code, or None while it runs."""
        return self._process.poll()

    def end(self, grace: float) -> None:
        """End the agent and every process of the training."""
        end_tree(self._process, grace)


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


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; psutil recognises a reused process id and never kills a stranger."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
