"""Deployments on a real Prefect server; in the slow tests real workers run them, are cancelled and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import yaml

from tests.operated import Api, of_training, received, save_webhook, wait_for, worker
from tests.project import Project

pytestmark = pytest.mark.timeout(600)
PREFECT_YAML = Path(__file__).parents[1] / "infra" / "prefect.yaml"


@pytest.fixture(scope="module")
def api(prefect_api: str) -> Api:
    return Api(prefect_api)


@pytest.fixture
def project(tmp_path: Path, prefect_api: str) -> Iterator[Project]:
    made = Project.create(tmp_path.resolve() / "project", num_epochs=1, orchestration={"name": "nightly"})
    made.environment |= {"PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(made.folder / ".prefect")}
    yield made
    api = Api(prefect_api)
    for deployment in api("/deployments/filter", {}):
        api(f"/deployments/{deployment['id']}", method="DELETE")


def configure(project: Project, **orchestration: Any) -> None:
    project.configure(num_epochs=1, orchestration={"name": "nightly", **orchestration})


def deploy(project: Project, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = project.sft("deploy", "run.yaml", *arguments, "--json").json()
    return document


def test_preparing_and_training_are_deployed_on_queues_of_their_own(project: Project, api: Api) -> None:
    configure(project, cron="0 2 * * *", timezone="Europe/Berlin", watch=60)
    made = deploy(project, "learning_rate=0.02", "--gpu-limit", "3")
    queues = {entry["name"]: entry["queue"] for entry in made["deployments"]}
    assert queues == {
        "sft/nightly": "gpu",
        "sft/nightly-prepare": "data",
        "sft/nightly-train": "gpu",
        "sft/nightly-publish": "data",
        "sft-watch/nightly-watch": "data",
    }
    prepare = api("/deployments/name/sft/nightly-prepare")
    [schedule] = prepare["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Berlin")
    assert prepare["parameters"]["overrides"] == ["learning_rate=0.02"]
    [queue] = [queue for queue in api("/work_pools/sft/queues/filter", {}) if queue["name"] == "gpu"]
    assert queue["concurrency_limit"] == 3
    again = deploy(project)
    assert [entry["id"] for entry in again["deployments"]] == [entry["id"] for entry in made["deployments"]]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"until": "nowhere"}, "'nowhere' is not one of"),
        ({"refresh": ["trian"]}, "'trian' is not one of"),
        ({"overrides": ["lerning_rate=1"]}, "'lerning_rate=1' does not match"),
        ({"chain": "perhaps"}, "'perhaps' is not of type 'boolean'"),
    ],
)
def test_a_wrong_value_is_refused_before_there_is_a_run(
    project: Project, api: Api, parameters: dict[str, Any], said: str
) -> None:
    deploy(project)
    before = len(api.runs("nightly"))
    identifier = api("/deployments/name/sft/nightly")["id"]
    status, text = api.refusal(f"/deployments/{identifier}/create_flow_run", {"parameters": parameters})
    assert status == 409
    assert said in text
    assert len(api.runs("nightly")) == before


def test_a_deployment_needs_a_server_that_stays(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    done = project.sft("deploy", "run.yaml", expect=2)
    assert "PREFECT_API_URL" in done.err
    assert "prefect server start" in done.err


def test_a_container_pool_needs_an_image_and_a_notification_its_block(project: Project) -> None:
    configure(project, work_pool="containers")
    assert "--image" in project.sft("deploy", "run.yaml", "--pool-type", "docker", expect=2).err
    assert "type/name" in project.sft("deploy", "run.yaml", "--notify", "slack-webhook/nobody", expect=2).err
    assert "no containers" in project.sft("deploy", "run.yaml", "--image", "x:1", expect=2).err
    refused = project.sft("deploy", "run.yaml", "--pool-type", "docker", "--image", "x:1", expect=2).err
    assert "the work pool containers is there, and is of type process" in refused


def test_watching_tells_of_changed_data_once(project: Project, api: Api) -> None:
    project.sft("preprocess", "run.yaml", "--quiet")
    assert "as it was" in project.sft("watch", "run.yaml").err
    project.write_rows(30, seed=5)
    assert "has changed" in project.sft("watch", "run.yaml").err
    assert "as it was" in project.sft("watch", "run.yaml").err


def test_the_file_of_deployments_registers_what_the_command_does(project: Project, api: Api) -> None:
    deploy(project)
    file = yaml.safe_load(PREFECT_YAML.read_text())
    written = {entry["name"]: entry for entry in file["deployments"] if entry["work_pool"]["name"] == "sft"}
    for suffix in ("", "-prepare", "-train", "-publish"):
        registered, entry = api(f"/deployments/name/sft/nightly{suffix}"), written[f"run{suffix}"]
        own = {key: value for key, value in registered["parameters"].items() if key not in ("config", "overrides")}
        assert own == {key: value for key, value in entry["parameters"].items() if key != "config"}
        assert entry["work_pool"]["work_queue_name"] == registered["work_queue_name"]
        assert entry["entrypoint"] == registered["entrypoint"]


@pytest.fixture
def workers(project: Project) -> Iterator[None]:
    """Both queues of a registered project are served."""
    deploy(project)
    with worker(project, "data"), worker(project, "gpu"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_changed_data_is_prepared_trained_and_published(project: Project, api: Api) -> None:
    project.sft("watch", "run.yaml")
    wait_for(lambda: bool(api.runs("nightly-publish")), 180, lambda: (project.folder / "worker-gpu.log").read_text())
    [prepared], [trained], [published] = (api.runs(f"nightly-{name}") for name in ("prepare", "train", "publish"))
    api.wait(published["id"], "Completed")
    assert prepared["work_queue_name"] == published["work_queue_name"] == "data"
    assert trained["work_queue_name"] == "gpu"
    assert (project.folder / "out" / "merged" / "model.safetensors").exists()
    again = api.start("sft/nightly")
    api.wait(again, "Completed")
    tasks = api("/task_runs/filter", {"flow_runs": {"id": {"any_": [again]}}})
    assert {task["state"]["name"] for task in tasks} == {"Cached"}


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_training_does_not_hold_a_gpu_for_what_is_not_prepared(project: Project, api: Api) -> None:
    run = api.start("sft/nightly-train")
    api.wait(run, "Failed")
    assert "no artifact of `fetch`" in api(f"/flow_runs/{run}")["state"]["message"]


def start_long_training(project: Project, api: Api) -> str:
    run = api.start("sft/nightly", overrides=["num_epochs=500", "save_steps=10"])
    checkpoints = project.folder / "store" / ".work" / "train"
    wait_for(lambda: any(checkpoints.glob("*/checkpoint-*/complete.json")), 180, lambda: api.state(run))
    return run


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_a_cancelled_run_leaves_no_process_and_is_cancelled(project: Project, api: Api) -> None:
    run = start_long_training(project, api)
    assert len(of_training(project.folder)) >= 3
    api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    assert api.wait(run, "Cancelled", seconds=60) < 40
    wait_for(lambda: not of_training(project.folder), 10, lambda: str(of_training(project.folder)))


@pytest.mark.slow
def test_a_killed_flow_or_worker_leaves_no_process_and_the_next_run_continues(project: Project, api: Api) -> None:
    deploy(project)
    with worker(project, "gpu") as serving:
        run = start_long_training(project, api)
        [engine] = [process for process in of_training(project.folder) if "prefect.engine" in process.cmdline()]
        engine.send_signal(signal.SIGKILL)
        api.wait(run, "Crashed", seconds=30)
        wait_for(lambda: not of_training(project.folder), 10, lambda: str(of_training(project.folder)))
        before = steps_of(project)
        run = api.start("sft/nightly", overrides=["num_epochs=500", "save_steps=10"])
        wait_for(lambda: steps_of(project)[-1] > before[-1] + 20, 120, lambda: str(steps_of(project)[-1]))
        serving.kill()
        api.wait(run, "Crashed", seconds=60)
        wait_for(lambda: not of_training(project.folder), 40, lambda: str(of_training(project.folder)))
    [log] = (project.folder / "store" / ".work" / "train").glob("*/train.log")
    assert re.search(r"stopped by SIGTERM after step \d+ of \d+; checkpoint written", log.read_text())
    steps = steps_of(project)
    assert steps == list(range(1, len(steps) + 1)), "a step was done twice or left out"


def steps_of(project: Project) -> list[int]:
    [metrics] = (project.folder / "store" / ".work" / "train").glob("*/metrics.jsonl")
    records = [orjson.loads(line) for line in metrics.read_bytes().splitlines()]
    return [record["step"] for record in records if "loss" in record]


@pytest.mark.slow
def test_a_run_whose_machine_is_gone_is_ended_by_the_server(project: Project, api: Api) -> None:
    deploy(project)
    with worker(project, "gpu") as serving:
        run = start_long_training(project, api)
        time.sleep(40)  # a heartbeat or two
        frozen = [psutil.Process(serving.pid), *of_training(project.folder)]
        for process in frozen:
            process.suspend()
        try:
            api.wait(run, "Crashed", seconds=200)
        finally:
            for process in frozen:
                process.resume()
        serving.kill()
        assert "does not answer" in api(f"/flow_runs/{run}")["state"]["message"]
        wait_for(lambda: not of_training(project.folder), 60, lambda: str(of_training(project.folder)))


IN_THE_IMAGE = {"prefect.deployments.steps.set_working_directory": {"directory": "/work"}}


@pytest.mark.slow
def test_the_file_of_deployments_is_taken_by_prefect(project: Project, api: Api) -> None:
    for name, kind in (("sft-docker", "docker"), ("sft-kubernetes", "kubernetes")):
        deploy(project, f"orchestration.work_pool={name}", "--pool-type", kind, "--image", "x:1")
        assert api("/deployments/name/sft/nightly")["pull_steps"] == [IN_THE_IMAGE]
    deploy(project)
    assert not api("/deployments/name/sft/nightly")["pull_steps"]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_YAML)]
    environment = {**os.environ, **project.environment, "SFT_IMAGE": "registry/sft:1"}
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    in_a_container = api("/deployments/name/sft/run-docker")
    assert in_a_container["job_variables"]["image"] == "registry/sft:1"
    assert in_a_container["pull_steps"] == [IN_THE_IMAGE]
    assert {"run-prepare", "run-train", "run-publish"} <= {entry["name"] for entry in api("/deployments/filter", {})}
    triggers = [automation["trigger"].get("expect") for automation in api("/automations/filter", {})]
    assert {("sft.data.changed",), ("sft.prepared",), ("sft.trained",)} <= {tuple(expect or ()) for expect in triggers}


@pytest.mark.slow
def test_publishing_a_sick_training_waits_for_a_person_who_is_told(project: Project, api: Api) -> None:
    configure(project, hold_unhealthy=True)
    with received() as (messages, address):
        save_webhook(project, "told", address)
        deploy(project, "warmup_steps=1000", "--notify", "custom-webhook/told")
        with worker(project, "data", "gpu"):
            run = api.start("sft/nightly")
            api.wait(run, "Suspended", "Completed", seconds=240)
            assert api.state(run) == "Suspended"
            assert not (project.folder / "out" / "merged").exists()
            wait_for(lambda: bool(messages), 60, lambda: "a notification")
            assert "sick" in messages[0]
            api(f"/flow_runs/{run}/resume", {})
            api.wait(run, "Completed", seconds=120)
    assert (project.folder / "out" / "merged").exists()


@pytest.mark.slow
def test_without_a_deployment_a_sick_training_is_not_published(tmp_path: Path) -> None:
    project = Project.create(tmp_path, num_epochs=1, warmup_steps=1000, orchestration={"hold_unhealthy": True})
    done = project.sft("run", "run.yaml", expect=1)
    assert "sick" in done.err
    assert not (project.folder / "out" / "merged").exists()
    project.sft("run", "run.yaml", "orchestration.hold_unhealthy=false")
    assert (project.folder / "out" / "merged").exists()
