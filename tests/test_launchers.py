"""Training on several nodes: two agents on two loopback addresses, a Slurm script, a TrainJob as its schema has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from configs.errors import ConfigError
from configs.load import load_run
from stages.train.engines import kubernetes
from stages.train.engines.kubernetes import train_job
from stages.train.engines.slurm import batch_script
from stages.train.job import Job, WorkFolder
from stages.train.outcome import is_lost
from tests.conftest import free_port
from tests.operated import of_training, wait_for
from tests.project import Project

pytestmark = pytest.mark.timeout(600)

SHELL = """#!/bin/sh
# A remote shell whose hosts are the loopback addresses of this machine.
shift
cd /
export GLOO_SOCKET_IFNAME=lo
exec sh -c "$*"
"""


def two_hosts(folder: Path, **more: Any) -> dict[str, Any]:
    shell = folder / "shell.sh"
    shell.write_text(SHELL)
    shell.chmod(0o755)
    reached = {"hosts": ["127.0.0.1", "127.0.0.2"], "shell": str(shell)}
    return {"type": "ssh", "nodes": 2, "processes": 1, "port": free_port(), "threads": 1, "ssh": reached, **more}


def adapter_of(project: Project) -> bytes:
    return (project.folder / "out" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["127.0.0.1", "127.0.0.2"])  # the first node, where the agents meet, and another
def test_two_nodes_train_what_two_processes_do_and_a_lost_node_comes_back(tmp_path: Path, lost: str) -> None:
    local = Project.create(tmp_path / "local", num_epochs=4, save_steps=5, launcher={"processes": 2, "threads": 1})
    local.run("--until", "train")
    nodes = Project(tmp_path / "nodes", dict(local.environment))
    shutil.copytree(local.folder, nodes.folder, ignore=shutil.ignore_patterns("store", "out", ".prefect"))
    nodes.configure(num_epochs=4, save_steps=5, launcher=two_hosts(tmp_path))
    process = nodes.start("run", "run.yaml", "--until", "train", "--json")
    work = nodes.folder / "store" / ".work" / "train"
    wait_for(lambda: any(work.glob("*/checkpoint-*/complete.json")), 240, lambda: log_of(work))
    agents = [found for found in of_training(nodes.folder) if found.cmdline()[2] == "stages.train.agent"]
    [agent] = [found for found in agents if f"--local-addr={lost}" in found.cmdline()]
    agent.kill()
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err.decode()
    assert "all agents are started again (1)" in (nodes.folder / "out" / "train.log").read_text()
    assert adapter_of(nodes) == adapter_of(local)
    assert not of_training(nodes.folder)


@pytest.mark.slow
def test_a_stopped_run_ends_its_agents_on_every_host(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project", num_epochs=400, save_steps=5, launcher=two_hosts(tmp_path))
    process = project.start("run", "run.yaml", "--until", "train")
    work = project.folder / "store" / ".work" / "train"
    wait_for(lambda: any(work.glob("*/checkpoint-*/complete.json")), 240, lambda: log_of(work))
    assert len(of_training(project.folder)) >= 4
    process.terminate()
    process.communicate(timeout=90)
    assert process.returncode == 143
    wait_for(
        lambda: not of_training(project.folder), 30, lambda: str([p.cmdline() for p in of_training(project.folder)])
    )


def log_of(work: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in work.glob("*/train.log"))


def job_of(tmp_path: Path, **launcher: Any) -> tuple[Job, WorkFolder]:
    project = Project(tmp_path)
    project.configure(launcher=launcher)
    run = load_run(tmp_path / "run.yaml").run
    paths = {name: tmp_path for name in ("tokens", "packs", "model", "work")}
    named = {"key": "0" * 64, "model_name": "base", "model_commit": None, "precision": "fp32", "tf32": False}
    return Job.model_validate({"run": run, "world_size": 16, **paths, **named}), WorkFolder(tmp_path)


def test_the_script_of_a_slurm_job_is_a_script(tmp_path: Path) -> None:
    options = ["--partition=gpu", "--gres=gpu:8"]
    job, work = job_of(
        tmp_path, type="slurm", nodes=2, processes=8, slurm={"options": options, "setup": "module load cuda"}
    )
    text = batch_script(job, work, 4)
    lines = text.splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --gres=gpu:8", "#SBATCH --ntasks-per-node=1", "module load cuda"} <= {*lines}
    assert "--nproc-per-node=8" in text
    assert subprocess.run(["bash", "-n"], input=text.encode()).returncode == 0


IN_PODS = {"image": "registry/sft:1", "volume_claim": "store"}


def test_a_train_job_is_what_its_published_schema_says(tmp_path: Path) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    job, work = job_of(tmp_path, type="kubernetes", nodes=2, processes=8, kubernetes=IN_PODS)
    manifest = train_job(job, work, 4)
    read = models.TrainerV1alpha1TrainJob.from_dict(manifest)
    assert read.to_dict() == manifest  # nothing that the schema does not know
    assert read.spec.trainer.num_nodes == 2
    assert read.spec.trainer.num_proc_per_node == 8
    [mount, shared] = (
        read.spec.runtime_patches[0]
        .training_runtime_spec.template.spec.replicated_jobs[0]
        .template.spec.template.spec.containers[0]
        .volume_mounts
    )
    assert (mount.name, shared.mount_path) == ("store", "/dev/shm")  # noqa: S108


KUBECTL = """#!/bin/sh
# Stands in for a cluster: keeps what is applied in a folder, and answers with what the test puts there.
cd {folder}
case "$2" in
  apply) cat > applied.json ;;
  get) case "$*" in
         *--ignore-not-found*) [ ! -f applied.json ] || echo trainjob/sft ;;
         *) [ ! -f down ] || {{ echo "connection refused" >&2; exit 1; }}; cat status.json ;;
       esac ;;
  delete) rm -f applied.json ;;
esac
"""


IN_PODS = {"image": "registry/sft:1", "volume_claim": "store"}


def test_a_train_job_is_followed_past_an_api_that_is_away_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cluster is at hand: this shows what is asked of kubectl, not that a cluster does it."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(folder=tmp_path))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(kubernetes, "ASK_SECONDS", 0.0)
    job, work = job_of(tmp_path, type="kubernetes", nodes=2, processes=8, kubernetes=IN_PODS)

    def status(kind: str) -> None:
        conditions = [{"type": kind, "status": "True"}]
        (tmp_path / "status.json").write_bytes(orjson.dumps({"status": {"conditions": conditions}}))

    status("Created")
    agents = kubernetes.KubernetesAgents(job, work, 4)
    assert orjson.loads((tmp_path / "applied.json").read_bytes()) == train_job(job, work, 4)
    assert agents.poll() is None
    (tmp_path / "down").touch()
    assert agents.poll() is None, "an API that is away for a moment is not the end of a training"
    (tmp_path / "down").unlink()
    again = kubernetes.KubernetesAgents(job, work, 4)  # after this process was killed: the pods train on
    status("Failed")
    assert (agents.poll(), again.poll()) == (1, 1)
    status("Complete")
    assert kubernetes.KubernetesAgents(job, work, 4).poll() == 0
    agents.end(1.0)
    assert not (tmp_path / "applied.json").exists()


@pytest.mark.parametrize(
    ("ranks", "agent", "lost"),
    [
        ([], 137, True),  # the agent itself was killed
        ([], 75, True),  # the node where the agents meet does not answer
        ([], 255, True),  # its host does not answer
        ([143], 255, True),  # the engine knows that a machine is gone, and has stopped the others
        ([75], 1, True),  # another process is gone
        ([-9], 1, True),
        ([143], 143, False),  # stopped: a new start would ignore that
        ([4], 255, False),  # an error of its own comes again
        ([3], 1, False),
        ([], 1, False),
    ],
)
def test_what_is_started_again(tmp_path: Path, ranks: list[int], agent: int, lost: bool) -> None:
    work = WorkFolder(tmp_path)
    failures = [{"rank": rank, "exit_code": code, "time": rank} for rank, code in enumerate(ranks)]
    if failures:
        work.agent_report(0).write_bytes(orjson.dumps({"failures": failures}))
    assert is_lost(work, agent) == lost


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ({"type": "ssh", "nodes": 2, "ssh": {"hosts": ["a"]}}, "a host for each of 2 nodes"),
        ({"type": "slurm", "processes": 8, "ray": {"address": "auto"}}, "keys of ray"),
        ({"nodes": 2}, "local is one node"),
        ({"type": "slurm"}, "processes: 8"),
        ({"type": "kubernetes", "processes": 8}, "an image and the volume"),
    ],
)
def test_an_engine_that_lacks_something_says_so(tmp_path: Path, launcher: dict[str, Any], said: str) -> None:
    project = Project(tmp_path)
    project.configure(launcher=launcher)
    with pytest.raises(ConfigError, match=said):
        load_run(tmp_path / "run.yaml")


def test_precision_elsewhere_is_not_taken_from_this_machine(tmp_path: Path) -> None:
    Project(tmp_path).configure(launcher={"type": "slurm", "processes": 8}, bf16="auto")
    with pytest.raises(ConfigError, match="bf16: true"):
        load_run(tmp_path / "run.yaml")


def test_a_launcher_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    project = Project.create(tmp_path, launcher={"type": "slurm", "processes": 2})
    project.environment["PATH"] = str(tmp_path)
    assert "no `sbatch` here" in project.sft("run", "run.yaml", "--until", "train", expect=1).err
