"""What cannot be trained, and why: rules that need neither torch nor a GPU and answer before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem
from stages.train import trackers
from stages.train.machine import this_machine
from stages.train.optimizers import NEEDED_PACKAGE, optimizer_problems, settled_name

MISSING_PACKAGE, MISSING_LOGIN = "missing-package", "tracker-login-missing"
"""Checks that look at this machine, so that another one may pass them."""

PACKAGES = {
    "bitsandbytes": "quantization",
    "deepspeed": "deepspeed",
    "torchao": "torchao",
    "comet_ml": "comet",
    "liger_kernel": "liger",
    **{name: name for name in ("wandb", "tensorboard", "mlflow", "trackio", "swanlab")},
}
"""Optional package -> the extra of sft-flow that brings it."""

LIGER_KEYS = ("liger_rope", "liger_rms_norm", "liger_layer_norm", "liger_glu_activation")
"""What is computed by Liger's kernels on GPUs, and by the model's own operators elsewhere."""

LORA_KERNEL_KEYS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""What is computed by `stages.train.lora_kernels`."""

DISTRIBUTIONS = {
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
}
"""Packages that install under another name than they are imported by, and have no extra."""


def check(run: RunConfig) -> None:
    """Refuse a configuration that cannot be trained.

    Raises:
        ConfigError: with everything that is wrong.
    """
    found = problems(run)
    if found:
        raise ConfigError(found)


def problems(run: RunConfig) -> list[Problem]:
    """Return why a configuration cannot be trained; nothing if it can."""
    return [problem for _, found in problems_by_check(run) for problem in found]


def problems_by_check(run: RunConfig) -> Iterator[tuple[str, list[Problem]]]:
    """Yield (name of a check of the preflight, what it finds)."""
    yield MISSING_PACKAGE, _missing_packages(run)
    yield MISSING_LOGIN, trackers.login_problems(run)
    yield "optimizer-or-schedule", optimizer_problems(run)
    yield "optimizer-cannot-be-sharded", _unshardable_optimizer(run)
    yield "quantised-cannot-be-sharded", _unshardable_weights(run)
    yield "kernels-in-shards", _kernels_in_shards(run)
    yield "deepspeed-settings", _wrong_deepspeed(run)


def needed_packages(run: RunConfig) -> list[str]:
    """Return the optional packages whose behaviour is in the trained weights, as they are installed."""
    return sorted({DISTRIBUTIONS.get(package, package) for package, _, _ in _wanted(run)})


def _unshardable_optimizer(run: RunConfig) -> list[Problem]:
    if run.sharding == "fsdp2" and any(word in run.optimizer for word in ("8bit", "paged", "bnb", "ademamix")):
        rule = "FSDP2 cannot shard the state of bitsandbytes' optimizers"
        return [_problem("optimizer", run.optimizer, rule, "Set optimizer: adamw_torch_fused, or use ZeRO-2.")]
    return []


def _unshardable_weights(run: RunConfig) -> list[Problem]:
    if run.sharding == "fsdp2" and run.load_in_8bit:
        rule, remedy = "FSDP2 cannot shard 8-bit weights", "Set adapter: qlora and load_in_4bit: true, or use ZeRO-2."
        return [_problem("load_in_8bit", "true", rule, remedy)]
    if run.sharding == "zero3" and (run.load_in_4bit or run.load_in_8bit):
        key = "load_in_4bit" if run.load_in_4bit else "load_in_8bit"
        rule = "ZeRO-3 on quantised weights is not tried on GPUs yet"
        return [_problem(key, "true", rule, "Use ZeRO-2, or fsdp_config with adapter: qlora.")]
    return []


def _kernels_in_shards(run: RunConfig) -> list[Problem]:
    """Return the kernels that would meet a shard of a weight: they read weights outside of the modules' own calls."""
    by_size = run.fsdp_config is not None and run.fsdp_config.auto_wrap_policy == "SIZE_BASED_WRAP"
    if run.adapter is None or not (by_size or run.sharding == "zero3"):
        return []
    rule = "it reads whole weights, and they are gathered " + ("by size" if by_size else "layer by layer by ZeRO-3")
    remedy = "Set fsdp_config.auto_wrap_policy: TRANSFORMER_BASED_WRAP" if by_size else "Use ZeRO-2 or fsdp_config"
    return [_problem(key, "true", rule, f"{remedy}, or remove {key}.") for key in LORA_KERNEL_KEYS if getattr(run, key)]


def _wrong_deepspeed(run: RunConfig) -> list[Problem]:
    """Return what DeepSpeed's configuration lacks, and what of it the run says itself."""
    if run.deepspeed is None:
        return []
    found = []
    if run.sharding == "zero0":
        rule = "zero_optimization.stage is 1, 2 or 3"
        found.append(_problem("deepspeed", "", rule, "Set deepspeed: {zero_optimization: {stage: 2}}, or remove it."))
    for section in ("optimizer", "scheduler"):
        if section in run.deepspeed:
            rule = f"the {section} is that of the run"
            remedy = "Remove it; optimizer, learning_rate and lr_scheduler say it."
            found.append(_problem(f"deepspeed.{section}", "", rule, remedy))
    return found


def _missing_packages(run: RunConfig) -> list[Problem]:
    return [
        _problem(key, value, f"it needs the package {package}, which is not installed", _install(package))
        for package, key, value in [*_wanted(run), *_trackers(run)]
        if find_spec(package) is None
    ]


def _wanted(run: RunConfig) -> list[tuple[str, str, str]]:
    """Return (package, key, value) of what asks for an optional package."""
    wanted = [("bitsandbytes", key, "true") for key in ("load_in_4bit", "load_in_8bit") if getattr(run, key)]
    wanted += [("deepspeed", "deepspeed", "")] if run.deepspeed is not None else []
    kernels = [key for key in LIGER_KEYS if getattr(run, key)]
    wanted += [("liger_kernel", kernels[0], "true")] if kernels and this_machine().gpus else []
    optimizer = NEEDED_PACKAGE.get(settled_name(run.optimizer))
    return [*wanted, (optimizer, "optimizer", run.optimizer)] if optimizer else wanted


def _trackers(run: RunConfig) -> list[tuple[str, str, str]]:
    return [(trackers.PACKAGES[name], f"use_{name}", "") for name in trackers.asked(run)]


def _install(package: str) -> str:
    extra = PACKAGES.get(package)
    wanted = f"'sft-flow[{extra}]'" if extra else DISTRIBUTIONS.get(package, package)
    return f"Install it: pip install {wanted}."


def _problem(key: str, value: str, rule: str, remedy: str) -> Problem:
    return Problem("configuration", key, value, rule, remedy)
