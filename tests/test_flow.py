"""The flow from the outside: `sft run` with real stages, a real torchrun and a real Prefect server."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from tests.project import Project, descendants, end_tree, statuses

STAGES = ["fetch", "tokenize", "pack", "train", "merge", "publish"]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Project:
    """A project whose run is done, with a server that saw it."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    project.environment["PREFECT_API_URL"] = prefect_api
    document = project.run()
    assert statuses(document) == dict.fromkeys(STAGES, "ran")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, store and all."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy", dict(finished.environment))


def ask(api: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310
        f"{api}{path}", orjson.dumps(body), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return orjson.loads(answer.read())


def newest_task_states(api: str) -> dict[str, tuple[str, str]]:
    """Return stage -> (name, message) of the state, of the newest flow run."""
    started = {"start_time": {"is_null_": False}}
    [run] = ask(api, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1, "flow_runs": started})
    tasks = ask(api, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return {task["name"]: (task["state"]["name"], task["state"]["message"] or "") for task in tasks}


def test_a_run_leaves_what_its_user_expects(finished: Project) -> None:
    out = finished.folder / "out"
    for name in ("adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "report.html"):
        assert (out / name).stat().st_size > 0
    assert (out / "merged" / "model.safetensors").stat().st_size > 0
    records = [orjson.loads(line) for line in (out / "metrics.jsonl").read_bytes().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]


def test_a_second_run_reuses_everything_and_the_server_shows_it(project: Project, prefect_api: str) -> None:
    assert statuses(project.run()) == dict.fromkeys(STAGES, "reused")
    states = newest_task_states(prefect_api)
    assert {name: state for name, (state, _) in states.items()} == dict.fromkeys(STAGES, "Cached")
    assert "store/train/" in states["train"][1]
    keys = {artifact["key"] for artifact in ask(prefect_api, "/artifacts/filter", {"limit": 100})}
    assert {"sft-stages", "sft-tokenize", "sft-checks", "sft-train"} <= keys


def test_a_fully_reused_run_does_not_wait_for_prefect(project: Project) -> None:
    del project.environment["PREFECT_API_URL"]
    project.run()
    done = project.sft("run", "run.yaml", "--json")
    assert statuses(done.json()) == dict.fromkeys(STAGES, "reused")
    imports = project.sft("plan", "run.yaml", "--json").seconds
    assert done.seconds < 2 * imports + 1, "a reused run should cost little more than a plan"


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("learning_rate=0.02", {"train", "merge", "publish"}),
        ("sequence_len=96", {"pack", "train", "merge", "publish"}),
        ("output_dir=elsewhere", {"publish"}),
        ("dataset_num_proc=1", set()),
    ],
)
def test_only_what_changed_runs_again(project: Project, override: str, rerun: set[str]) -> None:
    planned = project.sft("plan", "run.yaml", override, "--json").json()
    assert {stage["stage"] for stage in planned["stages"] if stage["status"] == "run"} == rerun
    if "learning_rate" in override:
        [train] = [stage for stage in planned["stages"] if stage["stage"] == "train"]
        assert any("learning_rate: 0.01 -> 0.02" in change for change in train["changes"])
    ran = statuses(project.run(override))
    assert {stage for stage, status in ran.items() if status == "ran"} == rerun


def test_a_changed_row_reaches_every_stage(project: Project) -> None:
    rows = (project.folder / "data.jsonl").read_bytes().splitlines()
    rows[0] = orjson.dumps(
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Paris"}]}
    )
    (project.folder / "data.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    assert statuses(project.run()) == dict.fromkeys(STAGES, "ran")


def test_a_deleted_result_is_made_again(project: Project) -> None:
    shutil.rmtree(project.folder / "out")
    assert statuses(project.run()) == {**dict.fromkeys(STAGES, "reused"), "publish": "ran"}
    assert (project.folder / "out" / "adapter_model.safetensors").exists()


def test_a_damaged_artifact_is_made_again(project: Project) -> None:
    [shard] = (project.folder / "store" / "tokenize").glob("*/00/*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    verified = project.sft("artifacts", "verify", "--store", "store", "--json", expect=1).json()
    assert [item["stage"] for item in verified["damaged"]] == ["tokenize"]
    assert statuses(project.run()) == {**dict.fromkeys(STAGES, "reused"), "tokenize": "ran"}
    project.sft("artifacts", "verify", "--store", "store")


def test_a_wrong_configuration_is_exit_code_2_without_a_traceback(project: Project) -> None:
    done = project.sft("run", "run.yaml", "sequence_len=x", "learnin_rate=1", "--json", expect=2)
    assert {problem["key"] for problem in done.json()["problems"]} == {"sequence_len", "learnin_rate"}
    assert "Traceback" not in done.err
    done = project.sft("validate", "run.yaml", "base_model=./nowhere", expect=2)
    assert "there is no such folder" in done.err


def test_too_many_broken_rows_stop_a_run_but_can_be_looked_at(project: Project) -> None:
    data = project.folder / "data.jsonl"
    data.write_bytes(data.read_bytes() + b'not JSON\n{"messages": []}\n')
    assert len(project.sft("inspect", "run.yaml", "--jsonl").out.splitlines()) == 60
    done = project.sft("run", "run.yaml", "--until", "pack", expect=2)
    assert "2 of 62 rows cannot be used" in done.err
    assert "Traceback" not in done.err
    document = project.run("--until", "pack", "max_rejected_ratio=0.1")
    assert statuses(document) == {"fetch": "reused", "tokenize": "reused", "pack": "ran"}


def test_refresh_and_until(project: Project) -> None:
    document = project.run("--refresh", "pack", "--until", "pack")
    assert statuses(document) == {"fetch": "reused", "tokenize": "reused", "pack": "ran"}


RETRYING_FLOW = """
import sys
from pathlib import Path
from prefect import flow
from configs.load import load_run
from stages.errors import TransientError, DataError
from stages.stage import Stage, open_run
from tasks.stage_task import run_as_task

tries = []

def produce(context, upstream, writer):
    tries.append(1)
    if len(tries) < 3:
        raise {error}
    writer.write("data.txt", b"done")
    return {{}}

@flow
def planted():
    context, store = open_run(load_run(Path("run.yaml")).run)
    stage = Stage("planted", 1, (), lambda context, upstream: {{"x": 1}}, produce)
    return run_as_task(stage, context, {{}}, store)

try:
    planted()
finally:
    print(len(tries))
"""


@pytest.mark.parametrize(
    ("error", "tries", "code"),
    [("TransientError('the network is away')", 3, 0), ("DataError('row 7 is broken')", 1, 1)],
)
def test_what_can_pass_is_tried_again_and_what_cannot_is_not(
    project: Project, error: str, tries: int, code: int
) -> None:
    import os

    script = project.folder / "planted.py"
    script.write_text(RETRYING_FLOW.format(error=error))
    environment = {**os.environ, **project.environment, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, script.name], cwd=project.folder, env=environment, capture_output=True, check=False
    )
    assert done.stdout.split()[-1] == str(tries).encode(), done.stderr.decode()
    assert (done.returncode != 0) == bool(code)


def wait_for_training(process: subprocess.Popen[bytes], project: Project, steps: int) -> list[psutil.Process]:
    """Wait until a checkpoint is there and some steps more, then return the processes below `sft run`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "ended before training was under way"
        for metrics in project.folder.glob("store/.work/train/*/metrics.jsonl"):
            if len(metrics.read_bytes().splitlines()) >= steps and list(metrics.parent.glob("*/complete.json")):
                return descendants(process.pid)
        time.sleep(0.05)
    end_tree(process)
    pytest.fail("training did not get under way")


def commands(processes: list[psutil.Process]) -> dict[int, str]:
    found = {}
    for process in processes:
        try:
            found[process.pid] = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("victim", ["rank", "torchrun", "sft run"])
def test_a_killed_run_continues_and_ends_with_the_same_model(tmp_path: Path, prefect_api: str, victim: str) -> None:
    changes: dict[str, Any] = {"save_steps": 5, "num_epochs": 12}
    reference = Project.create(tmp_path / "reference", **changes)
    reference.environment["PREFECT_API_URL"] = prefect_api
    undisturbed = reference.run("--until", "train")

    project = Project.create(tmp_path / "killed", **changes)
    project.environment["PREFECT_API_URL"] = prefect_api
    process = project.start("run", "run.yaml", "--until", "train", "--json")
    below = wait_for_training(process, project, steps=8)
    pids = {
        "rank": [pid for pid, line in commands(below).items() if "-m stages.train " in line and "agent" not in line],
        "torchrun": [pid for pid, line in commands(below).items() if "stages.train.agent" in line],
        "sft run": [process.pid],
    }[victim]
    assert pids, commands(below)
    psutil.Process(pids[0]).send_signal(signal.SIGKILL)
    process.communicate(timeout=240)
    if victim == "sft run":
        _, alive = psutil.wait_procs(below, timeout=10)
        assert not alive, commands(alive)
    document = project.run("--until", "train")
    model = Path("model/adapter_model.safetensors")
    paths = [
        Path(folder, d["stages"][-1]["path"])
        for folder, d in ((reference.folder, undisturbed), (project.folder, document))
    ]
    assert (paths[0] / model).read_bytes() == (paths[1] / model).read_bytes()
    losses = [
        [
            (r["step"], r["loss"])
            for r in map(orjson.loads, (path / "metrics.jsonl").read_bytes().splitlines())
            if "loss" in r
        ]
        for path in paths
    ]
    assert losses[0] == losses[1]


def test_work_outlives_a_server_that_goes_away(tmp_path: Path) -> None:
    project = Project.create(tmp_path, save_steps=5, num_epochs=12)
    process = project.start("run", "run.yaml", "--until", "train")
    below = wait_for_training(process, project, steps=8)
    [server] = [pid for pid, line in commands(below).items() if "uvicorn" in line]
    psutil.Process(server).kill()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert b"does not answer any more" in err
    planned = project.sft("plan", "run.yaml", "--until", "train", "--json").json()
    assert {stage["status"] for stage in planned["stages"]} == {"reused"}
