"""Attention, precision, sharding, packages: what the machine or a library cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from configs.schema import RunConfig
from stages.errors import ConfigError
from stages.preflight.finding import Finding
from stages.preflight.scene import Scene, error, note, refused
from stages.train.machine import AMPERE, copies, precision, world_size
from stages.train.rules import MISSING_LOGIN, MISSING_PACKAGE, problems_by_check

ISOLATING = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)
"""Attention implementations that keep packed samples apart; others are not known to."""
FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
SET_SDPA = "Set attn_implementation: sdpa: every machine has it."


def check_hardware(scene: Scene) -> Iterator[Finding]:
    """Yield what this machine, or the one that was named, cannot do; and what no machine can."""
    yield from _isolation(scene.run)
    yield from _attention(scene)
    yield from _bf16(scene)
    yield from _limits(scene)
    yield from _untrainable(scene)
    yield from _reentrant(scene.run)


def _isolation(run: RunConfig) -> Iterator[Finding]:
    name = run.attn_implementation
    if run.sample_packing and name is not None and name not in ISOLATING and "/" not in name:
        rule = "this attention does not keep packed samples apart: each would see those before it"
        remedy = "Set attn_implementation: sdpa, or sample_packing: false."
        yield error("attention-cannot-isolate", "attn_implementation", name, rule, remedy)
    elif name is not None and name not in ISOLATING and "/" not in name:
        rule = f"this attention is not known; known are {', '.join(ISOLATING)}, and kernels of the Hub (OWNER/NAME)"
        yield error("unknown-attention", "attn_implementation", name, rule, SET_SDPA)


def _attention(scene: Scene) -> Iterator[Finding]:
    name, gpus = scene.run.attn_implementation, scene.machine.gpus
    if name in FLASH_PACKAGES:
        package = FLASH_PACKAGES[name]
        if not gpus:
            rule = "it needs a GPU, and this machine shows none"
            yield error("flash-attention-missing", "attn_implementation", name, rule, SET_SDPA, of_machine=True)
        elif min(gpus) < AMPERE:
            rule = "it needs GPUs of compute capability 8.0 (Ampere) or newer"
            yield error("flash-attention-missing", "attn_implementation", name, rule, SET_SDPA, of_machine=True)
        elif scene.here and find_spec(package) is None:
            rule = f"it needs the package {package.replace('_', '-')}, which is not installed"
            yield error("flash-attention-missing", "attn_implementation", name, rule, SET_SDPA, of_machine=True)
        elif not scene.here:
            rule = f"it needs the package {package.replace('_', '-')} there"
            remedy = f"Install it there, or: {SET_SDPA[:1].lower()}{SET_SDPA[1:]}"
            yield note("flash-attention-missing", "attn_implementation", name, rule, remedy)
    if name == "flex_attention" and not gpus:
        rule = "its backward pass needs a GPU, and this machine shows none"
        yield error("flex-attention-on-cpu", "attn_implementation", name, rule, SET_SDPA, of_machine=True)


def _bf16(scene: Scene) -> Iterator[Finding]:
    run, gpus = scene.run, scene.machine.gpus
    if run.bf16 in (True, "full") and gpus and min(gpus) < AMPERE:
        major, minor = min(gpus)
        rule = f"the GPU (compute capability {major}.{minor}) has no bfloat16; 8.0 (Ampere) and newer have"
        yield error("bf16-missing", "bf16", run.bf16, rule, "Set bf16: auto: it takes float16 there.", of_machine=True)


def _limits(scene: Scene) -> Iterator[Finding]:
    """float16 without a GPU; more processes than GPUs; shards that they cannot share."""
    asked = {"fp16-on-cpu": precision, "too-few-gpus": world_size, "copies-and-processes": copies}
    for check, ask in asked.items():
        try:
            ask(scene.run, scene.machine)
        except ConfigError as found:
            yield from (refused(check, wrong, of_machine=True) for wrong in found.problems)
            return


def _untrainable(scene: Scene) -> Iterator[Finding]:
    """What `stages.train.rules` refuses; what this machine lacks, another one may have."""
    for check, found in problems_by_check(scene.run):
        of_machine = check in (MISSING_PACKAGE, MISSING_LOGIN)
        for wrong in found:
            if scene.here or not of_machine:
                yield refused(check, wrong, of_machine=of_machine)
            else:
                yield note(check, wrong.key, wrong.value, f"{wrong.rule.partition(', which')[0]} there", wrong.remedy)


def _reentrant(run: RunConfig) -> Iterator[Finding]:
    options = run.gradient_checkpointing_kwargs
    if run.deepspeed is not None and run.recomputes_activations and options.get("use_reentrant") is False:
        rule = "DeepSpeed fails with CheckpointError where recomputation is not reentrant"
        remedy = "Set gradient_checkpointing_kwargs: {use_reentrant: true}."
        yield error("deepspeed-not-reentrant", "gradient_checkpointing_kwargs", "{use_reentrant: false}", rule, remedy)
