"""Registers the deployments of a run with Prefect's server; registering again changes what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import WorkQueueFilter, WorkQueueFilterName
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.runner.storage import LocalStorage
from prefect.types.entrypoint import EntrypointType

from configs.load import LoadedRun
from flows.deployments.automations import ensure_automations
from flows.deployments.names import deployment_name
from flows.deployments.parts import Part, parts
from flows.sft import sft
from flows.watch import watch
from stages.errors import ConfigError, Problem

PoolType = Literal["process", "docker", "kubernetes"]
HEARTBEAT_SECONDS = 30
IMAGE_FOLDER = "/work"
"""Where a run in a container works: the folder of the image in which a project is mounted."""
FLOWS: dict[str, Flow[Any, Any]] = {flow.name: flow for flow in (sft, watch)}


@dataclass(frozen=True)
class Target:
    """Where deployments run.

    Attributes:
        pool_type: type of the work pools; None: of those that are there, and `process` for new ones.
        image: container image for Docker and Kubernetes.
        gpu_limit: trainings at a time on the GPU queue.
        job_variables: further variables of the work pool's job template.
    """

    pool_type: PoolType | None = None
    image: str | None = None
    gpu_limit: int = 1
    job_variables: tuple[tuple[str, Any], ...] = ()


def job_variables(given: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """Return `KEY=JSON` as pairs; what is not JSON is text.

    >>> job_variables(["namespace=gpu", 'env={"HF_HOME": "/cache"}'])
    (('namespace', 'gpu'), ('env', {'HF_HOME': '/cache'}))

    Raises:
        ConfigError: one of them has no `=`.
    """
    pairs, problems = [], []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            problems.append(Problem("command line", "--job-variable", text, "it is KEY=JSON", "Write namespace=gpu."))
            continue
        try:
            pairs.append((key, orjson.loads(value)))
        except orjson.JSONDecodeError:
            pairs.append((key, value))
    if problems:
        raise ConfigError(problems)
    return tuple(pairs)


def register(loaded: LoadedRun, overrides: Sequence[str], target: Target, notify: str | None) -> dict[str, Any]:
    """Register every deployment of a run and what they need, and return what was registered, JSON-ready.

    Raises:
        ConfigError: a work pool of another type, a container pool without an image or an image without one, or a
            notification block that is not there.
    """
    settings, name = loaded.run.orchestration, deployment_name(loaded.run, loaded.path)
    gpu_pool = settings.gpu_pool or settings.work_pool
    with get_client(sync_client=True) as client:
        types = {pool: _pool_type(client, pool, target) for pool in (settings.work_pool, gpu_pool)}
        if target.image and set(types.values()) == {"process"}:
            rule, remedy = "runs of a process work pool are no containers", "Leave it out, or give --pool-type docker."
            raise ConfigError([Problem("command line", "--image", target.image, rule, remedy)])
        jobs = {pool: _job(kind, target) for pool, kind in types.items()}
        for pool, kind in types.items():
            _ensure_pool(client, pool, kind)
        _ensure_queue(client, settings.work_pool, settings.data_queue, limit=None)
        _ensure_queue(client, gpu_pool, settings.gpu_queue, limit=target.gpu_limit)
        automations = ensure_automations(client, notify)
    made = []
    for part in parts(name, settings):
        pool = gpu_pool if part.on_gpu else settings.work_pool
        queue = settings.gpu_queue if part.on_gpu else settings.data_queue
        deployment = _deployment(part, name, loaded, overrides, jobs[pool])
        deployment.work_pool_name, deployment.work_queue_name = pool, queue
        identifier = deployment.apply()
        made.append({"name": f"{part.flow}/{part.name}", "id": str(identifier), "work_pool": pool, "queue": queue})
    return {"deployments": made, "automations": automations}


def _deployment(
    part: Part, name: str, loaded: LoadedRun, overrides: Sequence[str], job: dict[str, Any]
) -> RunnerDeployment:
    here = "working_dir" in job
    config = loaded.path.resolve() if here else loaded.path
    schedules = [DeploymentScheduleCreate(schedule=part.schedule, parameters=_chain(part))] if part.schedule else []
    deployment = RunnerDeployment.from_flow(
        FLOWS[part.flow],
        part.name,
        schedules=schedules,
        triggers=list(part.triggers(name)),
        parameters={"config": str(config), "overrides": list(overrides), **part.parameters},
        description=part.description,
        tags=["sft", name],
        job_variables=job,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    if not here:  # else Prefect copies the whole folder to a temporary one, and what is made there is lost
        deployment.storage = LocalStorage(IMAGE_FOLDER)
    return deployment


def _chain(part: Part) -> dict[str, Any]:
    return {"chain": True} if part.flow == "sft" else {}


def _job(pool_type: str, target: Target) -> dict[str, Any]:
    """Return the variables of the job: where it works, and how often it shows that it is alive."""
    job: dict[str, Any] = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}}
    if pool_type == "process":
        job["working_dir"] = str(Path.cwd())
    elif target.image is None:
        rule = f"a {pool_type} work pool starts containers and needs to know their image"
        raise ConfigError([Problem("command line", "--image", "absent", rule, "Give --image REGISTRY/NAME:TAG.")])
    else:
        job["image"] = target.image
    return {**job, **dict(target.job_variables)}


def _pool_type(client: SyncPrefectClient, name: str, target: Target) -> str:
    """Return the type that a work pool has, or will have.

    Raises:
        ConfigError: the pool is there and is of another type than the one asked for.
    """
    try:
        there = client.read_work_pool(name).type
    except ObjectNotFound:
        return target.pool_type or "process"
    if target.pool_type not in (None, there):
        rule = f"the work pool {name} is there, and is of type {there}"
        remedy = f"Name another: orchestration.work_pool={name}-{target.pool_type}."
        raise ConfigError([Problem("command line", "--pool-type", str(target.pool_type), rule, remedy)])
    return there


def _ensure_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """Make a work pool that is not there yet."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        groups = client.read_worker_metadata().values()
        [template] = [group[kind]["default_base_job_configuration"] for group in groups if kind in group]
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))


def _ensure_queue(client: SyncPrefectClient, pool: str, name: str, *, limit: int | None) -> None:
    """Make a queue with a limit on the runs at a time.

    The server counts them when it hands runs out: there is no lease that a running training could lose.
    """
    only = WorkQueueFilter(name=WorkQueueFilterName(any_=[name]))
    found = client.read_work_queues(work_queue_filter=only, work_pool_name=pool)
    if found:
        client.update_work_queue(found[0].id, concurrency_limit=limit)
    else:
        client.create_work_queue(name, work_pool_name=pool, concurrency_limit=limit)
