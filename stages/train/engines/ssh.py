"""One agent on each of several hosts, started by SSH; when one is lost, all are started again.

Every host sees the working folder, the store and this Python under the same paths (a shared file system). A new start
continues from the newest checkpoint. torchrun's own elasticity is not used: agents that stay would wait for the one
that is gone, under its old name, until a time-out ends them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from stages.errors import StageError
from stages.train.engines.agents import agent_module, environment
from stages.train.engines.local import end_tree
from stages.train.job import Job, WorkFolder
from stages.train.outcome import is_lost

RESTART_GRACE_SECONDS = 25.0


class SshAgents:
    """An agent a host, each held by a remote shell: when that is closed, the agent and its processes end."""

    def __init__(self, job: Job, work: WorkFolder, threads: int) -> None:
        self._job, self._work, self._threads = job, work, threads
        self._hosts = job.run.launcher.hosts
        self._attempt = 0
        self._shells = [self._start(node) for node in range(len(self._hosts))]

    def poll(self) -> int | None:
        """Return the code of the training when every agent has ended, or when one has failed for good."""
        codes = [shell.poll() for shell in self._shells]
        if any(codes):
            code = next(code for code in codes if code)
            if self._attempt == self._job.run.launcher.restarts or not is_lost(self._work, code):
                return code
            self._start_again()
            return None
        return 0 if all(code == 0 for code in codes) else None

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

    def _start_again(self) -> None:
        lost = [host for host, shell in zip(self._hosts, self._shells, strict=True) if shell.poll()]
        self.end(RESTART_GRACE_SECONDS)
        self._attempt += 1
        self._work.clear_reports()
        with self._work.log.open("a") as log:
            log.write(f"lost: {', '.join(lost)}; all agents are started again ({self._attempt})\n")
        self._shells = [self._start(node) for node in range(len(self._hosts))]

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        launcher, host = self._job.run.launcher, self._hosts[node]
        meeting = f"{self._hosts[0]}:{launcher.port}"
        agent = agent_module(self._job, self._work, node=node, meeting=meeting, address=host, attempt=self._attempt)
        variables = [f"{name}={value}" for name, value in environment(self._threads).items()]
        there = ["env", *variables, sys.executable, "-m", "stages.train.engines.held", sys.executable, *agent]
        try:
            with self._work.log.open("ab") as log:
                return subprocess.Popen(
                    [*shlex.split(launcher.remote_shell), host, shlex.join(there)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise StageError(f"launcher.remote_shell: {launcher.remote_shell!r} is not there: {error}") from error
