"""One agent on each of several nodes of a Ray cluster, held by an actor with the node's GPUs.

Every node sees the working folder, the store and this Python under the same paths (a shared file system). The places
are a placement group: one bundle a node, all of them or none.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stages.errors import TransientError
from stages.lifeline import bound
from stages.ray_cluster import connect
from stages.train.engines.agents import agent_module, environment
from stages.train.engines.local import end_tree
from stages.train.job import Job, WorkFolder
from stages.train.outcome import NO_HOST

SAY_SECONDS = 60.0
"""How often the log says that the training waits for its places."""


class RayAgents:
    """An actor a node, each with an agent as its child, which the kernel ends with it."""

    def __init__(self, job: Job, work: WorkFolder, threads: int, attempt: int) -> None:
        self._job, self._work, self._attempt = job, work, attempt
        self._ray = connect(job.run.launcher.ray.address, "launcher.ray", environment(threads))
        bundles = [_bundle(job)] * job.run.launcher.nodes
        self._places = self._ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
        self._said = -SAY_SECONDS
        self._actors: list[Any] = []
        self._codes: list[Any] = []
        self._addresses: list[str] = []

    def poll(self) -> int | None:
        """Return the code of the first agent that has failed, or 0 when every agent is done.

        Until the cluster has room the training waits, as in a queue.

        Raises:
            TransientError: a node was lost before the training began.
        """
        if not self._codes:
            if not self._places.wait(timeout_seconds=1):
                self._say_what_is_missing()
                return None
            try:
                self._start()
            except self._ray.exceptions.RayError as error:
                raise TransientError(f"launcher.ray: a node was lost before the training began: {error}") from error
        codes = self._ended()
        if any(codes.values()):
            return next(code for code in codes.values() if code)
        return 0 if len(codes) == len(self._codes) else None

    def failed(self) -> list[str]:
        """Return the addresses of the nodes whose agents ended with an error."""
        return [self._addresses[node] for node, code in self._ended().items() if code]

    def end(self, grace: float) -> None:
        """End the agents and their actors, give their places back, and leave the cluster."""
        asked = [actor.end.remote(grace) for actor in self._actors]
        self._actors = []
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=grace + 5.0)
        self._ray.shutdown()  # ends the actors and the placement group, which are this process's own

    def _ended(self) -> dict[int, int]:
        """Return node -> exit code of the agents that have ended."""
        done, _ = self._ray.wait(self._codes, num_returns=len(self._codes), timeout=0)
        codes = {}
        for node, reference in enumerate(self._codes):
            if reference in done:
                try:
                    codes[node] = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError:  # of our own code there, which another start does not mend
                    raise
                except self._ray.exceptions.RayError:
                    codes[node] = NO_HOST
        return codes

    def _start(self) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle, launcher = _bundle(self._job), self._job.run.launcher
        actor = self._ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), max_concurrency=2)(NodeAgent)
        for node in range(launcher.nodes):
            place = PlacementGroupSchedulingStrategy(self._places, placement_group_bundle_index=node)
            self._actors.append(actor.options(scheduling_strategy=place).remote())
        self._addresses = self._ray.get([actor.address.remote() for actor in self._actors])
        meeting = f"{self._addresses[0]}:{launcher.port}"
        for node, (actor, address) in enumerate(zip(self._actors, self._addresses, strict=True)):
            module = agent_module(
                self._job, self._work, node=node, meeting=meeting, address=address, attempt=self._attempt
            )
            self._codes.append(actor.run.remote([sys.executable, *module], str(Path.cwd()), str(self._work.log)))

    def _say_what_is_missing(self) -> None:
        if time.monotonic() - self._said < SAY_SECONDS:
            return
        self._said = time.monotonic()
        free = self._ray.available_resources()
        has = {name: int(free.get(name, 0)) for name in ("CPU", "GPU")}
        with self._work.log.open("a") as log:
            log.write(f"waiting for {self._job.run.launcher.nodes} node(s) with {_bundle(self._job)} free each; ")
            log.write(f"the cluster has {has} free\n")


class NodeAgent:
    """Runs on a node: the agent as a child of the actor's process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """Return the address under which the other nodes reach this one."""
        import ray

        return str(ray.util.get_node_ip_address())

    def run(self, command: list[str], folder: str, log: str) -> int:
        """Run the agent in a folder and return its exit code, 137 if it was killed."""
        with open(log, "ab") as file:  # noqa: PTH123
            self._process = subprocess.Popen(
                bound(command),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def end(self, grace: float) -> None:
        """End the agent and every process of the training on this node."""
        if self._process is not None:
            end_tree(self._process, grace)


def _bundle(job: Job) -> dict[str, int]:
    """Return what a node has to have free."""
    each = job.world_size // job.run.launcher.nodes
    return {"CPU": each, "GPU": each} if job.run.launcher.gpus else {"CPU": each}
