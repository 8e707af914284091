"""The sections of where and when: how training is started, how a run is deployed, where the model goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs.values import OPTIONS_HELP, Place, Section, StorageOptions


class LauncherConfig(Section):
    """How training processes are started."""

    type: Literal["local", "ssh", "slurm", "kubernetes"] = Field(
        "local", description="What starts them: torchrun here, on hosts by SSH, as a Slurm job, as a Kubeflow TrainJob."
    )
    nodes: int = Field(1, ge=1, description="Machines that train together; they share a file system.")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Training processes per node; auto: one per GPU of this machine, one without a GPU."
    )
    threads: int = Field(0, ge=0, description="CPU threads per process (OMP_NUM_THREADS); 0: cores / processes.")
    restarts: int = Field(
        3, ge=0, description="ssh: how often all agents are started again after a process or host is lost."
    )
    port: int = Field(29400, ge=1, le=65535, description="Port on the first node where the nodes meet.")
    hosts: tuple[str, ...] = Field((), description="ssh: host of each node, as the others reach it.")
    remote_shell: str = Field("ssh -o BatchMode=yes", description="ssh: command that runs a command on a host.")
    slurm_options: tuple[str, ...] = Field((), description="slurm: options of sbatch, `--gres=gpu:8`, one each.")
    setup: str | None = Field(None, description="slurm: lines of shell in front of the training (`module load ...`).")
    namespace: str = Field("default", description="kubernetes: namespace of the TrainJob.")
    runtime: str = Field("torch-distributed", description="kubernetes: ClusterTrainingRuntime of the TrainJob.")
    image: str | None = Field(None, description="kubernetes: image with this project installed.")
    gpus: bool = Field(True, description="kubernetes: ask for a GPU per process.")
    volume_claim: str | None = Field(None, description="kubernetes: claim of the volume with the store.")
    mount_path: str = Field("/store", description="kubernetes: where that volume is, here and in the pods.")

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the machines that train are not this one, so that nothing follows from its GPUs."""
        return self.type in ("slurm", "kubernetes")

    @model_validator(mode="after")
    def _engine_knows_its_nodes(self) -> LauncherConfig:
        if self.type == "ssh" and len(self.hosts) != self.nodes:
            raise ValueError(f"ssh needs a host for each of {self.nodes} nodes and has {len(self.hosts)}; set hosts")
        if self.type == "local" and self.nodes > 1:
            raise ValueError("local is one node; set type: ssh, slurm or kubernetes, or nodes: 1")
        if self.is_elsewhere and self.processes == "auto":
            raise ValueError(f"{self.type} trains elsewhere: say how many processes a node has, processes: 8")
        if self.type == "kubernetes" and not (self.image and self.volume_claim):
            raise ValueError("kubernetes needs image and volume_claim: a container and the volume of the store")
        return self


class OrchestrationConfig(Section):
    """How a run is deployed: where its stages run, and when."""

    name: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name of the deployments; default: the file's name."
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="Where rows are tokenized: processes of this machine, or the workers of a Ray cluster."
    )
    address: str | None = Field(
        None, description="Ray cluster (host:port, ray://host:port); default: the one that this machine belongs to."
    )
    work_pool: str = Field("sft", description="Prefect work pool of the deployments.")
    data_queue: str = Field("data", description="Queue of the runs that need no GPU: preparing, publishing, watching.")
    gpu_queue: str = Field("gpu", description="Queue of the runs that train.")
    gpu_pool: str | None = Field(None, description="Work pool of the runs that train; default: work_pool.")
    cron: str | None = Field(None, description="Prepare, then train and publish, at these times (cron expression).")
    interval: int | None = Field(None, ge=60, description="The same every so many seconds.")
    timezone: str = Field("UTC", description="Time zone of `cron`.")
    watch: int | None = Field(None, ge=10, description="Look every so many seconds whether the data has changed.")
    hold_unhealthy: bool = Field(
        False, description="Publishing waits for a person when the training was judged sick (resume in the UI)."
    )

    @model_validator(mode="after")
    def _an_address_needs_ray(self) -> OrchestrationConfig:
        if self.address and self.executor != "ray":
            raise ValueError("address names a Ray cluster; set executor: ray, or remove address")
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> OrchestrationConfig:
        if self.cron and self.interval:
            raise ValueError("cron and interval exclude each other; remove interval")
        return self


class PublishConfig(Section):
    """Where the finished model goes."""

    to: Place = Field(description="Folder or fsspec URL (s3://, gs://, memory excluded) that receives the model.")
    storage_options: StorageOptions = Field({}, description=OPTIONS_HELP % "the target")


def _as_publish(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


Publish = Annotated[
    PublishConfig | None, BeforeValidator(_as_publish, json_schema_input_type=str | PublishConfig | None)
]
