"""The commented file that `sft init` writes: usual values for a model, its data, an adapter and the hardware."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Method = Literal["lora", "qlora", "full"]
FULL_BYTES, LORA_BYTES, QLORA_BYTES = 16.0, 2.2, 0.8
"""Memory per parameter of the model, roughly: weights, and for full fine-tuning gradients and AdamW's state."""
USUAL_SEQUENCE = 2048
ROOM = 0.7
"""Share of a GPU's memory that may go to these; activations need the rest."""


@dataclass(frozen=True)
class Answers:
    """What a starting file is made for.

    Attributes:
        model: Hub id or folder.
        data: Hub id, or a local file or folder.
        dataset: further keys of the data set, `type` first.
        method: how it is trained.
        gpus: how many; 0: without.
        memory: of one GPU, GB.
        sequence_len: tokens.
    """

    model: str
    data: str
    dataset: dict[str, Any]
    method: Method
    gpus: int = 1
    memory: int = 24
    sequence_len: int = USUAL_SEQUENCE


def parameters_in(model: str) -> float | None:
    """Return the size that a model's name tells.

    >>> parameters_in("Qwen/Qwen3-1.7B"), parameters_in("SmolLM2-135M-Instruct"), parameters_in("gpt2")
    (1700000000.0, 135000000.0, None)
    """
    found = re.search(r"(?<![\w.])(?:\w*?[-_])?(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", Path(model).name)
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6) if found else None


def usual_method(model: str, gpus: int, memory: int) -> Method:
    """Return how a model is usually trained on such hardware: LoRA, or QLoRA where its weights leave no room."""
    size = parameters_in(model)
    if size is None or gpus == 0 or size * LORA_BYTES <= memory * 1e9 * ROOM:
        return "lora"
    return "qlora"


def starting_file(answers: Answers) -> str:
    """Return the file. It is valid as it is, and says of each value what it does."""
    dataset = yaml.safe_dump({"path": answers.data, **answers.dataset}, sort_keys=False, width=1000)
    first, *rest = dataset.splitlines()
    parts = [
        f"# Written by `sft init`. See what it would do: sft plan FILE. Run it: sft run FILE.\n"
        f"# Every key: infra/docs/configuration.md\n\n{_line('base_model', answers.model, 'Hub id or folder')}",
        "datasets:\n" + "\n".join([f"  - {first}", *(f"    {line}" for line in rest)]),
        _line("val_set_size", 0.02, "share of the rows that is kept from training, for eval_loss"),
        _line("sequence_len", answers.sequence_len, "longest row, in tokens")
        + _line("sample_packing", True, "several rows in one sequence, none of which sees the others"),
        *_method(answers),
        *_hardware(answers),
        _line("logging_steps", 5, "steps between two lines of metrics.jsonl")
        + _line("evals_per_epoch", 4, "evaluations on the rows of val_set_size")
        + _line("saves_per_epoch", 4, "checkpoints: an interrupted run goes on from the last one")
        + _line("output_dir", "outputs/run", "receives the model, its metrics and report.html"),
    ]
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _method(answers: Answers) -> list[str]:
    if answers.method == "full":
        return [_steps(1, 8, 0.00002, "adamw_torch_fused", "1e-5 to 5e-5 is usual: all weights move")]
    adapter = _line("adapter", answers.method, "small matrices beside the frozen weights are trained")
    if answers.method == "qlora":
        adapter += _line("load_in_4bit", True, "the frozen weights take half a byte each")
    adapter += _line("lora_r", 16, "rank: 16 to 64 is usual")
    adapter += _line("lora_alpha", 32, "scale: once to twice the rank")
    adapter += _line("lora_dropout", 0.05, "share of its inputs that is left out at random")
    adapter += _line("lora_target_linear", True, "every linear layer but the output head")
    passes = 8 if answers.method == "qlora" else 4
    optimizer = "adamw_bnb_8bit" if answers.method == "qlora" and not _sharded(answers) else "adamw_torch_fused"
    return [adapter, _steps(2, passes, 0.0002, optimizer, "1e-4 to 3e-4 is usual for adapters")]


def _steps(sequences: int, passes: int, rate: float, optimizer: str, why: str) -> str:
    return (
        _line("micro_batch_size", sequences, "sequences per process and pass; less, if memory is short")
        + _line("gradient_accumulation_steps", passes, "passes per step: their product is the batch of a process")
        + _line("num_epochs", 2, "times that each row is seen: 1 to 3")
        + _line("learning_rate", f"{rate:.5f}".rstrip("0"), why)
        + _line("lr_scheduler", "cosine", "falls to zero at the end")
        + _line("warmup_ratio", 0.05, "share of the steps with a rising learning rate")
        + _line("optimizer", optimizer, "AdamW" + ("; its state in 8 bits" if "8bit" in optimizer else ""))
    )


def _hardware(answers: Answers) -> list[str]:
    if answers.gpus == 0:
        return [_line("bf16", False, "32-bit floats: what every CPU does well")]
    lines = _line("bf16", "auto", "bfloat16 where the GPU has it")
    lines += _line("gradient_checkpointing", True, "activations are computed again: less memory, a third more time")
    if not _sharded(answers):
        return [lines]
    sharding = _line("fsdp_version", 2, "each GPU holds a part of every weight, gradient and optimizer state")
    return [lines, f"{sharding}fsdp_config:\n  reshard_after_forward: true\n  state_dict_type: SHARDED_STATE_DICT\n"]


def _sharded(answers: Answers) -> bool:
    """Return whether the weights, or what training adds to them, are too large for one of several GPUs."""
    per_parameter = {"full": FULL_BYTES, "lora": LORA_BYTES, "qlora": QLORA_BYTES}[answers.method]
    size = parameters_in(answers.model) or 0.0
    return answers.gpus > 1 and size * per_parameter > answers.memory * 1e9 * ROOM


def _line(key: str, value: Any, comment: str) -> str:
    written = value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else json.dumps(value)
    return f"{f'{key}: {written}':<40} # {comment}\n"
