"""One Prefect task per stage: looks into the store, retries what can pass, reports to the UI.

The store decides what is reused, not Prefect: a hit is a `Completed` state with the name "Cached" and the artifact's
address. A task is called in the main thread of its flow, so that a cancelled flow can end torchrun (see `run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import opaque

from stages.artifacts import Artifact, Store
from stages.errors import TransientError
from stages.stage import Context, Stage, StageResult, run_stage
from tasks.listener import listener
from tasks.progress import ProgressArtifact, unless_away

RETRIES = 3
FIRST_DELAY_SECONDS = 2
JITTER = 0.5


def run_as_task(
    stage: Stage, context: Context, upstream: Mapping[str, Artifact], store: Store, *, refresh: bool = False
) -> StageResult:
    """Return what became of a stage, run as a Prefect task of the current flow.

    Raises:
        SftError: what the stage raised, after the last retry if it can pass.
    """
    state: State[StageResult] = _task_of(stage)(
        opaque(stage), opaque(context), opaque(dict(upstream)), opaque(store), refresh=refresh, return_state=True
    )
    result: StageResult = state.result()
    return result


def _task_of(stage: Stage) -> Callable[..., Any]:
    return _produce.with_options(name=stage.name, task_run_name=stage.name)


def _can_pass(task_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    if not isinstance(error, TransientError | ConnectionError | TimeoutError):
        return False
    if run.run_count <= RETRIES:
        listener().retrying(task_.name, str(error))
    return True


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(backoff_factor=FIRST_DELAY_SECONDS),
    retry_jitter_factor=JITTER,
    retry_condition_fn=_can_pass,
)
def _produce(
    stage: Stage, context: Context, upstream: Mapping[str, Artifact], store: Store, refresh: bool
) -> StageResult | State[StageResult]:
    heard, logger = listener(), get_run_logger()
    heard.started(stage.name)

    def log(line: str) -> None:
        heard.log(stage.name, line)
        logger.info(line)

    with ProgressArtifact(stage.name) as shown:

        def progress(done: float, total: float | None, unit: str, **detail: Any) -> None:
            heard.progress(stage.name, done, total, unit, **detail)
            shown.update(done, total, unit)

        result = run_stage(stage, replace(context, progress=progress, log=log), upstream, store, refresh=refresh)
    heard.finished(result)
    _show_facts(result)
    if result.status == "reused":
        return Completed(name="Cached", message=f"reused {result.artifact.address}", data=result)
    return result


def _show_facts(result: StageResult) -> None:
    """Put what is known about the artifact into the UI as a table."""
    rows = [
        {"what": "status", "value": result.status},
        {"what": "address", "value": result.artifact.address},
        {"what": "key", "value": result.artifact.key},
        *({"what": name, "value": _cell(value)} for name, value in _told(result.artifact.facts)),
    ]
    with unless_away():
        create_table_artifact(key=f"sft-{result.stage}", table=rows, description=f"What `{result.stage}` made.")
    if result.stage == "tokenize":
        _show_checks(result)


def _told(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the facts, those that count by reason one by one."""
    for name, value in facts.items():
        if name in ("rejected", "left_out"):
            yield from ((f"{name}: {reason}", count) for reason, count in value.items() if count)
        else:
            yield name, value


def _show_checks(result: StageResult) -> None:
    """Put the checks before training into the UI as a table of their own."""
    rows = [
        {"data set": number, **check}
        for number, dataset in enumerate(result.artifact.facts["datasets"])
        for check in dataset["checks"]
    ]
    with unless_away():
        create_table_artifact(key="sft-checks", table=rows, description="The checks before training.")


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    return text if len(text) <= 300 else f"{text[:297]}..."
