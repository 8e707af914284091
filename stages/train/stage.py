"""The train stage: what its key is made of, and how the artifact comes about. No torch here."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig, SpecialTokensConfig
from stages.artifacts import ArtifactWriter
from stages.base_model import MODEL_FILES, find_model
from stages.quantization import quantization
from stages.stage import Context, Stage, Upstream
from stages.tokens import Packs
from stages.train.backup import restore, sending
from stages.train.checkpoints import is_whole
from stages.train.job import Job, WorkFolder
from stages.train.launch import launch
from stages.train.machine import Machine, attention, copies, precision, tf32, this_machine, threads, world_size
from stages.train.outcome import error_of
from stages.train.rules import LIGER_KEYS, LORA_KERNEL_KEYS, check, needed_packages
from stages.train.schedule import plan_schedule
from stages.train.start import adapter_folder, check_steps_left, checkpoint_folder, started_from

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
ADAPTER_KEYS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "lora_modules_to_save",
)
LATER_ADAPTER_KEYS = (
    "lora_target_parameters",
    "lora_fan_in_fan_out",
    "lora_rank_pattern",
    "lora_alpha_pattern",
    "peft_use_dora",
    "peft_use_rslora",
    "peft_init_lora_weights",
    "peft_layers_to_transform",
    "peft_layers_pattern",
    "peft_ensure_weight_tying",
    "peft_autocast_adapter_dtype",
    "loraplus_lr_ratio",
    "loraplus_lr_embedding",
    *LORA_KERNEL_KEYS,
)
LATER_KEYS = (
    "unfrozen_parameters",
    "cosine_min_lr_ratio",
    "cosine_constant_lr_ratio",
    "lr_quadratic_warmup",
    "optim_target_modules",
    "embedding_lr",
    "embedding_lr_scale",
    "lr_groups",
    "group_by_length",
    "curriculum_sampling",
    "reinit_weights",
    "experts_implementation",
)
"""Keys that came later are in a key only where they are set: older trainings stay what they are."""
PICKING_KEYS = (
    "early_stopping_patience",
    "load_best_model_at_end",
    "eval_steps",
    "evals_per_epoch",
    "eval_strategy",
)
"""What changes the weights where the loss on the evaluation set picks them."""
SAMPLE_KEYS = (
    "num_generation_samples",
    "generation_max_new_tokens",
    "generation_do_sample",
    "generation_temperature",
    "generation_top_p",
    "generation_top_k",
    "generation_prompt_ratio",
)
OPTIMISATION_KEYS = (
    "sequences_per_pass",
    "passes_per_step",
    "num_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "optimizer",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "neftune_noise_alpha",
    "seed",
    "gradient_checkpointing_kwargs",
    "trust_remote_code",
    "pad_to_sequence_len",
)
"""What changes the weights. Log lines, evaluations, checkpoints and data loader processes do not: evaluation draws no
random number, and a resumed training gives the same losses to the last bit."""


def _inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    check(context.run)
    return key_inputs(context, this_machine())


def key_inputs(context: Context, machine: Machine) -> dict[str, Any]:
    """Return what determines the trained weights on a machine."""
    run = context.run
    adapter = {name: getattr(run, name) for name in ADAPTER_KEYS} | _set_of(run, LATER_ADAPTER_KEYS)
    return {
        "base_model": find_model(run).content(MODEL_FILES, context.digests),
        "adapter": run.adapter,
        **(adapter if run.adapter else {}),
        **_set_of(run, LATER_KEYS),
        **(_set_of(run, LIGER_KEYS) if machine.gpus else {}),
        **started_from(context),
        **{name: getattr(run, name) for name in OPTIMISATION_KEYS},
        "gradient_checkpointing": run.recomputes_activations,
        "attn_implementation": attention(run, machine),
        "precision": precision(run, machine),
        "quantization": quantization(run, precision(run, machine)),
        "weights_in_low_precision": run.bf16 == "full",
        "sharding": run.sharding,
        **({"copies": copies(run, machine)} if run.sharding == "fsdp2" and copies(run, machine) > 1 else {}),
        **({"loss": "by chunks"} if run.sharding in ("fsdp2", "zero3") else {}),  # elsewhere it always was
        "deepspeed": run.deepspeed,
        "tf32": tf32(run, machine),
        "world_size": world_size(run, machine),
        "evaluates_in_passes_of": _eval_pass(run),
        **(_set_of(run, PICKING_KEYS) if run.picks_best else {}),
        **_new_embeddings(run),
        **_also_recorded(run),
        "libraries": {name: version(name) for name in (*LIBRARIES, *needed_packages(run))},
    }


def _new_embeddings(run: RunConfig) -> dict[str, Any]:
    """Return how embeddings of new tokens are made, where there can be some."""
    if not (run.tokens or run.tokenizer_config or run.special_tokens != SpecialTokensConfig()):
        return {}
    return {"new_embeddings": [run.resize_token_embeddings_to_32x, run.mean_resizing_embeddings]}


def _also_recorded(run: RunConfig) -> dict[str, Any]:
    """Return what was asked to be written beside the weights: an artifact without it is not the one that is wanted."""
    asked: dict[str, Any] = {}
    if run.profiler_steps:
        asked["profile_of_steps"] = [run.profiler_steps_start, run.profiler_steps]
    if run.generate_samples:
        asked["samples"] = {name: getattr(run, name) for name in SAMPLE_KEYS}
    return asked


def _set_of(run: RunConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return those of the keys that are not at their default, JSON-ready."""
    values = run.model_dump(mode="json", include=set(keys), exclude_defaults=True)
    return {name: values[name] for name in keys if name in values}


def _eval_pass(run: RunConfig) -> int:
    return run.eval_batch_size or run.sequences_per_pass


def _produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    """Train in child processes, resuming what an earlier try left in the working folder, and take over the result."""
    work = WorkFolder(writer.work.resolve())  # other nodes start elsewhere
    work.root.mkdir(parents=True, exist_ok=True)
    job = _job(context, upstream, writer, work)
    backup = writer.backup()
    if not is_whole(work.done, work.final, job.key):
        if backup is not None:
            restore(work, backup, job.key, every=context.run.keeps_best, log=context.log)
        with sending(work, backup, every=context.run.keeps_best, log=context.log):
            _train(job, work, context, upstream)
    facts: dict[str, Any] = orjson.loads(work.done.read_bytes())["facts"]
    writer.take_folder(work.final)
    said = (work.metrics, work.log, work.health, work.samples, work.trace, work.snapshot)
    for path in filter(Path.exists, said):
        with writer.create(path.name, volatile=True) as draft:  # a copy: the next try appends to the original
            shutil.copyfile(path, draft.path)
    work.done.unlink()  # a refreshed run trains again, from the last checkpoint on
    shutil.rmtree(work.final)
    return {**facts, "base_model": writer.inputs["base_model"]}


def _train(job: Job, work: WorkFolder, context: Context, upstream: Upstream) -> None:
    work.done.unlink(missing_ok=True)
    work.clear_reports()
    work.job.write_text(job.model_dump_json())
    packs = upstream["pack"]
    schedule = plan_schedule(
        job.run,
        sequences=len(Packs.read(packs.path("train.arrow"))),
        eval_sequences=len(Packs.read(packs.path("eval.arrow"))),
        world_size=job.world_size,
    )
    check_steps_left(job.checkpoint, schedule.steps)
    code = launch(job, work, context, threads=threads(job.run, job.world_size), steps=schedule.steps)
    if not is_whole(work.done, work.final, job.key):
        raise error_of(work, code)


def _job(context: Context, upstream: Upstream, writer: ArtifactWriter, work: WorkFolder) -> Job:
    run, machine = context.run, this_machine()
    source = find_model(run).at(writer.inputs["base_model"])
    folder = source.folder(MODEL_FILES).resolve()
    return Job(
        key=writer.key,
        run=run,
        tokens=upstream["tokenize"].folder.resolve(),
        packs=upstream["pack"].folder.resolve(),
        model=folder,
        model_name=source.short_name,
        model_commit=source.commit,
        adapter=adapter_folder(run),
        checkpoint=checkpoint_folder(run),
        work=work.root,
        precision=precision(run, machine),
        attention=attention(run, machine),
        tf32=tf32(run, machine),
        world_size=world_size(run, machine),
    )


STAGE = Stage("train", version=4, needs=("tokenize", "pack"), inputs=_inputs, produce=_produce)
