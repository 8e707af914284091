"""The flow: from a YAML file to a published model, every stage a task, nothing done twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.runtime import deployment
from pydantic import Field

from configs.keys import known_keys
from configs.load import LoadedRun, load_run
from flows import events
from flows.deployments.names import deployment_name
from flows.held import hold_if_sick
from flows.planning import plan_stages, preflight
from stages.artifacts import Artifact, Store, digest_of
from stages.errors import DamagedArtifactError, StageError
from stages.export import export
from stages.lifeline import end_with_parent
from stages.pipeline import STAGE_NAMES, PlannedStage, StageName, stages_until
from stages.report.page import sick_rows
from stages.stage import Context, StageResult, open_run, usable
from tasks.blocks import with_blocks
from tasks.run_artifacts import show_run
from tasks.stage_task import run_as_task

Override = Annotated[str, Field(json_schema_extra={"pattern": rf"^({'|'.join(known_keys(''))})(\.[^=]+)?="})]
"""`key=value`. Prefect's server refuses an unknown key before there is a run; a run itself reads all."""

TRIES = 4
"""How often the stages are gone through when artifacts turn out to be damaged."""


@flow(name="sft", persist_result=False, validate_parameters=True)
def sft(
    config: str,
    overrides: list[Override] | None = None,
    refresh: list[StageName] | None = None,
    until: StageName = "publish",
    start: StageName = "fetch",
    chain: bool = False,
    lenient: bool = False,
) -> list[StageResult]:
    """Fetch, tokenize, pack, train, merge and publish, reusing every artifact that is in the store.

    Args:
        config: Path of the YAML file of the run.
        overrides: `key=value` pairs that replace values of the file.
        refresh: Stages that are produced again even if their artifact is there.
        until: The last stage that is wanted.
        start: The first stage that may run; what comes before has to be in the store.
        chain: When this is done, the next deployment of the same name starts.
        lenient: Unknown keys have no effect, and do not stop the run.
    """
    loaded = load_run(Path(config), overrides or (), lenient=lenient)
    run = with_blocks(loaded.run)
    context, store = open_run(run)
    if deployment.id:  # on the command line `sft run` has looked
        end_with_parent()  # a worker that is killed takes its runs along
        loaded = replace(loaded, run=run)
        steps = plan_stages(loaded, context, store, until=until, refresh=refresh or ())
        _look_ahead(loaded, steps, until)
        _check_start(steps, start, until)
    name = deployment_name(run, Path(config))
    wanted = set(refresh or ())
    for left in reversed(range(TRIES)):
        try:
            results = _run_stages(context, store, name, until, wanted)
            break
        except DamagedArtifactError as error:  # seen when its files were brought here: now its producer runs again
            if not left:
                raise
            get_run_logger().warning("%s", error)
    store.note_run(run.output_dir, [result.artifact for result in results])
    show_run(run, results)
    if until in events.AFTER_STAGE:
        payload = {"config": config, "overrides": list(overrides or ()), "output_dir": run.output_dir}
        events.tell(events.AFTER_STAGE[until], name, payload, chain=chain)
    return results


def _run_stages(
    context: Context, store: Store, name: str, until: StageName, refresh: set[StageName]
) -> list[StageResult]:
    """Run the stages and write the output folder; a stage that was refreshed is taken out of `refresh`."""
    artifacts: dict[str, Artifact] = {}
    results: list[StageResult] = []
    for stage in stages_until(until):
        if stage.name == "publish" and context.run.orchestration.hold_unhealthy:
            published = usable(stage, context, store, digest_of(stage.key_inputs(context, artifacts)))
            if published is None:  # else somebody released this model before
                hold_if_sick(artifacts["train"])
        result = run_as_task(stage, context, artifacts, store, refresh=stage.name in refresh)
        refresh.discard(stage.name)
        artifacts[stage.name] = result.artifact
        results.append(result)
        if stage.name == "train":
            _tell_if_sick(result, name)
    export(context.run, artifacts)
    return results


def _look_ahead(loaded: LoadedRun, steps: Sequence[PlannedStage], until: StageName) -> None:
    """Refuse what would go wrong later, and log what is unusual: a deployment has no terminal that told it before.

    Raises:
        ConfigError: with all that would go wrong.
    """
    outlook = preflight(loaded, steps, until=until)
    if outlook is not None:
        outlook.stop()
        for warning in outlook.at("warning"):
            get_run_logger().warning(str(warning))


def _check_start(steps: Sequence[PlannedStage], start: StageName, until: StageName) -> None:
    """Refuse to start in the middle of what is not there, before a GPU waits for it.

    Raises:
        StageError: an artifact of an earlier stage is missing.
    """
    first = STAGE_NAMES.index(start)
    if first > STAGE_NAMES.index(until):
        raise StageError(f"start: {start} comes after until: {until}; there is nothing to run")
    for step in steps[:first]:
        if step.artifact is None:
            raise StageError(
                f"the store has no artifact of `{step.stage}` for this configuration ({step.why}). "
                f"Run what comes before `{start}` first: `sft run CONFIG --until {STAGE_NAMES[first - 1]}`."
            )


def _tell_if_sick(result: StageResult, name: str) -> None:
    """Emit an event about a training that was judged sick, with the evidence, once: when it has just ended."""
    sick = sick_rows(result.artifact) if result.status == "ran" else []
    if sick:
        events.tell(events.SICK, name, {"findings": sick, "address": result.artifact.address}, chain=False)
