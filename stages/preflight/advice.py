"""What looks unhealthy in a configuration: values outside of what is known to work, with range and reason.

The ranges are those that practice has settled on for supervised fine-tuning; outside of them a run goes on, with a
warning, because somebody may know better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from configs.schema import RunConfig
from stages.estimate.shapes import ModelShape
from stages.preflight.finding import Finding
from stages.preflight.scene import warning

Method = Literal["LoRA", "QLoRA", "full fine-tuning"]
LARGE = 20e9
"""Parameters from which on steps should be smaller."""


@dataclass(frozen=True)
class Range:
    """The usual values of a key for one method, and what values below and above them do."""

    low: float
    high: float
    below: str
    above: str


_RATE = Range(1e-4, 3e-4, "the adapter hardly moves", "the loss may spike or diverge")
_RANK = Range(16, 64, "the adapter can learn little", "memory grows, and quality hardly does")
_EPOCHS = Range(1, 3, "a part of the data is never seen", "the model learns rows by heart")
_NOISY, _FEW = "a step sees few sequences, and its gradient is noisy", "steps become few and large"
_IDLE, _FULL = "the GPU is not kept busy", "activations take much memory"

RANGES: dict[Method, dict[str, Range]] = {
    "LoRA": {
        "learning_rate": _RATE,
        "lora_r": _RANK,
        "micro_batch_size": Range(2, 8, _IDLE, _FULL),
        "gradient_accumulation_steps": Range(2, 8, _NOISY, _FEW),
        "num_epochs": _EPOCHS,
    },
    "QLoRA": {
        "learning_rate": _RATE,
        "lora_r": _RANK,
        "micro_batch_size": Range(2, 4, _IDLE, _FULL),
        "gradient_accumulation_steps": Range(4, 16, _NOISY, _FEW),
        "num_epochs": _EPOCHS,
    },
    "full fine-tuning": {
        "learning_rate": Range(
            1e-5, 5e-5, "the model hardly moves", "what the model knew is lost, or the loss diverges"
        ),
        "micro_batch_size": Range(1, 2, _IDLE, _FULL),
        "gradient_accumulation_steps": Range(4, 16, _NOISY, _FEW),
        "num_epochs": _EPOCHS,
    },
}
USUAL_OPTIMIZER: dict[Method, str] = {
    "LoRA": "adamw_8bit",
    "QLoRA": "adamw_bnb_8bit",
    "full fine-tuning": "adamw_torch_fused",
}


@dataclass(frozen=True)
class SizeClass:
    """What is usual for models up to a number of parameters.

    Attributes:
        below: parameters.
        usual: which method is preferred, in words.
        memory: what the usual way takes.
        full: what full fine-tuning takes.
    """

    below: float
    usual: str
    memory: str
    full: Literal["one GPU", "several GPUs", "several machines"]


SIZES = (
    SizeClass(4.5e9, "LoRA is preferred, QLoRA where memory is short", "8-16 GB with LoRA", "one GPU"),
    SizeClass(10e9, "LoRA is preferred, QLoRA is a good balance", "16-24 GB with LoRA", "several GPUs"),
    SizeClass(20e9, "LoRA is preferred, QLoRA is a good balance", "24-40 GB with LoRA", "several GPUs"),
    SizeClass(float("inf"), "QLoRA is preferred on one GPU", "40-80 GB with QLoRA", "several machines"),
)


def method(run: RunConfig) -> Method:
    """Return how a run trains, in the words of the ranges."""
    if run.adapter is None:
        return "full fine-tuning"
    return "QLoRA" if run.load_in_4bit else "LoRA"


def size_class(parameters: int) -> SizeClass:
    """Return what is usual for a model of that size.

    >>> size_class(7_000_000_000).full
    'several GPUs'
    """
    return next(size for size in SIZES if parameters < size.below)


def judge(run: RunConfig, *, processes: int, shape: ModelShape | None) -> Iterator[Finding]:
    """Yield a warning for each value that is outside of what usually works."""
    yield from _outside_ranges(run)
    yield from _scale(run)
    yield from _optimizer(run)
    yield from _whole_batch(run, processes)
    if shape is not None and shape.sized:
        yield from _size(run, processes, shape.parameters)


def _outside_ranges(run: RunConfig) -> Iterator[Finding]:
    how = method(run)
    derived = {"micro_batch_size": run.sequences_per_pass, "gradient_accumulation_steps": run.passes_per_step}
    for key, usual in RANGES[how].items():
        value = derived.get(key, getattr(run, key))
        if usual.low <= value <= usual.high or (key == "num_epochs" and run.max_steps is not None):
            continue
        side, reason, nearest = (
            ("below", usual.below, usual.low) if value < usual.low else ("above", usual.above, usual.high)
        )
        rule = f"usual for {how} is {usual.low:g} to {usual.high:g}; {side}, {reason}"
        yield warning("unusual-value", key, value, rule, f"Set {key}: {nearest:g}, or keep it if you know why.")


def _scale(run: RunConfig) -> Iterator[Finding]:
    if run.adapter and not run.lora_r <= run.lora_alpha <= 2 * run.lora_r:
        rule = f"usual is 1 to 2 times lora_r ({run.lora_r}), because what the adapter adds is scaled by alpha / r"
        yield warning("unusual-value", "lora_alpha", run.lora_alpha, rule, f"Set lora_alpha: {2 * run.lora_r}.")


def _optimizer(run: RunConfig) -> Iterator[Finding]:
    if "adamw" in run.optimizer:
        return  # all of them find about the same minimum; they differ in memory, which the estimate shows
    usual = USUAL_OPTIMIZER[method(run)] if run.sharding == "none" else "adamw_torch_fused"
    rule = f"usual for {method(run)} is {usual}; learning rates here are meant for AdamW"
    yield warning("unusual-value", "optimizer", run.optimizer, rule, f"Set optimizer: {usual}.")


def _whole_batch(run: RunConfig, processes: int) -> Iterator[Finding]:
    whole = run.sequences_per_pass * run.passes_per_step * processes
    if whole > 512:
        rule = (
            f"a step sees {whole:,} sequences (micro batch {run.sequences_per_pass} x accumulation "
            f"{run.passes_per_step} x {processes} processes); above some hundred it teaches hardly more"
        )
        remedy = f"Set gradient_accumulation_steps: {max(1, run.passes_per_step * 512 // whole)}."
        yield warning("large-batch", "gradient_accumulation_steps", run.passes_per_step, rule, remedy)


def _size(run: RunConfig, processes: int, parameters: int) -> Iterator[Finding]:
    size, billions = size_class(parameters), f"{parameters / 1e9:.1f} billion parameters"
    if run.adapter is None and size.full != "one GPU" and processes == 1:
        rule = f"full fine-tuning of {billions} takes {size.full}; {size.usual} (about {size.memory})"
        remedy = "Set adapter: lora and lora_target_linear: true, or fsdp_config on several GPUs."
        yield warning("size-and-method", "adapter", "none", rule, remedy)
    if run.adapter == "lora" and not run.load_in_8bit and parameters >= LARGE and processes == 1:
        rule = f"LoRA on {billions} that are not quantised; {size.usual} (about {size.memory})"
        yield warning("size-and-method", "adapter", "lora", rule, "Set adapter: qlora and load_in_4bit: true.")
    limit = 2e-4 if run.adapter else 2e-5
    usual = RANGES[method(run)]["learning_rate"]
    if parameters >= LARGE and limit < run.learning_rate <= usual.high:
        rule = f"larger models take smaller steps: at most {limit:g} from {LARGE / 1e9:.0f} billion parameters on"
        yield warning("unusual-value", "learning_rate", run.learning_rate, rule, f"Set learning_rate: {limit / 2:g}.")
