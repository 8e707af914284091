"""`sft plan`: what a run would do, as a document and as a page for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.load import LoadedRun
from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.base_model import find_model, find_tokenizer
from stages.pack.parts import parts, told
from stages.pipeline import PlannedStage, plan
from stages.stage import Context, open_run
from stages.tokens import Packs
from stages.train.balance import training_costs
from stages.train.machine import this_machine, world_size
from stages.train.schedule import plan_schedule, waiting_of

CHANGES_SHOWN = 8


def preflight(loaded: LoadedRun) -> None:
    """Check that the model, the tokenizer and the data are there.

    Raises:
        ConfigError: something is not there.
    """
    context, store = open_run(loaded.run)
    find_model(loaded.run)
    find_tokenizer(loaded.run)
    plan(context, store, until="fetch")


def plan_document(loaded: LoadedRun, *, until: str, refresh: Sequence[str]) -> dict[str, Any]:
    """Return the plan as JSON-ready data."""
    context, store = open_run(loaded.run)
    steps = plan(context, store, until=until, refresh=refresh)
    artifacts = {step.stage: step.artifact for step in steps if step.artifact is not None}
    return {
        "stages": [_stage(step) for step in steps],
        "data": _data(context.run, artifacts),
        "training": _training(context, artifacts),
        "notices": [vars(notice) for notice in loaded.notices],
        "output_dir": loaded.run.output_dir,
    }


def _stage(step: PlannedStage) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "status": step.status,
        "key": step.key,
        "why": step.why,
        "changes": list(step.changes),
        "path": str(step.artifact.folder) if step.artifact is not None else None,
    }


def _data(run: RunConfig, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """Return what is known of the data: as much as the store has."""
    known: dict[str, Any] = {}
    if "tokenize" in artifacts:
        facts = artifacts["tokenize"].facts
        known |= {name: facts[name] for name in ("rows_read", "rows_written", "rejected", "tokens", "trained_tokens")}
    if "pack" in artifacts:
        known |= {name: artifacts["pack"].facts[name] for name in ("sequence_len", "train", "eval")}
        known["dropped"] = artifacts["pack"].facts["rejected"]
        known["left_out"] = artifacts["pack"].facts["left_out"]
        known["datasets"] = [vars(part) for part in parts(run, artifacts["pack"].facts)]
    return known


def _training(context: Context, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    run = context.run
    processes = world_size(run, this_machine())
    known: dict[str, Any] = {
        "micro_batch_size": run.sequences_per_pass,
        "passes_per_step": run.passes_per_step,
        "processes": processes,
        "sequences_per_step": run.sequences_per_pass * run.passes_per_step * processes,
    }
    if "pack" in artifacts:
        packs = Packs.read(artifacts["pack"].path("train.arrow"))
        schedule = plan_schedule(
            run,
            sequences=len(packs),
            eval_sequences=artifacts["pack"].facts["eval"]["sequences"],
            world_size=processes,
            costs=training_costs(run, packs, find_model(run).folder(("config.json",))) if processes > 1 else None,
        )
        known |= {
            "steps_per_epoch": schedule.steps_per_epoch,
            "steps": schedule.steps,
            "epochs": schedule.epochs,
            "warmup_steps": schedule.warmup_steps,
            "checkpoints": sorted(schedule.saves),
            "waiting": waiting_of(schedule, run, processes),
        }
    return known


def show_plan(document: dict[str, Any]) -> None:
    """Print the plan."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "", "key", "why"):
        table.add_column(name)
    for stage in document["stages"]:
        reused = stage["status"] == "reused"
        status = Text("reused" if reused else "run", "cyan" if reused else "yellow")
        table.add_row(stage["stage"], status, Text((stage["key"] or "")[:12], "dim"), stage["why"])
        for change in stage["changes"][:CHANGES_SHOWN]:
            table.add_row("", "", "", Text(f"  {change}", "dim"))
        if len(stage["changes"]) > CHANGES_SHOWN:
            table.add_row("", "", "", Text(f"  and {len(stage['changes']) - CHANGES_SHOWN} more", "dim"))
    console.print(table)
    for line in _figures(document):
        console.print(line, highlight=False, soft_wrap=True)


def _figures(document: dict[str, Any]) -> list[str]:
    data, training, lines = document["data"], document["training"], [""]
    if "tokens" in data:
        share = data["trained_tokens"] / max(1, data["tokens"])
        lines.append(f"data      {data['rows_written']:,} rows, {data['tokens']:,} tokens, {share:.0%} trained")
    lost = told(data.get("rejected", {}) | data.get("dropped", {}))
    lines += [f"rejected  {lost}"] if lost else []
    left = told(data.get("left_out", {}))
    lines += [f"left out  {left}"] if left else []
    if len(data.get("datasets", ())) > 1:
        lines += [f"mixture   {data_set['line']}" for data_set in data["datasets"]]
    if "train" in data:
        train = data["train"]
        lines.append(
            f"packing   {train['sequences']:,} sequences of {data['sequence_len']:,}, {train['efficiency']:.1%} full"
        )
    if "steps" in training:
        lines.append(
            f"training  {training['steps']:,} steps of {training['sequences_per_step']} sequences "
            f"({training['micro_batch_size']} a pass x {training['passes_per_step']} passes "
            f"x {training['processes']} processes)"
        )
        if training["waiting"]:
            share, otherwise = training["waiting"]["share"], training["waiting"]["in_random_order"]
            lines.append(f"balance   processes wait {share:.1%} of the time, in a random order {otherwise:.1%}")
    return lines
