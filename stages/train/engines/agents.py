"""What an engine gives: agents that run, end with a code, and can be ended; and the command line of an agent."""

from __future__ import annotations

import os
from typing import Protocol

from stages.own_process import python_path
from stages.train.job import Job, WorkFolder


class Agents(Protocol):
    """The running agents of one training."""

    def poll(self) -> int | None:
        """Return torchrun's exit code, or None while the training runs."""

    def end(self, grace: float) -> None:
        """Ask what still runs to end, give it `grace` seconds for a checkpoint, and leave no process behind."""


class RestartableAgents(Agents, Protocol):
    """Agents that tell which of them failed, and can be started anew."""

    def failed(self) -> list[str]:
        """Return the nodes whose agents ended with an error, or what the engine knows of them."""


def agent_module(
    job: Job, work: WorkFolder, *, node: int | str, meeting: str, address: str, attempt: int | str = 0
) -> list[str]:
    """Return what follows `python` to start the agent of one node.

    Args:
        job: the training.
        work: its working folder, which every node sees under the same path.
        node: number of the node, in the name of its report.
        meeting: host:port where the agents meet (torchrun's c10d rendezvous).
        address: under which the other nodes reach this one.
        attempt: what tells this start from others of the same training, whose agents do not meet these.
    """
    launcher = job.run.launcher
    torchrun = [
        f"--nnodes={launcher.nodes}",
        f"--nproc-per-node={job.world_size // launcher.nodes}",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={meeting}",
        f"--rdzv-id={job.key[:16]}-{attempt}",
        f"--local-addr={address}",
    ]
    return ["-m", "stages.train.agent", str(work.agent_report(node)), *torchrun, "-m", "stages.train", str(work.job)]


def environment(threads: int) -> dict[str, str]:
    """Return the variables that a training needs on every node, beside those that are there."""
    return {
        "COMET_DISABLE_AUTO_LOGGING": "1",  # where it is installed it would log on its own, asked or not
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),  # else other bits each time
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
    }
