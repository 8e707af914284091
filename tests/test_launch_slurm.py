"""Training as a Slurm job: a real slurmctld, and two nodes that are two slurmd on two loopback addresses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.operated import log_of, of_training, wait_for, wait_for_checkpoint, weights
from tests.project import Project, statuses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdTimeout=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0
KillWait=5
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.2 Port={second} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Slurm's daemons, and the environment of its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(folder=folder, controller=free_port(), first=free_port(), second=free_port()))
        self.settings = {"SLURM_CONF": str(conf)}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool-node1", "spool-node2"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
        files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
        self.start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        self.start("slurmctld", "-D")
        for node in ("node1", "node2"):
            self.start("slurmd", "-D", "-N", node)
        wait_for(lambda: self.ask("sinfo", "-h", "-o", "%D %T") == "2 idle", 60, self.logs)

    def start(self, *command: str) -> None:
        """Start a daemon, known by the last word of its command line."""
        with (self.folder / f"{command[0]}-{command[-1].strip('-')[-5:]}.out").open("ab") as out:
            self.daemons[command[-1]] = subprocess.Popen(
                command, env={**os.environ, **self.settings}, stdout=out, stderr=out
            )
        time.sleep(2)

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env={**os.environ, **self.settings}, capture_output=True, text=True, check=False
        ).stdout.strip()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.out"))

    def stop(self) -> None:
        for process in reversed(self.daemons.values()):
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("Slurm is not installed (Debian: slurmctld slurmd munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:  # its sockets need a short path
        made = Cluster(Path(name))
        try:
            yield made
        finally:
            made.ask("scancel", "--me")
            made.stop()


def launcher(**more: Any) -> dict[str, Any]:
    lines = {"setup": "export GLOO_SOCKET_IFNAME=lo"}
    return {"type": "slurm", "nodes": 2, "processes": 1, "threads": 1, "port": free_port(), "slurm": lines, **more}


def test_two_nodes_train_what_two_processes_do_and_a_lost_node_comes_back(tmp_path: Path, cluster: Cluster) -> None:
    keys = {"num_epochs": 4, "save_steps": 5}
    local = Project.create(tmp_path / "local", **keys, launcher={"processes": 2, "threads": 1})
    local.run("--until", "train")
    nodes = Project(tmp_path / "nodes", {**local.environment, **cluster.settings})
    shutil.copytree(local.folder, nodes.folder, ignore=shutil.ignore_patterns("store", "out", ".prefect"))
    nodes.configure(**keys, launcher=launcher())
    process = nodes.start("run", "run.yaml", "--until", "train", "--json")
    wait_for_checkpoint(nodes)
    [agent] = [
        found
        for found in of_training(nodes.folder)
        if found.cmdline()[2] == "stages.train.agent" and found.environ()["SLURMD_NODENAME"] == "node2"
    ]
    cluster.daemons["node2"].kill()
    for lost in (agent.parent(), agent):
        assert lost is not None
        lost.kill()
    cluster.daemons["node2"].wait()
    wait_for(lambda: "all agents are started again (1)" in log_of(nodes), 120, lambda: log_of(nodes))
    cluster.start("slurmd", "-D", "-N", "node2")
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err.decode() + cluster.logs()
    assert weights(nodes) == weights(local)
    assert not of_training(nodes.folder)


def test_a_stopped_run_cancels_its_job_and_a_killed_one_is_followed_by_one_job(
    tmp_path: Path, cluster: Cluster
) -> None:
    project = Project.create(tmp_path / "project", launcher=launcher(), num_epochs=400, save_steps=5)
    project.environment |= cluster.settings
    killed = project.start("run", "run.yaml", "--until", "train")
    wait_for_checkpoint(project)
    killed.kill()
    killed.communicate()
    orphan = cluster.ask("squeue", "-h", "-o", "%i")
    assert orphan, "a job outlives who submitted it"
    again = project.start("run", "run.yaml", "--until", "train")

    def followed() -> bool:
        jobs = cluster.ask("squeue", "-h", "-t", "running", "-o", "%i")
        return bool(jobs) and jobs != orphan and len(of_training(project.folder)) >= 4

    wait_for(followed, 240, lambda: cluster.ask("squeue") + log_of(project))
    again.terminate()
    again.communicate(timeout=90)
    assert again.returncode in (143, -signal.SIGTERM)
    wait_for(lambda: not cluster.ask("squeue", "-h"), 60, lambda: cluster.ask("squeue"))
    wait_for(lambda: not of_training(project.folder), 30, lambda: str(of_training(project.folder)))


def test_one_node_trains(tmp_path: Path, cluster: Cluster) -> None:
    project = Project.create(tmp_path / "project", launcher=launcher(nodes=1, processes=2))
    project.environment |= cluster.settings
    assert statuses(project.run("--until", "train"))["train"] == "ran"
