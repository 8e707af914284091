"""The rules between the keys of a run: each looks at a whole `RunConfig`, and says what is wrong and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import RunConfig


def _batch_sizes(run: RunConfig) -> None:
    given = [run.micro_batch_size, run.gradient_accumulation_steps, run.batch_size]
    if sum(value is not None for value in given) < 2:
        raise ValueError(
            "give two of micro_batch_size, gradient_accumulation_steps and batch_size; "
            "usual: micro_batch_size: 2, gradient_accumulation_steps: 4"
        )
    if run.batch_size and run.gradient_accumulation_steps:
        raise ValueError("batch_size and gradient_accumulation_steps exclude each other; remove batch_size")
    if run.batch_size and run.micro_batch_size and run.batch_size % run.micro_batch_size:
        raise ValueError("batch_size must be a multiple of micro_batch_size; change one of them")


def _data_sets_fit_together(run: RunConfig) -> None:
    if run.test_datasets and run.val_set_size:
        raise ValueError("test_datasets and val_set_size exclude each other; remove val_set_size")
    if run.eval_sequence_len is not None and not run.test_datasets:
        raise ValueError("eval_sequence_len is for test_datasets, and there are none; remove eval_sequence_len")
    if run.dataset_shard_idx >= (run.dataset_shard_num or 1):
        raise ValueError("dataset_shard_idx is not one of dataset_shard_num parts, counted from 0; lower it")
    if run.mixture is None and any(dataset.weight > 1 for dataset in run.datasets):
        raise ValueError("datasets[].weight above 1 is a proportion; set mixture: rows, or lower weight")
    if any(dataset.weight > 1 for dataset in run.test_datasets):
        raise ValueError("test_datasets[].weight is a share of the rows; lower weight to 1 or less")


def _streaming_has_an_end(run: RunConfig) -> None:
    if run.streaming and run.max_steps is None:
        raise ValueError("streaming reads what max_steps can use; set max_steps: 1000, or remove streaming")


def _exclusive_keys(run: RunConfig) -> None:
    pairs = [("warmup_steps", "warmup_ratio"), ("eval_steps", "evals_per_epoch"), ("save_steps", "saves_per_epoch")]
    for first, second in pairs:
        if getattr(run, first) is not None and getattr(run, second) is not None:
            raise ValueError(f"{first} and {second} exclude each other; remove {first}")


def _quantised_base_needs_an_adapter(run: RunConfig) -> None:
    if run.load_in_4bit and run.load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit exclude each other; remove load_in_8bit")
    if run.adapter is None and (run.load_in_4bit or run.load_in_8bit):
        key, adapter = ("load_in_4bit", "qlora") if run.load_in_4bit else ("load_in_8bit", "lora")
        raise ValueError(f"quantised weights cannot be trained; set adapter: {adapter}, or remove {key}")
    if run.adapter == "qlora" and not run.load_in_4bit:
        raise ValueError("adapter: qlora keeps the base in 4 bits; set load_in_4bit: true, or adapter: lora")
    if run.bnb_config_kwargs and not (run.load_in_4bit or run.load_in_8bit):
        raise ValueError("bnb_config_kwargs needs a quantised base; set load_in_4bit: true, or remove it")


def _adapter_targets(run: RunConfig) -> None:
    named = run.lora_target_linear or run.lora_target_modules or run.lora_target_parameters
    if run.adapter and not (named or run.lora_model_dir):
        raise ValueError(f"adapter: {run.adapter} needs its targets; set lora_target_linear: true")
    if run.lora_target_parameters and run.lora_dropout:
        raise ValueError("lora_target_parameters takes no lora_dropout; set lora_dropout: 0")


def _adapter_keys_need_an_adapter(run: RunConfig) -> None:
    if run.adapter is not None and run.reinit_weights:
        raise ValueError("an adapter on random weights cannot learn what they lack; remove reinit_weights, or adapter")
    if run.adapter is not None and run.unfrozen_parameters:
        raise ValueError("unfrozen_parameters and adapter exclude each other; use lora_modules_to_save")
    for key in ("lora_model_dir", "peft_use_dora", "loraplus_lr_ratio"):
        if run.adapter is None and getattr(run, key):
            raise ValueError(f"{key} needs an adapter; set adapter: lora, or remove {key}")
    ranges = [pattern for pattern in run.unfrozen_parameters if re.search(r"\[-?\d*:-?\d*\]$", pattern)]
    if ranges:
        raise ValueError(f"unfrozen_parameters trains whole parameters, not {ranges[0]}; leave the range out")


def _one_way_to_set_a_learning_rate(run: RunConfig) -> None:
    for key, other in (
        ("lr_groups", "loraplus_lr_ratio"),
        ("embedding_lr", "loraplus_lr_ratio"),
        ("embedding_lr_scale", "loraplus_lr_ratio"),
        ("embedding_lr_scale", "embedding_lr"),
    ):
        if getattr(run, key) and getattr(run, other):
            raise ValueError(f"{key} and {other} exclude each other; remove {key}")


def _schedule_has_its_keys(run: RunConfig) -> None:
    for key, schedules in (
        ("cosine_min_lr_ratio", ("cosine", "rex")),
        ("cosine_constant_lr_ratio", ("cosine",)),
        ("lr_quadratic_warmup", ("cosine",)),
    ):
        if getattr(run, key) and run.lr_scheduler not in schedules:
            raise ValueError(f"{key} needs lr_scheduler: {' or '.join(schedules)}; remove {key}")


def _offloading_needs_recomputation(run: RunConfig) -> None:
    if run.activation_offloading and not run.gradient_checkpointing:
        raise ValueError(
            "activation_offloading moves what gradient_checkpointing keeps; set gradient_checkpointing: true"
        )


def _sharded_once(run: RunConfig) -> None:
    if run.fsdp_config is not None and run.deepspeed is not None:
        raise ValueError("fsdp_config and deepspeed exclude each other; remove deepspeed")


def _copies_are_in_shards(run: RunConfig) -> None:
    for key in ("dp_shard_size", "dp_replicate_size"):
        if (getattr(run, key) or 1) > 1 and run.fsdp_config is None:
            raise ValueError(f"{key} counts processes of FSDP2; set fsdp_config: {{}}, or remove {key}")


def _precision_elsewhere(run: RunConfig) -> None:
    if run.launcher.is_elsewhere and run.bf16 == "auto" and not run.fp16:
        raise ValueError(
            f"bf16: auto looks at this machine's GPUs, and launcher.type: {run.launcher.type} trains elsewhere; "
            "set bf16: true, or false"
        )


def _precision_once(run: RunConfig) -> None:
    if run.fp16 and run.bf16 is True:
        raise ValueError("bf16 and fp16 exclude each other; remove fp16")


def _evaluation_has_rows(run: RunConfig) -> None:
    if run.val_set_size or run.test_datasets:
        return
    for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        if getattr(run, key):
            raise ValueError(f"{key} asks for an evaluation set; set val_set_size: 0.05, or remove {key}")
    if run.save_strategy == "best" or run.eval_strategy not in (None, "no"):
        key = "save_strategy" if run.save_strategy == "best" else "eval_strategy"
        raise ValueError(f"{key} asks for an evaluation set; set val_set_size: 0.05, or remove {key}")


def _strategies(run: RunConfig) -> None:
    if run.save_strategy not in (None, "steps") and (run.save_steps or run.saves_per_epoch):
        raise ValueError("save_strategy contradicts save_steps and saves_per_epoch; remove save_strategy")
    if run.eval_strategy not in (None, "steps") and (run.eval_steps or run.evals_per_epoch):
        raise ValueError("eval_strategy contradicts eval_steps and evals_per_epoch; remove eval_strategy")
    if run.eval_strategy == "steps" and not (run.eval_steps or run.evals_per_epoch):
        raise ValueError("eval_strategy: steps needs their number; set eval_steps: 0.1")
    often = run.eval_steps or run.evals_per_epoch or run.eval_strategy == "epoch"
    if run.early_stopping_patience and not often:
        raise ValueError("early_stopping_patience needs several evaluations; set evals_per_epoch: 4")


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _batch_sizes,
    _data_sets_fit_together,
    _streaming_has_an_end,
    _exclusive_keys,
    _quantised_base_needs_an_adapter,
    _adapter_targets,
    _adapter_keys_need_an_adapter,
    _one_way_to_set_a_learning_rate,
    _schedule_has_its_keys,
    _offloading_needs_recomputation,
    _sharded_once,
    _copies_are_in_shards,
    _precision_elsewhere,
    _precision_once,
    _evaluation_has_rows,
    _strategies,
)
"""Each raises ValueError: "rule; remedy"."""
