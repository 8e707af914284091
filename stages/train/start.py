"""What a training starts from besides the base model: an adapter, or another training's checkpoint. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.base_model import ADAPTER_FILES, find_adapter
from stages.errors import ConfigError, Problem
from stages.stage import Context

STATE = "trainer_state.json"
"""What makes a folder a checkpoint: the Trainer's own record of the steps that are done."""


def started_from(context: Context) -> dict[str, Any]:
    """Return what identifies the content that a training starts from, for its key; nothing without any.

    Raises:
        ConfigError: there is no such adapter or checkpoint, or the configuration asks for one of another shape.
    """
    content: dict[str, Any] = {}
    adapter, checkpoint = find_adapter(context.run), checkpoint_folder(context.run)
    if adapter is not None:
        problems = _conflicts(context.run, adapter.folder(ADAPTER_FILES))
        if problems:
            raise ConfigError(problems)
        content["adapter_to_start_from"] = adapter.content(ADAPTER_FILES, context.digests)
    if checkpoint is not None:
        paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        files = {path.relative_to(checkpoint).as_posix(): context.digests.sha256(path) for path in paths}
        content["checkpoint_to_start_from"] = files
    return content


def checkpoint_folder(run: RunConfig) -> Path | None:
    """Return the checkpoint of another training that this one starts from.

    Raises:
        ConfigError: there is none.
    """
    name = run.resume_from_checkpoint
    if not isinstance(name, str):
        return None
    folder = Path(name).expanduser().resolve()
    if not (folder / STATE).is_file():
        rule = f"there is no checkpoint: no {STATE} in this folder"
        remedy = "Name a folder checkpoint-N, or remove it: a run always goes on from its own newest checkpoint."
        raise ConfigError([_problem("resume_from_checkpoint", name, rule, remedy)])
    weights = "adapter_model.safetensors" if run.adapter else "model.safetensors"
    if run.sharding == "none" and not any(folder.glob(f"{weights}*")):
        rule, remedy = f"the checkpoint has no {weights}", "Name one of the same kind of training (adapter or full)."
        raise ConfigError([_problem("resume_from_checkpoint", name, rule, remedy)])
    return folder


def check_steps_left(checkpoint: Path | None, steps: int) -> None:
    """Refuse a checkpoint behind the end of the training.

    Raises:
        ConfigError: with the number of steps.
    """
    done = 0 if checkpoint is None else int(orjson.loads((checkpoint / STATE).read_bytes())["global_step"])
    if checkpoint is not None and done >= steps:
        rule = f"it is of step {done}, and this training has {steps} steps"
        remedy = "Raise num_epochs or max_steps, or remove resume_from_checkpoint."
        raise ConfigError([_problem("resume_from_checkpoint", checkpoint, rule, remedy)])


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
