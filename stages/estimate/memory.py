"""How much memory a training needs on each device, by part, at the fullest moment of a step.

Two moments are candidates: the end of the forward pass, when all activations are there, and gradients only if passes
are accumulated; and the end of the backward pass, when all gradients are there. The formulae, and their error against
measured peaks, are in infra/docs/planning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from configs.schema import RunConfig
from stages.estimate.activations import FLOAT, Pass, kept_by_block, stored, under_way, uses_autocast
from stages.estimate.shapes import Linear, ModelShape
from stages.train.optimizers import settled_name

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Float32 logits that the loss holds at a time, as `stages.train.loss.CHUNK_BYTES` (a test compares them)."""

CUDA_CONTEXT = 600 * 2**20
"""Of the driver and the libraries' kernels and work space; differs by version."""

BUCKET = 500_000_000
"""Numbers in a bucket of DeepSpeed, where its configuration does not say (`reduce_bucket_size`)."""

STATE_BYTES = {
    # optimizer -> bytes of state for each trained weight, where it is not two numbers of the weight's own kind
    "adamw_8bit": 2.03,
    "adamw_bnb_8bit": 2.03,
    "paged_adamw_8bit": 0.0,
    "paged_adamw": 0.0,
    "paged_adamw_32bit": 0.0,
    "ademamix_8bit": 4.06,
    "lion_32bit": 4.0,
    "lion_8bit": 1.02,
    "paged_lion_8bit": 0.0,
    "adafactor": 0.02,
    "sgd": 0.0,
    "adagrad": 4.0,
    "rmsprop": 4.0,
    "adamw_torch_8bit": 2.03,
    "adamw_torch_4bit": 1.03,
    "paged_ademamix_8bit": 0.0,
    "paged_ademamix_32bit": 0.0,
    "paged_lion_32bit": 0.0,
    "rmsprop_bnb_8bit": 1.02,
    "lomo": 0.0,
    "adalomo": 0.02,
}


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the fullest moment of a training step, on one device."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Shards:
    """Into how many parts a training cuts what it holds, one for each process."""

    weights: int
    gradients: int
    states: int

    @classmethod
    def of(cls, run: RunConfig, processes: int) -> Shards:
        """Return the cut of a run on so many processes."""
        cuts = {
            "none": (False, False, False),
            "zero0": (False, False, False),
            "zero1": (False, False, True),
            "zero2": (False, True, True),
            "zero3": (True, True, True),
            "fsdp2": (True, True, True),
        }
        parts = run.sharing(processes) if run.sharding == "fsdp2" else processes
        return cls(*(parts if cut else 1 for cut in cuts[run.sharding]))


def estimate(run: RunConfig, shape: ModelShape, step: Pass, processes: int) -> Memory:
    """Return what a training needs on each device at its fullest moment."""
    shards = Shards.of(run, processes)
    held = _held(run, shape, step, shards) | {"communication": _communication(run, shape, step, processes)}
    if step.device == "cuda":
        held["CUDA context"] = CUDA_CONTEXT
    gradients = _gradients(run, shape, step, shards)
    moments = (
        *_after_forward(run, shape, step, gradients),
        {"gradients": gradients, "activations": _last_block(run, shape, step)},
        {"gradients": gradients, "optimizer's work": _optimizer_work(run, shape, step)},
    )
    parts = held | max(moments, key=lambda moment: sum(moment.values()))
    return Memory({name: round(size) for name, size in parts.items() if size >= 1})


def _held(run: RunConfig, shape: ModelShape, step: Pass, shards: Shards) -> dict[str, float]:
    """Return what is there all the time: weights and optimizer states."""
    offload = _offloads(run)
    quantises = bool(run.adapter) and (run.load_in_4bit or run.load_in_8bit)
    plain = shape.parameters - (shape.linear_weights if quantises else 0)
    states = 0.0 if "states" in offload else _state_bytes(run, step) * shape.trained_weights(run) / shards.states
    if "weights" in offload:
        return {"optimizer": states}
    return {
        "weights": _weight_bytes(run, step) * plain / shards.weights,
        "quantised weights": _quantised_bytes(run) * shape.linear_weights / shards.weights if quantises else 0,
        "adapter": FLOAT * shape.trained_weights(run) / shards.weights if run.adapter else 0,
        "optimizer": states,
    }


def _weight_bytes(run: RunConfig, step: Pass) -> int:
    """Return the bytes of a weight of the base: trained ones are float32 under autocast, but not with DeepSpeed."""
    frozen_or_low = run.adapter is not None or not uses_autocast(run, step) or run.deepspeed is not None
    return step.bytes if frozen_or_low else FLOAT


def _quantised_bytes(run: RunConfig) -> float:
    """Return the bytes of a quantised weight: 4 bits, a scale byte for 64, a float for 256 of these; or 8 bits."""
    return 0.5 + 1 / 64 + FLOAT / (64 * 256) if run.load_in_4bit else 1.0


def _trained_bytes(run: RunConfig, step: Pass) -> int:
    """Return the bytes of a trained weight, and of its gradient."""
    return FLOAT if run.adapter else _weight_bytes(run, step)


def _state_bytes(run: RunConfig, step: Pass) -> float:
    """Return the bytes of optimizer state for a trained weight; DeepSpeed keeps a float32 copy of it besides."""
    in_deepspeed = run.deepspeed is not None
    number = FLOAT if in_deepspeed else _trained_bytes(run, step)
    return STATE_BYTES.get(settled_name(run.optimizer), 2.0 * number) + (FLOAT if in_deepspeed else 0)


def _gradients(run: RunConfig, shape: ModelShape, step: Pass, shards: Shards) -> float:
    if "gradients" in _offloads(run):
        return 0.0
    return _trained_bytes(run, step) * shape.trained_weights(run) / shards.gradients


def _after_forward(run: RunConfig, shape: ModelShape, step: Pass, gradients: float) -> list[dict[str, float]]:
    """Return what is there when the loss is computed, and when the backward pass is in its first block."""
    there = stored(run, shape, step) + _casts(run, shape, step)
    before = gradients if run.passes_per_step > 1 else 0.0
    again = kept_by_block(run, shape, step) if run.recomputes_activations else 0.0
    first_block = there + again + under_way(shape, step) + _spread(shape, step)
    return [
        {"gradients": before, "activations": there, "logits": _logits(run, shape, step)},
        {"gradients": max(before, _head_gradient(run, shape, step)), "activations": first_block},
    ]


def _last_block(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the activations that are there when nearly all gradients are: those of the first block."""
    return kept_by_block(run, shape, step) + under_way(shape, step)


def _casts(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the copies of trained weights in lower precision that autocast keeps through a pass."""
    if not uses_autocast(run, step) or run.sharding != "none":
        return 0.0
    return float(step.bytes * shape.trained_weights(run))


def _logits(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return what the loss holds: a few rows of logits at a time."""
    vocabulary = shape.vocabulary
    rows = min(step.tokens, max(16, CHUNK_BYTES[step.device] // (FLOAT * vocabulary)))
    lower = step.bytes != FLOAT
    copies = FLOAT + step.bytes if lower else FLOAT
    head = _head_gradient(run, shape, step)
    product = step.bytes * vocabulary * shape.hidden if head and lower else 0.0  # before it is added to the gradient
    return rows * vocabulary * copies + product + _spread(shape, step) + head


def _spread(shape: ModelShape, step: Pass) -> float:
    """Return the gradient of the last hidden states, for the trained tokens and for all."""
    return 2.0 * step.tokens * shape.hidden * step.bytes


def _head_gradient(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    trained = run.adapter is None or "lm_head" in run.lora_modules_to_save
    return float(FLOAT * shape.vocabulary * shape.hidden) if trained else 0.0


def _optimizer_work(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return what the optimizer needs besides: without a fused kernel a copy of what it works on."""
    if run.optimizer != "adamw_torch":
        return 0.0
    at_once = (
        max(_largest(shape.linears), shape.vocabulary * shape.hidden) if step.device == "cpu" else shape.parameters
    )
    return float(_trained_bytes(run, step) * min(at_once, shape.trained_weights(run)))


def _communication(run: RunConfig, shape: ModelShape, step: Pass, processes: int) -> float:
    """Return the buffers of several processes: DDP's second copy of the gradients; blocks that are gathered."""
    dequantised = step.bytes * _largest(shape.linears) if run.load_in_4bit or run.load_in_8bit else 0.0
    trained = shape.trained_weights(run)
    if run.sharding in ("none", "zero0"):
        return dequantised + (_trained_bytes(run, step) * trained if processes > 1 else 0)
    if run.sharding in ("zero1", "zero2"):
        return dequantised + 2 * step.bytes * min(trained, _bucket(run))
    quantises = bool(run.adapter) and run.load_in_4bit
    per_weight = _quantised_bytes(run) if quantises else step.bytes
    block = (shape.linear_weights + shape.expert_weights) / max(1, shape.layers)
    ahead = 2 if step.device == "cuda" else 1
    return dequantised + ahead * per_weight * block + step.bytes * shape.table_weights


def _largest(linears: tuple[Linear, ...]) -> int:
    return max((linear.inputs * linear.outputs for linear in linears), default=0)


def _bucket(run: RunConfig) -> int:
    wanted = (run.deepspeed or {}).get("zero_optimization", {}).get("reduce_bucket_size")
    return int(wanted) if isinstance(wanted, int | float) else BUCKET


def _offloads(run: RunConfig) -> frozenset[str]:
    """Return what of a training is kept in the memory of the host."""
    if run.fsdp_config is not None and run.fsdp_config.offload_params:
        return frozenset({"weights", "gradients", "states"})
    zero = (run.deepspeed or {}).get("zero_optimization", {})
    found = set()
    if _to_host(zero.get("offload_optimizer")):
        found |= {"states", "gradients"}
    if _to_host(zero.get("offload_param")):
        found.add("weights")
    return frozenset(found)


def _to_host(section: object) -> bool:
    return isinstance(section, dict) and section.get("device") in ("cpu", "nvme")
