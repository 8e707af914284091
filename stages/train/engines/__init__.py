"""Where torchrun's agents run: here, on hosts by SSH, as a Slurm job, as a Kubernetes job, on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from stages.train.engines.agents import Agents, RestartableAgents
from stages.train.engines.kubernetes import KubernetesAgents
from stages.train.engines.local import LocalAgents
from stages.train.engines.ray import RayAgents
from stages.train.engines.restarts import RestartedAgents
from stages.train.engines.slurm import SlurmAgents
from stages.train.engines.ssh import SshAgents
from stages.train.job import Job, WorkFolder

__all__ = ["Agents", "start_agents"]

RESTARTED: dict[str, Callable[[Job, WorkFolder, int, int], RestartableAgents]] = {
    "ssh": SshAgents,
    "slurm": SlurmAgents,
    "ray": RayAgents,
}
"""Engines whose agents are started again from here when one is lost; with the others, the stage is tried again."""


def start_agents(job: Job, work: WorkFolder, *, threads: int) -> Agents:
    """Start the agents of a training where its configuration says.

    Raises:
        TransientError: the engine does not take the job now.
        StageError: the engine is not there.
    """
    launcher = job.run.launcher
    if launcher.type == "local":
        return LocalAgents(job, work, threads)
    if launcher.type == "kubernetes":
        return KubernetesAgents(job, work, threads)
    engine = RESTARTED[launcher.type]
    return RestartedAgents(lambda attempt: engine(job, work, threads, attempt), work, launcher.restarts)
