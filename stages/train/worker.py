"""A training from the job to the end marker, as each process under torchrun runs it."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import distributed
from transformers import PreTrainedModel

from configs.schema import RunConfig
from stages.artifacts import Artifact, digest_of
from stages.artifacts.artifact import read_artifact
from stages.errors import ConfigError, Problem, StageError, TransientError
from stages.quantization import quantization
from stages.tokens import Packs, TokenRows
from stages.train.arguments import training_arguments
from stages.train.attention import check_isolation
from stages.train.balance import training_costs
from stages.train.checkpoints import newest_checkpoint, seal_final, step_of
from stages.train.course import Course, best_step
from stages.train.data import Batches, BatchForm
from stages.train.health import as_record, judge
from stages.train.job import Job, WorkFolder
from stages.train.loss import CHECKED_TOKENS, LossByChunks
from stages.train.machine import VARLEN
from stages.train.metrics import MetricsLog
from stages.train.model import DTYPES, load_model, save_final, uses_autocast
from stages.train.outcome import STOPPED
from stages.train.profiling import Profiler
from stages.train.samples import Samples, prompts
from stages.train.schedule import Schedule, plan_schedule, waiting_of
from stages.train.segments import NAME as BY_SAMPLE
from stages.train.segments import attend_by_sample
from stages.train.sharding import check_sharded, settle_precision, stay_alone, whole_weights
from stages.train.stopping import StopFlag
from stages.train.tracking import tracking
from stages.train.trainer import PackedTrainer, Recorder
from stages.train.watch import setting_of, watchers

LAST_STEPS = 10
"""The final loss is a mean over so many of the last steps, or over a tenth of all steps if that is less."""

logger = logging.getLogger(__name__)


def train(job: Job, stop: StopFlag) -> int:
    """Train, or continue, and return the exit code: 0 done, 143 stopped with a checkpoint.

    Raises:
        SftError: in place of the known failures of torch, too.
    """
    try:
        return _train(job, stop)
    except torch.OutOfMemoryError as error:
        raise StageError(
            f"the GPU's memory is not enough: {error}. Lower micro_batch_size and raise gradient_accumulation_steps by "
            "the same factor, set gradient_checkpointing: true, or lower sequence_len."
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo/transport" in str(error)):
            raise
        raise TransientError(f"a training process lost its connection to another one: {error}") from error


def _train(job: Job, stop: StopFlag) -> int:
    """Train from the first line of the job to the end marker."""
    _prepare_process(job)
    work, run = WorkFolder(job.work), job.run
    tokens, packs = open_artifact(job.tokens), open_artifact(job.packs)
    rows, train_packs = TokenRows(tokens), Packs.read(packs.path("train.arrow"))
    eval_packs = Packs.read(packs.path("eval.arrow"))
    schedule = plan_schedule(
        run,
        sequences=len(train_packs),
        eval_sequences=len(eval_packs),
        world_size=job.world_size,
        costs=training_costs(run, train_packs, job.model),
    )
    arguments = training_arguments(job, schedule)
    stay_alone(arguments, run)
    is_first = arguments.process_index == 0
    vocabulary = tokens.facts["tokenizer"]
    model = load_model(job, vocabulary["vocab_size"], vocabulary.get("new_tokens", ()))
    attend_by_sample(model, varlen=job.attention == VARLEN)
    form = batch_form(job, tokens, model)
    batches, eval_batches = Batches(rows, train_packs, form), Batches(rows, eval_packs, _eval_form(form, run))
    chunks = LossByChunks.of(model)
    course = Course(run, schedule, stop, key=job.key)
    recorder = [Recorder(MetricsLog(work.metrics), schedule, batches)] if is_first else []
    trainer = PackedTrainer(
        model,
        arguments,
        run=run,
        schedule=schedule,
        batches=batches,
        eval_batches=eval_batches,
        callbacks=[
            *recorder,
            *watchers(run, schedule, model, work.health if is_first else None),
            *(_samples(job, work, rows, eval_packs) if is_first else []),
            *(_profiler(run, work) if is_first else []),
            course,
        ],
        inspect=lambda trainer: _check(trainer, job, batches.unpadded(), chunks),
    )
    settle_precision(trainer, DTYPES[job.precision])
    checkpoint = _checkpoint_for_all(job, work, is_first=is_first)
    torch.manual_seed(run.seed + arguments.process_index)  # from here on each process draws its own dropout
    logger.info("%s, %s", _describe_model(model), _describe_course(schedule))
    with tracking(job, work.metrics, is_first=is_first, resumed=checkpoint is not None) as trackers:
        for tracker in trackers:
            trainer.add_callback(tracker)
        trainer.train(resume_from_checkpoint=checkpoint)
    if course.stopped_at is not None:
        logger.info("stopped by SIGTERM after step %d of %d; checkpoint written", course.stopped_at, schedule.steps)
    else:
        _save(trainer, job, work, schedule)
    _leave_together()
    return STOPPED if course.stopped_at is not None else 0


def open_artifact(folder: Path) -> Artifact:
    """Return the artifact in a folder.

    Raises:
        StageError: it is not there any more.
    """
    artifact = read_artifact(folder)
    if artifact is None:
        raise StageError(f"{folder}: there is no complete artifact any more. Run again to make it.")
    return artifact


def batch_form(job: Job, tokens: Artifact, model: PreTrainedModel) -> BatchForm:
    """Return the layout of batches that the configuration and the model's attention ask for."""
    ids = tokens.facts["tokenizer"]
    pad_id = next((ids[name] for name in ("pad_token_id", "eos_token_id") if ids[name] is not None), 0)
    attention = getattr(model.config, "_attn_implementation", None) or ""
    return BatchForm(
        pad_id=pad_id,
        width=job.run.sequence_len if job.run.pad_to_sequence_len else None,
        flat="flash" in attention or (attention == BY_SAMPLE and job.attention == VARLEN),
    )


def _eval_form(form: BatchForm, run: RunConfig) -> BatchForm:
    return form if form.width is None else replace(form, width=run.eval_sequence_len or form.width)


def _prepare_process(job: Job) -> None:
    """Set what must hold before the first tensor: log, seed, threads, algorithms that give the same bits again."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if int(os.environ["RANK"]):
        logging.getLogger().setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of one library about another
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    transformers.set_seed(job.run.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _check(trainer: PackedTrainer, job: Job, batches: Batches, chunks: LossByChunks | None) -> None:
    """Look at the model as it is about to train.

    Do all processes share it, do packed samples stay apart, and is its loss by chunks its own?
    """
    check_sharded(trainer, job.run.sharding, job.world_size)
    small = batches.collate([batches.beginning(0, samples=1, tokens=CHECKED_TOKENS)])
    with torch.autocast(trainer.args.device.type, DTYPES[job.precision], enabled=uses_autocast(job)):
        worst = check_isolation(trainer.model, batches, tf32=job.tf32)
        by_chunks = chunks is not None and chunks.is_right(trainer.model, small)
    if worst is not None:
        logger.info("packed samples do not see each other: largest relative difference of logits %.2g", worst)
    if not by_chunks and job.run.chunked_cross_entropy:
        rule = f"{type(trainer.model).__name__} computes a loss of its own, with the logits of whole batches"
        remedy = "Remove it, and micro_batch_size: 1 keeps the memory for logits low."
        raise ConfigError([Problem("configuration", "chunked_cross_entropy", "true", rule, remedy)])
    if not by_chunks:
        logger.warning(
            "%s computes its own loss, with the logits of whole batches: memory for them grows with micro_batch_size",
            type(trainer.model).__name__,
        )


def _save(trainer: PackedTrainer, job: Job, work: WorkFolder, schedule: Schedule) -> None:
    """Write the final model and the end marker, in the first process, with the help of all."""
    is_first = trainer.args.process_index == 0
    trainer.rest_optimizer()
    weights = None
    if job.run.sharding in ("fsdp2", "zero3"):
        weights = whole_weights(trainer.model, trained_only=job.run.adapter is not None, is_first=is_first)
    if is_first:
        save_final(trainer.accelerator.unwrap_model(trainer.model), job, work.final / "model", weights)
        seal_final(work.done, work.final, key=job.key, facts=_facts(trainer, job, schedule))


def _samples(job: Job, work: WorkFolder, rows: TokenRows, held_out: Packs) -> list[Samples]:
    """Return what lets the model answer held-out prompts, if that is asked for and one process holds all weights."""
    run = job.run
    if not run.generate_samples or run.sharding in ("fsdp2", "zero3"):
        return []
    asked = prompts(rows, held_out, most=run.num_generation_samples, ratio=run.generation_prompt_ratio)
    return [Samples(run, asked, job.tokens / "tokenizer", MetricsLog(work.samples))]


def _profiler(run: RunConfig, work: WorkFolder) -> list[Profiler]:
    if run.profiler_steps is None:
        return []
    return [Profiler(run.profiler_steps_start, run.profiler_steps, work.trace, work.snapshot)]


def _checkpoint_for_all(job: Job, work: WorkFolder, *, is_first: bool) -> str | None:
    """Return the checkpoint that every process resumes from, chosen by the first; cut the metrics back to it."""
    chosen: list[str | None] = [None]
    if is_first:
        checkpoint = newest_checkpoint(work.root, job.key)
        for log in (work.metrics, work.samples):
            MetricsLog(log).cut(step_of(checkpoint) if checkpoint else -1)
        if checkpoint:
            logger.info("continuing from the checkpoint of step %d", step_of(checkpoint))
        elif job.checkpoint:
            logger.info("starting from %s", job.checkpoint)
        chosen = [str(found) if (found := checkpoint or job.checkpoint) else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(chosen)
    return chosen[0]


def _describe_model(model: PreTrainedModel) -> str:
    sizes = [
        (getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()
    ]  # ZeRO-3 has emptied them
    return f"training {sum(n for n, is_trained in sizes if is_trained):,} of {sum(n for n, _ in sizes):,} parameters"


def _describe_course(schedule: Schedule) -> str:
    return f"{schedule.steps} steps of {schedule.batch} sequences, {schedule.steps_per_epoch} steps an epoch"


def _facts(trainer: PackedTrainer, job: Job, schedule: Schedule) -> dict[str, Any]:
    """Return what the artifact states about the training; nothing that another try on the same input would change."""
    history = trainer.state.log_history
    steps = [record for record in history if "loss" in record]
    picked = best_step(history) if job.run.picks_best else None
    losses = [record["loss"] for record in steps]
    last = losses[-max(1, min(LAST_STEPS, len(losses) // 10)) :]
    return {
        "kind": "adapter" if job.run.adapter else "model",
        "precision": job.precision,
        "quantization": quantization(job.run, job.precision),
        "steps": trainer.state.global_step,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": round(trainer.state.global_step / schedule.steps_per_epoch, 4),
        **({} if picked is None else {"weights_of_step": picked}),
        "world_size": job.world_size,
        "waiting": waiting_of(schedule, job.run, job.world_size),
        "first_loss": losses[0],
        "final_loss": sum(last) / len(last),
        "eval_loss": _eval_loss(history, picked),
        "trained_tokens_seen": steps[-1]["trained_tokens"],
        "losses_digest": digest_of(losses),
        "health": as_record(judge(steps, setting_of(job.run, schedule, trainer.model))),
    }


def _eval_loss(history: list[dict[str, Any]], step: int | None) -> float | None:
    """Return the loss on the evaluation set of the weights of a step, or of the last ones."""
    losses = [record for record in history if "eval_loss" in record and step in (None, record["step"])]
    return losses[-1]["eval_loss"] if losses else None


def _leave_together() -> None:
    """Wait for the first process, which may still be writing, so that no process is missed while it does."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
