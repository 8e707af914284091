"""One agent on each of several hosts, started by SSH.

Every host sees the working folder, the store and this Python under the same paths (a shared file system).
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from stages.errors import StageError
from stages.train.engines.agents import agent_module, environment
from stages.train.engines.local import end_tree
from stages.train.job import Job, WorkFolder


class SshAgents:
    """An agent a host, each held by a remote shell: when that is closed, the agent and its processes end."""

    def __init__(self, job: Job, work: WorkFolder, threads: int, attempt: int) -> None:
        self._job, self._work, self._threads, self._attempt = job, work, threads, attempt
        self._hosts = job.run.launcher.ssh.hosts
        self._shells = [self._start(node) for node in range(len(self._hosts))]

    def poll(self) -> int | None:
        """Return the code of the first agent that has failed, or 0 when every agent is done."""
        codes = [shell.poll() for shell in self._shells]
        if any(codes):
            return next(code for code in codes if code)
        return 0 if all(code == 0 for code in codes) else None

    def failed(self) -> list[str]:
        """Return the hosts whose agents ended with an error."""
        return [host for host, shell in zip(self._hosts, self._shells, strict=True) if shell.poll()]

    def end(self, grace: float) -> None:
        """Close the remote shells, which ends what runs at their other ends."""
        for shell in self._shells:
            if shell.stdin is not None:
                shell.stdin.close()
        for shell in self._shells:
            try:
                shell.wait(grace)
            except subprocess.TimeoutExpired:
                end_tree(shell, 1.0)

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        launcher, host = self._job.run.launcher, self._hosts[node]
        meeting = f"{self._hosts[0]}:{launcher.port}"
        agent = agent_module(self._job, self._work, node=node, meeting=meeting, address=host, attempt=self._attempt)
        variables = [f"{name}={value}" for name, value in environment(self._threads).items()]
        there = [
            "env",
            f"--chdir={Path.cwd()}",
            *variables,
            sys.executable,
            "-m",
            "stages.train.engines.held",
            sys.executable,
            *agent,
        ]
        try:
            with self._work.log.open("ab") as log:
                return subprocess.Popen(
                    [*shlex.split(launcher.ssh.shell), host, shlex.join(there)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise StageError(f"launcher.ssh.shell: {launcher.ssh.shell!r} is not there: {error}") from error
