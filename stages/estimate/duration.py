"""About how long stages take: from what the store knows of earlier ones, else from what hardware can do."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.artifacts import Artifact, Store
from stages.estimate.gpus import Gpu
from stages.estimate.shapes import ModelShape

GPU_EFFICIENCY = 0.35
"""Share of a GPU's products per second that training usually reaches."""

CPU_FLOPS_PER_THREAD = 3e10
SAME = ("base_model", "adapter", "precision", "quantization", "world_size", "gradient_checkpointing", "sharding")
"""Inputs of a training that decide its speed, besides the machine."""

LOOKED_AT = 20
"""So many of the newest trainings are looked through."""


@dataclass(frozen=True)
class Duration:
    """Seconds, and in words what they are estimated from."""

    seconds: float
    basis: str


def training_time(
    store: Store,
    inputs: dict[str, Any],
    run: RunConfig,
    shape: ModelShape | None,
    *,
    tokens: int,
    gpu: Gpu | None,
    on_cpu: bool,
    here: bool,
    processes: int,
    threads: int,
) -> Duration | None:
    """Return about how long training on so many tokens takes; None if nothing is known that tells.

    Args:
        store: where earlier trainings are looked for.
        inputs: the key inputs of this one.
        run: the configuration.
        shape: sizes of the base model, if known.
        tokens: tokens of all steps together.
        gpu: kind of the GPU, if known.
        on_cpu: whether it trains without a GPU.
        here: whether it trains on this machine, so that earlier trainings tell its speed.
        processes: number of training processes.
        threads: CPU threads of each.
    """
    if here:
        for artifact in list(store.artifacts("train"))[: -LOOKED_AT - 1 : -1]:
            known = _course(artifact) if _alike(artifact.manifest.inputs, inputs) else None
            if known is not None:
                start, speed = known
                basis = f"{start:.0f} s of start and {speed:,.0f} tokens/s in the training {artifact.key[:12]}"
                return Duration(start + tokens / speed, basis)
    if shape is None or not shape.sized or (gpu is None and not on_cpu):
        return None
    flops = flops_per_token(run, shape) * tokens
    if gpu is None:
        return Duration(flops / (CPU_FLOPS_PER_THREAD * threads * processes), "rough: no such training in the store")
    basis = f"rough: {gpu.name} at {GPU_EFFICIENCY:.0%} of its {gpu.tflops:,.0f} TFLOP/s"
    return Duration(flops / (gpu.tflops * 1e12 * GPU_EFFICIENCY * processes), basis)


def flops_per_token(run: RunConfig, shape: ModelShape) -> float:
    """Return the operations for a token: two a weight for each time that it is met.

    In the forward pass, for the gradients of activations, for those of weights where they are trained, and in the
    forward pass again where activations are recomputed. The pairs of tokens in attention are not counted.
    """
    passes = 2 + (0 if run.adapter else 1) + (1 if run.recomputes_activations else 0)
    return 2.0 * passes * shape.active_parameters


def last_time(store: Store, stage: str) -> Duration | None:
    """Return how long the newest artifact of a stage took."""
    artifact = store.newest(stage)
    seconds = artifact.manifest.volatile.get("seconds") if artifact is not None else None
    if artifact is None or not isinstance(seconds, int | float):
        return None
    return Duration(float(seconds), f"as {artifact.key[:12]} took")


def _alike(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(before.get(name) == now.get(name) for name in SAME)


def _course(artifact: Artifact) -> tuple[float, float] | None:
    """Return the seconds before and after the steps, and the median tokens per second; None without a record."""
    try:
        lines = artifact.path("metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return None
    steps = [record for line in lines if "loss" in (record := orjson.loads(line)) and record["tokens_per_second"]]
    if not steps:
        return None
    speeds = [record["tokens_per_second"] for record in steps]
    whole = float(artifact.manifest.volatile.get("seconds", 0.0))
    return max(0.0, whole - steps[-1]["seconds"]), statistics.median(speeds[1:] or speeds)  # the first is warm-up
