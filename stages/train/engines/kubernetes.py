"""A training as a TrainJob of Kubeflow Trainer: one pod a node; applied with kubectl, followed until it ends."""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import Any

import orjson

from stages.errors import StageError, TransientError
from stages.train.engines.agents import environment
from stages.train.job import Job, WorkFolder

ASK_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""How long the API may not answer before a training that runs on is given up."""


class KubernetesAgents:
    """An applied TrainJob."""

    def __init__(self, job: Job, work: WorkFolder, threads: int) -> None:
        manifest = train_job(job, work, threads)
        self._name, self._namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        self._asked, self._answered = 0.0, time.monotonic()
        self._code: int | None = None
        if not self._exists():  # an earlier try may have been killed, and its pods train on
            self._kubectl("apply", "--filename=-", given=orjson.dumps(manifest))

    def poll(self) -> int | None:
        """Return 0 when the TrainJob is complete, 1 when it has failed, None while it waits or runs."""
        if self._code is None and time.monotonic() - self._asked > ASK_SECONDS:
            self._asked = time.monotonic()
            try:
                answer = orjson.loads(self._kubectl("get", "trainjob", self._name, "--output=json"))
            except TransientError:
                if self._asked - self._answered > PATIENCE_SECONDS:
                    raise
                return None
            self._answered = self._asked
            true = {one["type"] for one in answer.get("status", {}).get("conditions", []) if one["status"] == "True"}
            self._code = 0 if "Complete" in true else 1 if "Failed" in true else None
        return self._code

    def end(self, grace: float) -> None:
        """Delete the TrainJob; its pods get SIGTERM and `grace` seconds."""
        self._kubectl("delete", "trainjob", self._name, "--ignore-not-found", "--wait=true", f"--timeout={grace:.0f}s")

    def _exists(self) -> bool:
        return bool(self._kubectl("get", "trainjob", self._name, "--ignore-not-found", "--output=name"))

    def _kubectl(self, *arguments: str, given: bytes = b"") -> bytes:
        try:
            done = subprocess.run(
                ["kubectl", f"--namespace={self._namespace}", *arguments],  # noqa: S607
                input=given,
                capture_output=True,
                check=False,
                timeout=120,
            )
        except FileNotFoundError:
            raise StageError(
                "launcher.type: kubernetes, and there is no `kubectl` on this machine. Install it."
            ) from None
        if done.returncode:
            raise TransientError(f"kubectl {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout


def train_job(job: Job, work: WorkFolder, threads: int) -> dict[str, Any]:
    """Return the manifest (trainer.kubeflow.org/v1alpha1).

    The runtime `torch-distributed` gives every pod the rendezvous in PET_* variables, which torchrun reads. The volume
    claim holds the store and the working folder under the same paths as here.
    """
    launcher, settings = job.run.launcher, job.run.launcher.kubernetes
    each = job.world_size // launcher.nodes
    report = f"{shlex.quote(str(work.agent_report('')).removesuffix('.json'))}$(hostname).json"
    module = ["-m", "stages.train.agent", report, "-m", "stages.train", shlex.quote(str(work.job))]
    gpus = {"limits": {"nvidia.com/gpu": each}, "requests": {"nvidia.com/gpu": each}} if launcher.gpus else {}
    variables = environment(threads)
    variables.pop("PYTHONPATH")  # the image has the project installed
    mounts = [{"name": "store", "mountPath": settings.mount_path}, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    volumes = [
        {"name": "store", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": f"sft-{job.key[:16]}", "namespace": settings.namespace},
        "spec": {
            "runtimeRef": {"name": settings.runtime},
            "trainer": {
                "image": settings.image,
                "command": ["bash", "-c", "exec python " + " ".join(module)],
                "numNodes": launcher.nodes,
                "numProcPerNode": each,
                "resourcesPerNode": gpus,
                "env": [{"name": name, "value": value} for name, value in variables.items()],
            },
            "runtimePatches": [
                {
                    "manager": "sft-flow.io/launcher",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [_node(volumes, mounts)]}}},
                }
            ],
        },
    }


def _node(volumes: list[dict[str, Any]], mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the patch of the runtime's job whose pods train."""
    pod = {"volumes": volumes, "containers": [{"name": "node", "volumeMounts": mounts}]}
    return {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
