"""The GPUs of this machine, found without torch, and what follows from them: processes and precision."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem

Precision = Literal["fp32", "bf16", "fp16"]

VARLEN = "torch_varlen"
"""Our name for torch's variable-length attention (`torch.nn.attention.varlen`)."""

AMPERE = (8, 0)
"""Compute capability from which a GPU has bfloat16 and TensorFloat-32."""


@dataclass(frozen=True)
class Machine:
    """The GPUs that a training may use.

    Attributes:
        gpus: compute capability of each visible GPU.
    """

    gpus: tuple[tuple[int, int], ...]

    @property
    def is_ampere(self) -> bool:
        """Return whether every GPU has bfloat16 and TensorFloat-32; False without a GPU."""
        return bool(self.gpus) and min(self.gpus) >= AMPERE


def this_machine() -> Machine:
    """Return the GPUs that the driver lists and CUDA_VISIBLE_DEVICES does not hide."""
    if not Path("/proc/driver/nvidia").exists():
        return Machine(())
    gpus = _driver_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return Machine(gpus)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if "-1" in names:  # CUDA ignores it and what follows
        names = names[: names.index("-1")]
    if all(name.isdigit() for name in names):
        return Machine(tuple(gpus[int(name)] for name in names if int(name) < len(gpus)))
    return Machine(gpus[: len(names)])


def world_size(run: RunConfig, machine: Machine) -> int:
    """Return the number of training processes, on all nodes together."""
    wanted, nodes = run.launcher.processes, run.launcher.nodes
    if wanted == "auto":
        return max(1, len(machine.gpus)) * nodes
    if machine.gpus and wanted > len(machine.gpus) and run.launcher.type == "local":
        rule = f"this machine shows {len(machine.gpus)} GPU(s), and each process needs its own"
        remedy = "Lower it, or set it to auto."
        raise ConfigError([Problem("configuration", "launcher.processes", str(wanted), rule, remedy)])
    return wanted * nodes


def copies(run: RunConfig, machine: Machine) -> int:
    """Return how many copies of the model there are under FSDP2, each in shards.

    Raises:
        ConfigError: the processes are not as many as the sizes ask for.
    """
    processes = world_size(run, machine)
    sharing = run.sharing(processes)
    found = run.dp_replicate_size or max(1, processes // sharing)
    if run.sharding == "fsdp2" and found * sharing != processes:
        key = "dp_shard_size" if run.dp_shard_size else "dp_replicate_size"
        rule = (
            f"{found} copies of the model in {sharing} shards each are for {found * sharing} processes, not {processes}"
        )
        remedy = f"Set launcher.processes, or {key}, so that they agree."
        raise ConfigError([Problem("configuration", key, str(getattr(run, key)), rule, remedy)])
    return found


def precision(run: RunConfig, machine: Machine) -> Precision:
    """Return the precision of the computation; `auto` is bfloat16 where the GPUs have it, else what they have."""
    if run.fp16:
        if not machine.gpus and not run.launcher.is_elsewhere:
            rule, remedy = "float16 training needs a GPU, and this machine shows none", "Set bf16: auto instead."
            raise ConfigError([Problem("configuration", "fp16", "true", rule, remedy)])
        return "fp16"
    if run.bf16 == "auto":
        if machine.is_ampere:
            return "bf16"
        return "fp16" if machine.gpus else "fp32"
    return "bf16" if run.bf16 else "fp32"


def tf32(run: RunConfig, machine: Machine) -> bool:
    """Return whether float32 matrix products are computed in TensorFloat-32."""
    if run.launcher.is_elsewhere:  # what has bfloat16 has TensorFloat-32
        return bool(run.bf16) if run.tf32 == "auto" else run.tf32
    return machine.is_ampere if run.tf32 == "auto" else run.tf32 and bool(machine.gpus)


def attention(run: RunConfig, machine: Machine) -> str | None:
    """Return the attention that is trained with: the one asked for, else the fastest that keeps packed samples apart.

    None is SDPA on a CPU, sample by sample. On GPUs with 16-bit numbers FlashAttention is the fastest where it is
    installed, and the variable-length attention that torch brings next.
    """
    if run.attn_implementation is not None or not machine.gpus:
        return run.attn_implementation
    if not machine.is_ampere or precision(run, machine) == "fp32":
        return "sdpa"
    return "flash_attention_2" if find_spec("flash_attn") is not None else VARLEN


def threads(run: RunConfig, processes: int) -> int:
    """Return the CPU threads of each of `processes`, which are those of all nodes."""
    return run.launcher.threads or max(1, len(os.sched_getaffinity(0)) * run.launcher.nodes // processes)


def _driver_gpus() -> tuple[tuple[int, int], ...]:
    """Ask NVIDIA's management library, which every driver brings, for the compute capability of each GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ()
    count = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    capabilities = []
    for index in range(count.value):
        device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
        capabilities.append((major.value, minor.value))
    library.nvmlShutdown()
    return tuple(capabilities)
