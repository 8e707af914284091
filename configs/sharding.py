"""The old ways to ask for sharding, brought into the one that the schema has: FSDP1 becomes FSDP2, a path its JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FSDP_KEYS = ("fsdp", "fsdp_config", "fsdp_version", "fsdp_final_state_dict_type")
_FSDP1_ONLY = ("backward_prefetch", "forward_prefetch", "sync_module_states", "use_orig_params", "limit_all_gathers")
_RESHARDS = {"FULL_SHARD": True, "1": True, "SHARD_GRAD_OP": False, "2": False}


_OFFLOAD = {"device": "cpu", "pin_memory": True}
_ZERO3: dict[str, Any] = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_gather_16bit_weights_on_model_save": True,
}
_ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1, "overlap_comm": True},
    "zero2": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
    "zero3": _ZERO3,
    "zero3_bf16": _ZERO3,
    "zero3_bf16_cpuoffload_params": {**_ZERO3, "offload_param": _OFFLOAD},
    "zero3_bf16_cpuoffload_all": {**_ZERO3, "offload_param": _OFFLOAD, "offload_optimizer": _OFFLOAD},
}
DEEPSPEED_PRESETS = {name: {"zero_optimization": zero} for name, zero in _ZERO.items()}
"""What axolotl brings as deepspeed_configs/NAME.json; batch sizes, precision and clipping are those of the run."""


@dataclass(frozen=True)
class Fsdp:
    """What a configuration says of FSDP, in the words of FSDP2.

    Attributes:
        config: value of `fsdp_config`; None where FSDP is off.
        notices: (key, value, what becomes of it).
        problems: (key, value, rule, remedy).
    """

    config: dict[str, Any] | None
    notices: tuple[tuple[str, Any, str], ...] = ()
    problems: tuple[tuple[str, Any, str, str], ...] = ()


def read_fsdp(values: dict[str, Any]) -> Fsdp:
    """Return what `fsdp`, `fsdp_config`, `fsdp_version` and `fsdp_final_state_dict_type` say.

    >>> read_fsdp({"fsdp": ["full_shard"], "fsdp_config": {"fsdp_offload_params": True}}).config
    {'offload_params': True}
    """
    options, given = values.get("fsdp") or [], values.get("fsdp_config")
    if not (options or given is not None or values.get("fsdp_version")):
        return Fsdp(None)
    if given is not None and not isinstance(given, dict):
        rule, remedy = "it is a mapping of keys to values", "Write fsdp_config: {reshard_after_forward: true}."
        return Fsdp(None, problems=(("fsdp_config", given, rule, remedy),))
    config = {key.removeprefix("fsdp_"): value for key, value in (given or {}).items()}
    notices: list[tuple[str, Any, str]] = []
    problems: list[tuple[str, Any, str, str]] = []
    inner = config.pop("version", None)
    version = values.get("fsdp_version", inner)
    if version != 2:
        notices.append(("fsdp_version", version, "FSDP1 is read and run as FSDP2; write fsdp_version: 2"))
    notices += [
        (f"fsdp_config.{key}", config.pop(key), "it has no effect: FSDP2 has no such setting")
        for key in _FSDP1_ONLY
        if key in config
    ]
    if "fsdp_final_state_dict_type" in values:
        config.setdefault("final_state_dict_type", values["fsdp_final_state_dict_type"])
    strategy = config.pop("sharding_strategy", None)
    words = options.split() if isinstance(options, str) else list(options)
    for word in [*words, *([strategy] if strategy else [])]:
        _take_word(str(word), config, problems)
    if isinstance(config.get("reshard_after_forward"), str):
        word = config.pop("reshard_after_forward")
        _take_word(word, config, problems)
    return Fsdp(config, tuple(notices), tuple(problems))


def _take_word(word: str, config: dict[str, Any], problems: list[tuple[str, Any, str, str]]) -> None:
    name = word.upper()
    if name in _RESHARDS:
        config.setdefault("reshard_after_forward", _RESHARDS[name])
    elif name == "OFFLOAD":
        config.setdefault("offload_params", True)
    elif name != "AUTO_WRAP":
        rule = "FSDP2 is run here as full_shard or shard_grad_op"
        problems.append(
            ("fsdp", word, rule, "Use full_shard; without any sharding remove fsdp: several GPUs form DDP.")
        )


def read_deepspeed(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Return DeepSpeed's configuration and what to say of where it is from.

    It is a JSON file, looked for from here, then in `folder`; where it is not there, the settings that axolotl brings
    under the file's name.

    Raises:
        ValueError: "rule; remedy".
    """
    path = next((path for path in (Path(name), folder / name) if path.is_file()), None)
    if path is None:
        preset = Path(name).name.removesuffix(".json").removesuffix("_torch_compile")
        if preset in DEEPSPEED_PRESETS:
            stage = DEEPSPEED_PRESETS[preset]["zero_optimization"]["stage"]
            return DEEPSPEED_PRESETS[
                preset
            ], "" if preset == name else f"there is no such file; ZeRO-{stage} is set as {preset} does in axolotl"
        raise ValueError(
            f"there is no such file; write it, or name a preset: {', '.join(DEEPSPEED_PRESETS)}, or give its content: "
            "deepspeed: {zero_optimization: {stage: 2}}"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error}); mend the file") from error
    if not isinstance(content, dict):
        raise ValueError('the file does not hold a JSON object; begin with {"zero_optimization": {"stage": 2}}')
    return content, ""
