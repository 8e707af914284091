"""The configuration in the words of Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from configs.schema import RunConfig
from stages.train.job import Job
from stages.train.model import uses_autocast
from stages.train.optimizers import settled_name
from stages.train.schedule import Schedule
from stages.train.sharding import deepspeed_arguments, fsdp_arguments, shard_on_cpu
from stages.train.tracking import tracker_arguments

OWN_SCHEDULES = ("one_cycle", "rex")
"""Schedules that the Trainer does not know; `stages.train.learning_rate` makes them."""


def training_arguments(job: Job, schedule: Schedule) -> TrainingArguments:
    """Return the Trainer's arguments; as a side effect of Hugging Face's, the processes now know each other.

    Steps, log lines, evaluations and checkpoints are ours: the Trainer logs every step, and does the rest on demand.
    """
    run = job.run
    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = dict(
        output_dir=str(job.work),
        use_cpu=not on_gpu,
        seed=run.seed,
        max_steps=schedule.steps,
        warmup_steps=schedule.warmup_steps,
        per_device_train_batch_size=run.sequences_per_pass,
        per_device_eval_batch_size=run.eval_batch_size or run.sequences_per_pass,
        gradient_accumulation_steps=run.passes_per_step,
        average_tokens_across_devices=True,
        learning_rate=run.learning_rate,
        lr_scheduler_type="constant" if run.lr_scheduler in OWN_SCHEDULES else run.lr_scheduler,
        lr_scheduler_kwargs=dict(run.lr_scheduler_kwargs) or None,
        optim=settled_name(run.optimizer),
        optim_target_modules=_target_modules(run.optim_target_modules),
        optim_args=",".join(f"{name}={value}" for name, value in run.optim_args.items()) or None,
        weight_decay=run.weight_decay,
        adam_beta1=run.adam_beta1,
        adam_beta2=run.adam_beta2,
        adam_epsilon=run.adam_epsilon,
        max_grad_norm=run.max_grad_norm,
        neftune_noise_alpha=run.neftune_noise_alpha,
        bf16=job.precision == "bf16" and uses_autocast(job),
        fp16=job.precision == "fp16" and uses_autocast(job),
        tf32=job.tf32 if on_gpu else None,
        activation_checkpointing=run.recomputes_activations,  # FSDP's own would draw another dropout
        activation_checkpointing_kwargs={
            "use_reentrant": run.deepspeed is not None,
            **run.gradient_checkpointing_kwargs,
        },
        torch_compile=compiles(run, on_gpu=on_gpu),
        torch_compile_backend=run.torch_compile_backend if compiles(run, on_gpu=on_gpu) else None,
        torch_compile_mode=run.torch_compile_mode if compiles(run, on_gpu=on_gpu) else None,
        ddp_find_unused_parameters=run.ddp_find_unused_parameters,
        dataloader_num_workers=run.dataloader_num_workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_only_model=run.save_only_model and run.sharding == "none",
        metric_for_best_model="eval_loss" if run.picks_best else None,
        greater_is_better=False,
        eval_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    settings |= tracker_arguments(run)
    settings |= fsdp_arguments(run, job.world_size, on_gpu=on_gpu)
    settings |= deepspeed_arguments(run, job.precision, on_gpu=on_gpu)
    arguments = TrainingArguments(**settings)
    arguments.load_best_model_at_end = run.picks_best  # its check wants the Trainer's own evaluations and checkpoints
    shard_on_cpu(arguments)
    return arguments


def compiles(run: RunConfig, *, on_gpu: bool) -> bool:
    """Return whether the model is compiled."""
    return on_gpu if run.torch_compile == "auto" else run.torch_compile


def _target_modules(named: str | tuple[str, ...]) -> str | list[str] | None:
    if isinstance(named, str):
        return named.replace("_", "-")  # transformers writes all-linear
    return list(named) or None
