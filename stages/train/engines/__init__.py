"""Where torchrun's agents run: on this machine, on hosts by SSH, as a Slurm job, as a Kubernetes job."""

from __future__ import annotations

from collections.abc import Callable

from stages.train.engines.agents import Agents
from stages.train.engines.kubernetes import KubernetesAgents
from stages.train.engines.local import LocalAgents
from stages.train.engines.slurm import SlurmAgents
from stages.train.engines.ssh import SshAgents
from stages.train.job import Job, WorkFolder

__all__ = ["Agents", "start_agents"]

ENGINES: dict[str, Callable[[Job, WorkFolder, int], Agents]] = {
    "local": LocalAgents,
    "ssh": SshAgents,
    "slurm": SlurmAgents,
    "kubernetes": KubernetesAgents,
}


def start_agents(job: Job, work: WorkFolder, *, threads: int) -> Agents:
    """Start the agents of a training where its configuration says.

    Raises:
        TransientError: the engine does not take the job now.
        StageError: the engine is not there.
    """
    return ENGINES[job.run.launcher.type](job, work, threads)
