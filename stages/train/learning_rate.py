"""Learning rates that the Trainer does not make itself: schedules of axolotl's, and parameters with their own rate.

A schedule is a factor on the peak rate, a function of the optimizer steps that are done, s:

    warm-up, s < w        s / w, or (s / w)^2 with lr_quadratic_warmup
    cosine to a share m   m + (1 - m) * (1 + cos(pi * p)) / 2          p = (s - w) / (e - w), e = steps, or the
                                                                       cosine_constant_lr_ratio of them, then m
    rex to a share m      m + (1 - m) * z / (0.1 + 0.9 z)              z = 1 - p     (Chen et al. 2021, REX)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem
from stages.train.schedule import Schedule

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Parts of the names of embeddings and output heads; what an adapter trains in full is taken for one, too."""

Factor = Callable[[int], float]
Named = Iterable[tuple[str, torch.nn.Parameter]]


def own_schedule(optimizer: torch.optim.Optimizer, run: RunConfig, schedule: Schedule) -> LRScheduler | None:
    """Return the schedule of the run if it is one that the Trainer does not have."""
    steps, warmup = schedule.steps, schedule.warmup_steps
    if run.lr_scheduler == "one_cycle":
        options = {"pct_start": warmup / steps, "anneal_strategy": "cos", **run.lr_scheduler_kwargs}
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, **options)
    factor = own_factor(run, steps, warmup)
    return None if factor is None else LambdaLR(optimizer, factor)


def own_factor(run: RunConfig, steps: int, warmup: int) -> Factor | None:
    """Return the share of the peak rate after s steps, for schedules that are such a function and not the Trainer's."""
    least = run.cosine_min_lr_ratio or 0.0
    if run.lr_scheduler == "rex":
        return lambda s: s / warmup if s < warmup else _rex((s - warmup) / max(1, steps - warmup), least)
    if run.lr_scheduler != "cosine" or not (least or run.lr_quadratic_warmup):
        return None
    power = 2 if run.lr_quadratic_warmup else 1
    constant = run.cosine_constant_lr_ratio if least and not run.lr_quadratic_warmup else None
    end = int(steps * constant) if constant else steps
    least = 0.0 if run.lr_quadratic_warmup else least  # as the original has it
    return lambda s: (s / warmup) ** power if s < warmup else _cosine((s - warmup) / max(1, end - warmup), least)


def _cosine(progress: float, least: float) -> float:
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _rex(progress: float, least: float) -> float:
    left = max(0.0, 1 - progress)
    return least + (1 - least) * left / (0.1 + 0.9 * left)


def parameter_groups(parameters: Named, decayed: set[str], run: RunConfig) -> list[dict[str, Any]] | None:
    """Return the trainable parameters in groups with their own learning rates; None if one rate holds for all.

    Args:
        parameters: names and parameters of the model.
        decayed: names of those that weight decay is for.
        run: its `loraplus_*`, `embedding_lr*` and `lr_groups`.

    Raises:
        ConfigError: an entry of `lr_groups` matches no trainable parameter.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    if run.loraplus_lr_ratio is not None:
        return _grouped(trained, decayed, run, lambda name: _loraplus_rate(name, run))
    if not (run.lr_groups or run.embedding_lr or run.embedding_lr_scale):
        return None
    _check_groups(trained, run)
    return _grouped(trained, decayed, run, lambda name: _own_rate(name, run, decayed))


def _grouped(
    trained: Named, decayed: set[str], run: RunConfig, rate_of: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Return one group for each pair of learning rate and weight decay; the plain rate, which is logged, first."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trained:
        decay = run.weight_decay if name in decayed and not _is_embedding(name, run) else 0.0
        groups.setdefault((rate_of(name), decay), []).append(parameter)
    plain_first = sorted(groups, key=lambda group: group[0] != run.learning_rate)
    return [{"params": groups[group], "lr": group[0], "weight_decay": group[1]} for group in plain_first]


def _loraplus_rate(name: str, run: RunConfig) -> float:
    """Return the rate of LoRA+ (Hayou et al. 2024): B, and vectors, learn faster than A."""
    if "lora_embedding_" in name:
        return run.loraplus_lr_embedding
    vector = "lora_B" in name or "lora_magnitude_vector" in name or name.endswith("bias")
    return run.learning_rate * (run.loraplus_lr_ratio or 1.0) if vector else run.learning_rate


def _own_rate(name: str, run: RunConfig, decayed: set[str]) -> float:
    if _is_embedding(name, run):
        scale = run.embedding_lr_scale
        return run.learning_rate * scale if scale else run.embedding_lr or run.learning_rate
    own = (group.lr for group in run.lr_groups if any(part in name for part in group.modules))
    return next(own, run.learning_rate) if name in decayed else run.learning_rate


def _is_embedding(name: str, run: RunConfig) -> bool:
    if run.loraplus_lr_ratio is not None:
        return False
    return name.endswith("modules_to_save.default.weight") or any(part in name for part in EMBEDDINGS)


def _check_groups(trained: Named, run: RunConfig) -> None:
    names = [name for name, _ in trained]
    problems = [
        Problem(
            "configuration",
            "lr_groups",
            part,
            "no trained parameter's name has it",
            f"Some are {', '.join(names[:4])}.",
        )
        for group in run.lr_groups
        for part in group.modules
        if not any(part in name for name in names)
    ]
    if problems:
        raise ConfigError(problems)
