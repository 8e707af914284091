"""A training as a Slurm job: one agent a node, started by srun; submitted with sbatch, followed until it ends."""

from __future__ import annotations

import shlex
import subprocess
import sys

from stages.errors import StageError, TransientError
from stages.train.engines.agents import agent_module, environment
from stages.train.job import Job, WorkFolder
from stages.train.outcome import NO_HOST


class SlurmAgents:
    """A submitted job, held by `sbatch --wait`, which ends with the job's exit code."""

    def __init__(self, job: Job, work: WorkFolder, threads: int, attempt: int) -> None:
        script = work.root / "slurm.sh"
        script.write_text(batch_script(job, work, threads))
        try:
            # a run that was killed has left its job: that writes a checkpoint, and this one waits until it is gone
            subprocess.run(["scancel", "--me", f"--name={_name(job)}"], check=False, timeout=60)  # noqa: S607
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
        with work.log.open("a") as log:
            log.write(f"submitted as Slurm job {self._id}\n")

    def poll(self) -> int | None:
        """Return the exit code of the job, or None while it waits or runs."""
        code = self._waiting.poll()
        return NO_HOST if code and "NODE_FAIL" in self._about() else code

    def failed(self) -> list[str]:
        """Return the job; which of its nodes it was, Slurm knows."""
        return [f"Slurm job {self._id}"]

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

    def _about(self) -> str:
        """Return what Slurm says of the job, nothing when it has forgotten it."""
        asked = ["scontrol", "--oneliner", "show", "job", self._id]
        return subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout


def batch_script(job: Job, work: WorkFolder, threads: int) -> str:
    """Return the script of the job.

    Every node sees the working folder, the store and this Python under the same paths (a shared file system). Nodes
    meet under the addresses that Slurm has for them: a node's name need not be one that others can resolve.
    """
    launcher = job.run.launcher
    options = [
        f"--job-name={_name(job)}",
        "--dependency=singleton",  # never two jobs in one working folder
        "--no-requeue",  # who submitted it does so again when a node is lost
        f"--nodes={launcher.nodes}",
        "--ntasks-per-node=1",
        f"--output={work.log}",
        "--open-mode=append",
        *launcher.slurm.options,
    ]
    agent = agent_module(
        job, work, node="$SLURM_NODEID", meeting=f"$head:{launcher.port}", address="$here", attempt="$SLURM_JOB_ID"
    )
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment(threads).items()]
    agent_line = " ".join(_quoted(word) for word in [sys.executable, *agent])
    inner = f'here=$(address "$SLURMD_NODENAME"); exec {agent_line}'
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "set -e",
        *([launcher.slurm.setup] if launcher.slurm.setup else []),
        *exports,
        r"""address() { scontrol --oneliner show node "$1" | sed -E 's/.* NodeAddr=([^ ]+) .*/\1/'; }""",
        'head=$(address "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")',
        "export head",
        "export -f address",
        f"exec srun --kill-on-bad-exit=1 bash -c {shlex.quote(inner)}",
    ]
    return "\n".join(lines) + "\n"


def _name(job: Job) -> str:
    return f"sft-{job.key[:16]}"


def _quoted(word: str) -> str:
    """Return a word for the shell of a node, where variables of Slurm are filled in."""
    return f'"{word}"' if "$" in word else shlex.quote(word)
