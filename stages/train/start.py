"""What a training starts from besides the base model: an adapter that is trained further. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.base_model import ADAPTER_FILES, find_adapter
from stages.errors import ConfigError, Problem
from stages.stage import Context


def started_from(context: Context) -> dict[str, Any]:
    """Return what identifies the content that a training starts from, for its key; nothing without any.

    Raises:
        ConfigError: there is no such adapter, or the configuration asks for one of another shape.
    """
    adapter = find_adapter(context.run)
    if adapter is None:
        return {}
    problems = _conflicts(context.run, adapter.folder(ADAPTER_FILES))
    if problems:
        raise ConfigError(problems)
    return {"adapter_to_start_from": adapter.content(ADAPTER_FILES, context.digests)}


def adapter_folder(run: RunConfig) -> Path | None:
    """Return where the adapter that is trained further lies on this machine, downloading it if need be."""
    adapter = find_adapter(run)
    return None if adapter is None else adapter.folder(ADAPTER_FILES).resolve()


def _conflicts(run: RunConfig, folder: Path) -> list[Problem]:
    """Return where the configuration asks for another adapter than the one that is there."""
    try:
        config = orjson.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        rule = "it holds no readable adapter_config.json"
        return [_problem("lora_model_dir", run.lora_model_dir, rule, "Name the folder of a PEFT adapter.")]
    if config.get("peft_type") != "LORA":
        rule = f"it holds an adapter of type {config.get('peft_type')}, and LORA is trained here"
        return [_problem("lora_model_dir", run.lora_model_dir, rule, "Name the folder of a LoRA adapter.")]
    asked = {
        "lora_r": ("r", run.lora_r),
        "lora_alpha": ("lora_alpha", run.lora_alpha),
        "peft_use_dora": ("use_dora", run.peft_use_dora),
        "peft_use_rslora": ("use_rslora", run.peft_use_rslora),
    }
    return [
        _problem(key, value, f"the adapter in lora_model_dir has {config[name]}", f"Set {key}: {config[name]}.")
        for key, (name, value) in asked.items()
        if key in run.model_fields_set and name in config and config[name] != value
    ]


def _problem(key: str, value: object, rule: str, remedy: str) -> Problem:
    return Problem("configuration", key, str(value), rule, remedy)
