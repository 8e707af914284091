"""The flow: from a YAML file to a published model, every stage a task, nothing done twice."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact

from configs.load import load_run
from stages.artifacts import Artifact
from stages.export import export
from stages.pipeline import StageName, stages_until
from stages.stage import StageResult, open_run
from tasks.progress import unless_away
from tasks.stage_task import run_as_task


@flow(name="sft", persist_result=False, validate_parameters=True)
def sft(
    config: str,
    overrides: list[str] | None = None,
    refresh: list[StageName] | None = None,
    until: StageName = "publish",
    lenient: bool = False,
) -> list[StageResult]:
    """Fetch, tokenize, pack, train, merge and publish, reusing every artifact that is in the store.

    Args:
        config: Path of the YAML file of the run.
        overrides: `key=value` pairs that replace values of the file.
        refresh: Stages that are produced again even if their artifact is there.
        until: The last stage that is wanted.
        lenient: Unknown keys have no effect, and do not stop the run.
    """
    run = load_run(Path(config), overrides or (), lenient=lenient).run
    context, store = open_run(run)
    artifacts: dict[str, Artifact] = {}
    results: list[StageResult] = []
    for stage in stages_until(until):
        result = run_as_task(stage, context, artifacts, store, refresh=stage.name in (refresh or ()))
        artifacts[stage.name] = result.artifact
        results.append(result)
    export(run, artifacts)
    store.note_run(run.output_dir, artifacts.values())
    _show(results)
    return results


def _show(results: list[StageResult]) -> None:
    rows = [
        {
            "stage": result.stage,
            "status": result.status,
            "seconds": round(result.seconds, 1),
            "key": result.artifact.key[:12],
            "address": str(result.artifact.folder),
        }
        for result in results
    ]
    with unless_away():
        create_table_artifact(key="sft-stages", table=rows, description="The stages of this run.")
