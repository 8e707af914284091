"""The sections of where and when: how training is started, how a run is deployed, where the model goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs.values import OPTIONS_HELP, Place, Section, StorageOptions


class SshConfig(Section):
    """Hosts that are reached by SSH."""

    hosts: tuple[str, ...] = Field((), description="Host of each node, as the others reach it.")
    shell: str = Field("ssh -o BatchMode=yes", description="Command that runs a command on a host.")


class SlurmConfig(Section):
    """A Slurm job."""

    options: tuple[str, ...] = Field((), description="Options of sbatch, one each: `--gres=gpu:8`.")
    setup: str | None = Field(None, description="Lines of shell in front of the training: `module load cuda`.")


class KubernetesConfig(Section):
    """A TrainJob of Kubeflow Trainer."""

    image: str | None = Field(None, description="Image with this project installed.")
    volume_claim: str | None = Field(None, description="Claim of the volume with the store.")
    mount_path: str = Field("/store", description="Where that volume is, here and in the pods.")
    namespace: str = Field("default", description="Namespace of the TrainJob.")
    runtime: str = Field("torch-distributed", description="ClusterTrainingRuntime of the TrainJob.")


class RayConfig(Section):
    """A Ray cluster."""

    address: str | None = Field(
        None, description="The cluster (host:port, ray://host:port); default: the one that this machine belongs to."
    )


class LauncherConfig(Section):
    """How training processes are started: `type` names the engine, whose own keys are in the section of its name."""

    type: Literal["local", "ssh", "slurm", "kubernetes", "ray"] = Field(
        "local", description="What starts them: torchrun here, SSH, a Slurm job, a Kubeflow TrainJob, a Ray cluster."
    )
    nodes: int = Field(1, ge=1, description="Machines that train together; they share a file system.")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Training processes per node; auto: one per GPU of this machine, one without a GPU."
    )
    threads: int = Field(0, ge=0, description="CPU threads per process (OMP_NUM_THREADS); 0: cores / processes.")
    gpus: bool = Field(True, description="kubernetes, ray: ask for a GPU per process.")
    port: int = Field(29400, ge=1, le=65535, description="Port on the first node where the nodes meet.")
    restarts: int = Field(
        3, ge=0, description="ssh, slurm, ray: how often all nodes start again after a process or machine is lost."
    )
    ssh: SshConfig = Field(SshConfig(), description="Keys of type: ssh.")
    slurm: SlurmConfig = Field(SlurmConfig(), description="Keys of type: slurm.")
    kubernetes: KubernetesConfig = Field(KubernetesConfig(), description="Keys of type: kubernetes.")
    ray: RayConfig = Field(RayConfig(), description="Keys of type: ray.")

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the machines that train are not this one, so that nothing follows from its GPUs."""
        return self.type in ("slurm", "kubernetes", "ray")

    @model_validator(mode="after")
    def _one_engine(self) -> LauncherConfig:
        for name in ("ssh", "slurm", "kubernetes", "ray"):
            section = getattr(self, name)
            if section != type(section)() and name != self.type:
                raise ValueError(
                    f"type is {self.type}, and there are keys of {name}; set type: {name}, or remove {name}"
                )
        return self

    @model_validator(mode="after")
    def _engine_knows_its_nodes(self) -> LauncherConfig:
        if self.type == "ssh" and len(self.ssh.hosts) != self.nodes:
            raise ValueError(
                f"ssh needs a host for each of {self.nodes} nodes and has {len(self.ssh.hosts)}; set launcher.ssh.hosts"
            )
        if self.type == "local" and self.nodes > 1:
            raise ValueError("local is one node; set type: ssh, slurm, kubernetes or ray, or nodes: 1")
        if self.is_elsewhere and self.processes == "auto":
            raise ValueError(f"{self.type} trains elsewhere: say how many processes a node has; set processes: 8")
        if self.type == "kubernetes" and not (self.kubernetes.image and self.kubernetes.volume_claim):
            raise ValueError(
                "kubernetes needs an image and the volume of the store; set launcher.kubernetes.image and .volume_claim"
            )
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
    allow_prompt_difference: bool = Field(
        False, description="Publish although inference renders prompts otherwise than they were in training."
    )


def _as_publish(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


Publish = Annotated[
    PublishConfig | None, BeforeValidator(_as_publish, json_schema_input_type=str | PublishConfig | None)
]
