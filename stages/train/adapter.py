"""What is trained of a model: an adapter of PEFT's on frozen weights, or some of its own weights.

A name or expression that matches nothing is an error, and so is an adapter without a trainable weight: PEFT is silent
about some of both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem, StageError

EXPRESSION = re.compile(r"[\\^$*+?()\[\]|]")
"""What tells a regular expression from a name."""


def add_adapter(model: PreTrainedModel, run: RunConfig, start: Path | None) -> PeftModel:
    """Return the model with a new adapter, or with the one that lies in `start`.

    Raises:
        ConfigError: a target that matches nothing; an adapter that does not fit the model or the configuration.
        StageError: nothing of the adapter would be trained.
    """
    adapted = _new(model, run) if start is None else _continued(model, run, start)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    if not any("lora_" in name for name in trained):
        raise StageError(f"the adapter has no trainable weights; trainable are {trained or 'none'}")
    return adapted


def freeze_all_but(model: PreTrainedModel, patterns: Iterable[str]) -> None:
    """Train the parameters whose names begin with a match of one of the patterns, and no others.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    idle = [pattern for pattern in patterns if not any(re.match(pattern, name) for name in names)]
    if idle:
        some = ", ".join(names[:: max(1, len(names) // 6)])
        rule, remedy = f"no parameter's name begins so; some are {some}", "Correct the expression."
        raise ConfigError([Problem("configuration", "unfrozen_parameters", pattern, rule, remedy) for pattern in idle])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.match(pattern, name) for pattern in patterns))


def _new(model: PreTrainedModel, run: RunConfig) -> PeftModel:
    linear, modules = _linear_names(model), [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    _check_names("lora_modules_to_save", run.lora_modules_to_save, modules, linear)
    _check_names("lora_target_parameters", run.lora_target_parameters, parameters, linear)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=run.lora_r,
        lora_alpha=run.lora_alpha,
        lora_dropout=run.lora_dropout,
        target_modules=_targets(run, modules, linear),
        target_parameters=list(run.lora_target_parameters) or None,
        modules_to_save=list(run.lora_modules_to_save) or None,
        rank_pattern=run.lora_rank_pattern,
        alpha_pattern=run.lora_alpha_pattern,
        fan_in_fan_out=run.lora_fan_in_fan_out,
        use_dora=run.peft_use_dora,
        use_rslora=run.peft_use_rslora,
        init_lora_weights=run.peft_init_lora_weights,
        layers_to_transform=list(run.peft_layers_to_transform) or None,
        layers_pattern=list(run.peft_layers_pattern) or None,
        ensure_weight_tying=run.peft_ensure_weight_tying,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The following .*_pattern keys", RuntimeWarning)  # an error below
            adapted = get_peft_model(model, config, autocast_adapter_dtype=run.peft_autocast_adapter_dtype)
    except ValueError as error:
        rule, remedy = f"this adapter cannot be made for the model: {error}", "Correct the lora_* and peft_* keys."
        raise ConfigError([Problem("configuration", "adapter", str(run.adapter), rule, remedy)]) from error
    _check_patterns(adapted, run)
    return adapted


def _continued(model: PreTrainedModel, run: RunConfig, folder: Path) -> PeftModel:
    """Return the model with an adapter from a folder, with the shape that it has there."""
    try:
        adapted = PeftModel.from_pretrained(
            model, folder, is_trainable=True, autocast_adapter_dtype=run.peft_autocast_adapter_dtype
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        found = (str(error).splitlines() or ["?"])[0]
        rule, remedy = f"the adapter cannot be loaded onto base_model: {found}", "Name an adapter of this base_model."
        raise ConfigError(
            [Problem("configuration", "lora_model_dir", str(run.lora_model_dir), rule, remedy)]
        ) from error
    return adapted


def _targets(run: RunConfig, modules: list[str], linear: list[str]) -> str | list[str] | None:
    """Return the modules to adapt as PEFT wants them: sorted names, or one regular expression."""
    named = run.lora_target_modules
    if len(named) == 1 and EXPRESSION.search(named[0]) and not run.lora_target_linear:
        if not any(re.fullmatch(named[0], name) for name in modules):
            raise ConfigError([_no_target("lora_target_modules", named[0], linear)])
        return named[0]
    expressions = [name for name in named if EXPRESSION.search(name)]
    plain = [name for name in named if name not in expressions]
    _check_names("lora_target_modules", plain, modules, linear)
    matched = {name for name in modules for expression in expressions if re.fullmatch(expression, name)}
    idle = [e for e in expressions if not any(re.fullmatch(e, name) for name in modules)]
    if idle:
        raise ConfigError([_no_target("lora_target_modules", name, linear) for name in idle])
    return sorted({*plain, *matched, *(linear if run.lora_target_linear else ())}) or None


def _check_names(key: str, names: Iterable[str], there: list[str], linear: list[str]) -> None:
    missing = [name for name in names if not any(n == name or n.endswith(f".{name}") for n in there)]
    if missing:
        raise ConfigError([_no_target(key, name, linear) for name in missing])


def _check_patterns(adapted: PeftModel, run: RunConfig) -> None:
    """Refuse a rank or alpha for modules that are not adapted."""
    names = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    problems = [
        Problem("configuration", key, pattern, "no adapted module is named so", "Correct the name or expression.")
        for key, patterns in (
            ("lora_rank_pattern", run.lora_rank_pattern),
            ("lora_alpha_pattern", run.lora_alpha_pattern),
        )
        for pattern in patterns
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)  # as PEFT looks
    ]
    if problems:
        raise ConfigError(problems)


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Return the last names of the linear layers, without the output head."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
    )


def _no_target(key: str, name: str, linear: list[str]) -> Problem:
    rule = f"the model has no such module; its linear layers are {', '.join(linear)}"
    return Problem("configuration", key, name, rule, "Correct the name, or set lora_target_linear: true.")
