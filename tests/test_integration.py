"""A local installation as a team has it: PostgreSQL, Prefect's server, two workers, a store on S3."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.lifeline import bound
from tests.conftest import free_port, wait_until_up
from tests.operated import Api, of_training, wait_for, worker
from tests.project import Project
from tests.store_servers import ENVIRONMENT, Server, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def as_postgres(command: Sequence[str]) -> list[str]:
    """Return a command that does not run as root, which PostgreSQL refuses."""
    if os.geteuid():
        return list(command)
    pwd.getpwnam("postgres")
    return ["runuser", "-u", "postgres", "--", *command]


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server of its own and give its address for SQLAlchemy."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    made = subprocess.run(as_postgres(["mktemp", "-d"]), capture_output=True, text=True, check=True)
    folder, port = Path(made.stdout.strip()), free_port()
    subprocess.run(
        as_postgres([f"{PROGRAMS[-1]}/initdb", "-D", f"{folder}/data", "-U", "prefect", "-A", "trust"]),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    command = [
        f"{PROGRAMS[-1]}/postgres",
        "-D",
        f"{folder}/data",
        "-k",
        str(folder),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    server = subprocess.Popen(as_postgres(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = [f"{PROGRAMS[-1]}/pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, stdout=subprocess.DEVNULL).returncode == 0, 60, lambda: "PostgreSQL")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            as_postgres([f"{PROGRAMS[-1]}/pg_ctl", "-D", f"{folder}/data", "-m", "fast", "stop"]), check=True
        )
        server.wait(timeout=60)
        shutil.rmtree(folder)


@contextmanager
def prefect_server(home: Path, database: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "10",
    }
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(bound(command), env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api/health", server)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("s3", tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with postgres() as database, prefect_server(tmp_path_factory.mktemp("prefect"), database) as url:
        yield Api(url)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, api: Api, bucket: Server) -> Iterator[Project]:
    """A deployed project with both of its queues served."""
    place = bucket.place()
    made = Project.create(
        tmp_path_factory.mktemp("project").resolve(),
        num_epochs=1,
        artifact_store=place.address,
        artifact_store_options={"endpoint_url": bucket.url},
        orchestration={"name": "nightly", "interval": 60},
    )
    made.environment |= {
        **ENVIRONMENT,
        "PREFECT_API_URL": api.url,
        "PREFECT_HOME": str(made.folder / ".prefect"),
        "XDG_CACHE_HOME": str(made.folder / ".cache"),
    }
    made.sft("deploy", "run.yaml")
    with worker(made, "data"), worker(made, "gpu"):
        yield made
    assert not of_training(made.folder)


def completed(api: Api, deployment: str) -> list[dict[str, Any]]:
    return [run for run in api.runs(deployment) if run["state_name"] == "Completed"]


def stage_states(api: Api, run: str) -> dict[str, str]:
    tasks = api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {task["name"]: task["state"]["name"] for task in tasks}


def test_1_a_schedule_prepares_trains_and_publishes(project: Project, api: Api) -> None:
    wait_for(lambda: bool(completed(api, "nightly-publish")), 400, lambda: str(api.runs("nightly-prepare")))
    assert (project.folder / "out" / "merged" / "model.safetensors").exists()
    identifier = api("/deployments/name/sft/nightly-prepare")["id"]
    api(f"/deployments/{identifier}/pause_deployment", {})
    project.configure(**{**keys_of(project), "orchestration": {"name": "nightly"}})
    project.sft("deploy", "run.yaml")
    api(f"/deployments/{identifier}/resume_deployment", {})


def keys_of(project: Project) -> dict[str, Any]:
    keys: dict[str, Any] = yaml.safe_load((project.folder / "run.yaml").read_text())
    return keys


def test_2_changed_data_triggers_the_chain(project: Project, api: Api) -> None:
    before = len(completed(api, "nightly-publish"))
    project.write_rows(70, seed=3)
    assert "has changed" in project.sft("watch", "run.yaml").err
    wait_for(lambda: len(completed(api, "nightly-publish")) > before, 300, lambda: str(api.runs("nightly-train")))


def test_3_training_again_with_another_rate_reuses_the_shards(project: Project, api: Api) -> None:
    run = api.start("sft/nightly-train", overrides=["learning_rate=0.002"])
    api.wait(run, "Completed", seconds=300)
    states = stage_states(api, run)
    assert {name: states[name] for name in ("fetch", "tokenize", "pack")} == dict.fromkeys(
        ("fetch", "tokenize", "pack"), "Cached"
    )
    assert states["train"] == "Completed"


LONG = ["num_epochs=400", "save_steps=10"]


def start_long(project: Project, api: Api) -> str:
    run = api.start("sft/nightly", overrides=LONG)
    wait_for(lambda: "stages.train.agent" in lines(project), 400, lambda: api.state(run))
    wait_for(lambda: checkpointed(project), 400, lambda: api.state(run))
    return run


def lines(project: Project) -> str:
    return str([process.cmdline() for process in of_training(project.folder)])


def checkpointed(project: Project) -> bool:
    return any(project.folder.rglob("checkpoint-*/complete.json"))


def test_4_a_cancelled_run_leaves_nothing(project: Project, api: Api) -> None:
    run = start_long(project, api)
    api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    api.wait(run, "Cancelled", seconds=60)
    wait_for(lambda: not of_training(project.folder), 30, lambda: lines(project))


def test_5_a_crashed_run_that_is_retried_continues_and_reuses(project: Project, api: Api) -> None:
    run = start_long(project, api)
    [engine] = [process for process in of_training(project.folder) if "prefect.engine" in process.cmdline()]
    engine.kill()
    api.wait(run, "Crashed", seconds=60)
    wait_for(lambda: not of_training(project.folder), 30, lambda: lines(project))
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry", "state_details": {}}, "force": True}

    def trains_again() -> bool:
        if api.state(run) == "Crashed":  # the worker tells of a crash twice: the second time it undoes a quick retry
            api(f"/flow_runs/{run}/set_state", retry)
        return "stages.train.agent" in lines(project)

    wait_for(trains_again, 400, lambda: api.state(run))
    states = stage_states(api, run)
    assert states["fetch"] == states["tokenize"] == states["pack"] == "Cached"
    api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    api.wait(run, "Cancelled", seconds=60)
    wait_for(lambda: not of_training(project.folder), 30, lambda: lines(project))
