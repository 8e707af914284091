"""A training as a Slurm job: one agent a node, started by srun; submitted with sbatch, followed until it ends."""

from __future__ import annotations

import shlex
import subprocess
import sys

from stages.errors import StageError, TransientError
from stages.train.engines.agents import agent_module, environment
from stages.train.job import Job, WorkFolder


class SlurmAgents:
    """A submitted job, held by `sbatch --wait`, which ends with the job's exit code."""

    def __init__(self, job: Job, work: WorkFolder, threads: int) -> None:
        script = work.root / "slurm.sh"
        script.write_text(batch_script(job, work, threads))
        try:
            self._waiting = subprocess.Popen(
                ["sbatch", "--wait", "--parsable", str(script)],  # noqa: S607
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise StageError(
                "launcher.type is slurm, and there is no `sbatch` here. Start the run where jobs are submitted."
            ) from None
        self._id = self._submitted()

    def poll(self) -> int | None:
        """Return the exit code of the job, or None while it waits or runs."""
        return self._waiting.poll()

    def end(self, grace: float) -> None:
        """Cancel the job if it is not done: its processes get SIGTERM, and SIGKILL after the cluster's KillWait."""
        if self._waiting.poll() is None:
            subprocess.run(["scancel", self._id], check=False, timeout=60)  # noqa: S607
            try:
                self._waiting.wait(grace)
            except subprocess.TimeoutExpired:
                self._waiting.kill()
        self._waiting.wait()

    def _submitted(self) -> str:
        assert self._waiting.stdout is not None  # noqa: S101
        line = self._waiting.stdout.readline().strip()
        if not line:
            _, said = self._waiting.communicate(timeout=60)
            raise TransientError(f"Slurm did not take the job: {said.strip()}")
        return line.partition(";")[0]


def batch_script(job: Job, work: WorkFolder, threads: int) -> str:
    """Return the script of the job.

    Every node sees the working folder, the store and this Python under the same paths (a shared file system).
    """
    launcher = job.run.launcher
    options = [
        f"--job-name=sft-{job.key[:8]}",
        f"--nodes={launcher.nodes}",
        "--ntasks-per-node=1",
        f"--output={work.log.resolve()}",
        "--open-mode=append",
        *launcher.slurm_options,
    ]
    agent = agent_module(job, work, node="$SLURM_NODEID", meeting=f"$head:{launcher.port}", address="$SLURMD_NODENAME")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment(threads).items()]
    inner = " ".join(_quoted(word) for word in [sys.executable, *agent])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "set -e",
        *([launcher.setup] if launcher.setup else []),
        *exports,
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export head",
        f"exec srun --kill-on-bad-exit=1 bash -c {shlex.quote('exec ' + inner)}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """Return a word for the shell of a node, where variables of Slurm are filled in."""
    return f'"{word}"' if "$" in word else shlex.quote(word)
