"""`sft plan` and `sft validate` as documents: what a run would do, whether it fits, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from typing import Any

from configs.load import LoadedRun
from stages.artifacts import Artifact, Store
from stages.base_model import find_model
from stages.errors import ConfigError, DataError, Problem, TransientError
from stages.estimate.duration import Duration, last_time, training_time
from stages.estimate.fit import SAFE
from stages.outlook import Outlook, look_ahead
from stages.pack.parts import parts
from stages.pipeline import STAGE_NAMES, PlannedStage, differences, plan
from stages.preflight import Finding
from stages.preflight.advice import method, size_class
from stages.preflight.scene import note, refused
from stages.stage import Context, open_run
from stages.tokens import Packs
from stages.train.balance import training_costs
from stages.train.machine import Machine, precision, this_machine, threads
from stages.train.schedule import plan_schedule, waiting_of
from stages.train.stage import key_inputs


def validate_document(loaded: LoadedRun, *, gpu: str | None = None, strict: bool = False) -> dict[str, Any]:
    """Return the findings about a configuration, its model and its data, as JSON-ready data.

    What only this machine is without is a warning: the file is right. With `strict` warnings make it invalid.
    """
    wrong = ("error", "warning") if strict else ("error",)
    outlook = look_ahead(loaded, gpu=gpu).of_file()
    findings = [*outlook.findings, *_data_findings(loaded)]
    return {
        "valid": not any(finding.level in wrong for finding in findings),
        **_findings(findings, loaded),
        "keys": [vars(use) for use in loaded.keys],
    }


def plan_document(
    loaded: LoadedRun, *, until: str, refresh: Sequence[str] = (), gpu: str | None = None
) -> dict[str, Any]:
    """Return the plan as JSON-ready data; `problems` are what would stop the run.

    Raises:
        ConfigError: the sources, the model or the data are not there, so that there is nothing to plan.
    """
    context, store = open_run(loaded.run)
    steps = plan_stages(loaded, context, store, until=until, refresh=refresh, gpu=gpu)
    outlook = look_ahead(loaded, gpu=gpu, finished=finished_in(steps)).until(until)
    if not outlook.devices.here:
        steps = _elsewhere(steps, context, outlook)
    artifacts = {step.stage: step.artifact for step in steps if step.artifact is not None}
    training = _training(context, artifacts, outlook)
    times = _times(context, store, steps, training, outlook)
    return {
        "stages": [_stage(step, times.get(step.stage)) for step in steps],
        "data": _data(context, artifacts),
        "model": _model(outlook, loaded),
        "training": training,
        "memory": _memory(outlook),
        "seconds": round(sum(time.seconds for time in times.values()), 1) if times else None,
        **_findings(outlook.findings, loaded),
        "output_dir": loaded.run.output_dir,
        "publish_to": loaded.run.publish_to,
    }


def plan_stages(
    loaded: LoadedRun, context: Context, store: Store, *, until: str, refresh: Sequence[str], gpu: str | None = None
) -> list[PlannedStage]:
    """Return what a run would do, stage by stage.

    Raises:
        ConfigError: what stops planning, together with all else that is wrong.
    """
    try:
        return plan(context, store, until=until, refresh=refresh)
    except ConfigError as error:
        told = [finding.as_problem() for finding in look_ahead(loaded, gpu=gpu).until(until).at("error")]
        said = {(problem.key, problem.rule) for problem in told}
        placed = [Problem(loaded.place(p.key), p.key, p.value, p.rule, p.remedy) for p in error.problems]
        raise ConfigError([*told, *(p for p in placed if (p.key, p.rule) not in said)]) from error


def _elsewhere(steps: Sequence[PlannedStage], context: Context, outlook: Outlook) -> list[PlannedStage]:
    """Return the plan for another machine: where its training has other inputs, that and what follows would run."""
    devices = outlook.devices
    here, there = _training_inputs(context, this_machine()), _training_inputs(context, devices.machine)
    if here is None or there is None:
        return list(steps)
    changes = tuple(differences(here, there))
    if not changes:
        return list(steps)
    first = f"on {devices.processes} x {devices.name} it is another training than here"
    names = [step.stage for step in steps]
    return [
        step
        if STAGE_NAMES.index(step.stage) < STAGE_NAMES.index("train")
        else PlannedStage(step.stage, "run", None, first, changes)
        if step.stage == "train"
        else PlannedStage(step.stage, "run", None, f"{names[at - 1]} runs first; its result decides")
        for at, step in enumerate(steps)
    ]


def _training_inputs(context: Context, machine: Machine) -> dict[str, Any] | None:
    """Return the key inputs of the training on a machine; None if something for them is missing: a finding says it."""
    try:
        return key_inputs(context, machine)
    except (ConfigError, TransientError, PackageNotFoundError):
        return None


def finished_in(steps: Sequence[PlannedStage]) -> list[str]:
    """Return the stages whose artifact is there."""
    return [step.stage for step in steps if step.status == "reused"]


def preflight(loaded: LoadedRun, steps: Sequence[PlannedStage], *, until: str) -> Outlook | None:
    """Return what is to be said of a run that has something to do; None if everything is there."""
    finished = finished_in(steps)
    return look_ahead(loaded, finished=finished).until(until) if len(finished) < len(steps) else None


def _data_findings(loaded: LoadedRun) -> list[Finding]:
    """Return what is wrong with the sources of the data."""
    context, store = open_run(loaded.run)
    try:
        [step] = plan(context, store, until="fetch")
    except ConfigError as error:
        found = [refused("data", problem, stage="fetch") for problem in error.problems]
        return [Finding(**{**vars(one), "place": loaded.place(one.key)}) for one in found]
    except DataError as error:
        return [refused("data", Problem("data", "datasets", "", str(error).rstrip("."), "Mend it."), stage="fetch")]
    if step.key is None:
        return [note("not-looked-at", "datasets", None, step.why, "The run tries again.", stage="fetch")]
    return []


def _findings(findings: Sequence[Finding], loaded: LoadedRun) -> dict[str, Any]:
    """Return the findings by level; `notices` are those of the configuration's keys, and what is safe here."""
    by_level = {
        level: [_finding(finding) for finding in findings if finding.level == level]
        for level in ("error", "warning", "note")
    }
    return {
        "problems": by_level["error"],
        "warnings": by_level["warning"],
        "notices": [*(vars(notice) for notice in loaded.notices), *by_level["note"]],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    problem = vars(finding.as_problem())
    return {**problem, "check": finding.check, "stage": finding.stage, "of_machine": finding.of_machine}


def _stage(step: PlannedStage, time: Duration | None) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "status": step.status,
        "key": step.key,
        "why": step.why,
        "changes": list(step.changes),
        "path": step.artifact.address if step.artifact is not None else None,
        "seconds": round(time.seconds, 1) if time is not None else None,
        "seconds_from": time.basis if time is not None else None,
    }


def _data(context: Context, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """Return what is known of the data: as much as the store has."""
    known: dict[str, Any] = {}
    if "tokenize" in artifacts:
        facts = artifacts["tokenize"].facts
        known |= {name: facts[name] for name in ("rows_read", "rows_written", "rejected", "tokens", "trained_tokens")}
        checked = enumerate(facts["datasets"])
        known["checks"] = {context.run.source_key(n): dataset["checks"] for n, dataset in checked}
    if "pack" in artifacts:
        known |= {name: artifacts["pack"].facts[name] for name in ("sequence_len", "train", "eval", "truncated")}
        known["dropped"] = artifacts["pack"].facts["rejected"]
        known["left_out"] = artifacts["pack"].facts["left_out"]
        known["datasets"] = [vars(part) for part in parts(context.run, artifacts["pack"].facts)]
    return known


def _model(outlook: Outlook, loaded: LoadedRun) -> dict[str, Any] | None:
    shape, run = outlook.shape, loaded.run
    if shape is None or not shape.sized:
        return None
    size = size_class(shape.parameters)
    return {
        "family": shape.family,
        "rough": shape.is_rough,
        "parameters": shape.parameters,
        "trained_parameters": shape.trained_weights(run),
        "method": method(run),
        "usual": f"{size.usual}; about {size.memory}; full fine-tuning takes {size.full}",
    }


def _memory(outlook: Outlook) -> dict[str, Any] | None:
    found, devices = outlook.fit, outlook.devices
    if found is None:
        return None
    return {
        "device": devices.name,
        "devices": devices.processes,
        "parts": dict(found.memory.parts),
        "total": found.memory.total,
        "available": found.available,
        "share_that_may_be_filled": SAFE,
        "fits": found.fits,
        "changes": [{"set": change.keys, "total": change.total} for change in found.changes],
    }


def _training(context: Context, artifacts: dict[str, Artifact], outlook: Outlook) -> dict[str, Any]:
    run, processes = context.run, outlook.devices.processes
    known: dict[str, Any] = {
        "micro_batch_size": run.sequences_per_pass,
        "passes_per_step": run.passes_per_step,
        "processes": processes,
        "sequences_per_step": run.sequences_per_pass * run.passes_per_step * processes,
        "sharding": run.sharding,
        "precision": _precision(context, outlook),
    }
    if "pack" in artifacts:
        packs = Packs.read(artifacts["pack"].path("train.arrow"))
        facts = artifacts["pack"].facts
        schedule = plan_schedule(
            run,
            sequences=len(packs),
            eval_sequences=facts["eval"]["sequences"],
            world_size=processes,
            costs=training_costs(run, packs, find_model(run).folder(("config.json",))) if processes > 1 else None,
        )
        tokens_per_step = facts["train"]["tokens"] / max(1, schedule.steps_per_epoch)
        known |= {
            "steps_per_epoch": schedule.steps_per_epoch,
            "steps": schedule.steps,
            "epochs": schedule.epochs,
            "warmup_steps": schedule.warmup_steps,
            "checkpoints": sorted(schedule.saves),
            "evaluations": len(schedule.evals),
            "waiting": waiting_of(schedule, run, processes),
            "tokens_per_step": round(tokens_per_step),
            "trained_tokens_per_step": round(facts["train"]["trained_tokens"] / max(1, schedule.steps_per_epoch)),
            "tokens": round(tokens_per_step * schedule.steps),
        }
    return known


def _precision(context: Context, outlook: Outlook) -> str | None:
    try:
        return precision(context.run, outlook.devices.machine)
    except ConfigError:  # a check says it
        return None


def _times(
    context: Context, store: Store, steps: Sequence[PlannedStage], training: dict[str, Any], outlook: Outlook
) -> dict[str, Duration]:
    """Return stage -> about how long it takes, for the stages that would run and of which something is known."""
    times: dict[str, Duration] = {}
    for step in steps:
        if step.status == "reused":
            continue
        time = _training_time(context, store, training, outlook) if step.stage == "train" else None
        if step.stage != "train":
            time = last_time(store, step.stage)
        if time is not None:
            times[step.stage] = time
    return times


def _training_time(context: Context, store: Store, training: dict[str, Any], outlook: Outlook) -> Duration | None:
    if "tokens" not in training or training["precision"] is None:
        return None
    run, devices = context.run, outlook.devices
    return training_time(
        store,
        _training_inputs(context, devices.machine) or {},
        run,
        outlook.shape,
        tokens=training["tokens"],
        gpu=devices.gpu,
        on_cpu=not devices.machine.gpus,
        here=devices.here,
        processes=devices.processes,
        threads=threads(run, devices.processes),
    )
