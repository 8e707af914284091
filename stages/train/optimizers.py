"""The optimizers and schedules by name, and what each needs. No torch here."""

from __future__ import annotations

from configs.schema import RunConfig
from stages.errors import Problem

_BITSANDBYTES = (
    "adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_32bit lion_8bit paged_adamw_32bit paged_adamw_8bit "
    "paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop_bnb rmsprop_bnb_8bit "
    "rmsprop_bnb_32bit"
)
_NEEDS = {
    "": "adamw_torch adamw_torch_fused adafactor sgd adagrad rmsprop",
    "bitsandbytes": _BITSANDBYTES,
    "torchao": "adamw_torch_4bit adamw_torch_8bit",
    "galore_torch": (
        "galore_adamw galore_adamw_8bit galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise "
        "galore_adafactor_layerwise"
    ),
    "apollo_torch": "apollo_adamw apollo_adamw_layerwise",
    "lomo_optim": "lomo adalomo",
    "grokadamw": "grokadamw",
    "schedulefree": "schedule_free_adamw schedule_free_radam schedule_free_sgd",
    "optimi": "stable_adamw",
}
NEEDED_PACKAGE = {name: package for package, names in _NEEDS.items() for name in names.split()}
"""Optimizer -> the package that has it beside torch; empty for those of torch and transformers."""

ALIASES = {"ao_adamw_8bit": "adamw_torch_8bit", "ao_adamw_4bit": "adamw_torch_4bit"}
"""Names of axolotl's for optimizers that transformers has, too."""

ELSEWHERE = {
    "adamw_torch_xla": "it is for TPUs",
    "adamw_torch_npu_fused": "it is for Ascend NPUs",
    "adamw_anyprecision": "its package torchdistx is no longer made",
}

PROJECTING = ("galore", "apollo")
"""Beginnings of the names of optimizers that project the gradients of optim_target_modules."""

SCHEDULES = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt cosine_with_min_lr "
    "cosine_warmup_with_min_lr warmup_stable_decay one_cycle rex"
).split()


def optimizer_problems(run: RunConfig) -> list[Problem]:
    """Return why optimizer or schedule cannot be used; nothing if they can. A missing package is not looked for."""
    return [*_optimizer(run), *_schedule(run)]


def _optimizer(run: RunConfig) -> list[Problem]:
    name, known = settled_name(run.optimizer), ", ".join(NEEDED_PACKAGE)
    if name in ELSEWHERE:
        return [_problem("optimizer", name, ELSEWHERE[name], "Set optimizer: adamw_torch_fused.")]
    if name not in NEEDED_PACKAGE:
        return [_problem("optimizer", name, f"known are {known}", "Use one of them.")]
    projects, projected = name.startswith(PROJECTING), bool(run.optim_target_modules)
    if projects and not projected:
        rule = f"{name} projects the gradients of some modules"
        return [_problem("optim_target_modules", "", rule, "Set optim_target_modules: all_linear.")]
    if projected and not projects:
        rule = f"{name} projects no gradients"
        return [_problem("optim_target_modules", "", rule, "Remove it, or set optimizer: galore_adamw.")]
    if name.endswith("_layerwise") and run.passes_per_step > 1:
        rule = "a layer-wise optimizer steps in every backward pass"
        return [_problem("gradient_accumulation_steps", str(run.passes_per_step), rule, "Set it to 1.")]
    if _has_own_groups(run) and (projects or name.endswith("lomo")):
        rule = f"{name} makes its own groups of parameters"
        remedy = "Use another optimizer, or remove lr_groups, embedding_lr, embedding_lr_scale and loraplus_lr_ratio."
        return [_problem("optimizer", name, rule, remedy)]
    return []


def _has_own_groups(run: RunConfig) -> bool:
    return bool(run.lr_groups or run.embedding_lr or run.embedding_lr_scale or run.loraplus_lr_ratio)


def _schedule(run: RunConfig) -> list[Problem]:
    name = run.lr_scheduler
    if name in ("reduce_lr_on_plateau", "greedy"):
        rule = "it follows the evaluations, so its learning rate is not known before the start"
        return [_problem("lr_scheduler", name, rule, "Use cosine, with early_stopping_patience if need be.")]
    if name not in SCHEDULES:
        return [_problem("lr_scheduler", name, f"known are {', '.join(SCHEDULES)}", "Use one of them.")]
    return []


def settled_name(optimizer: str) -> str:
    """Return the name that transformers has for an optimizer."""
    return ALIASES.get(optimizer, optimizer)


def _problem(key: str, value: str, rule: str, remedy: str) -> Problem:
    return Problem("configuration", key, value, rule, remedy)
