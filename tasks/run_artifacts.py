"""What Prefect's UI shows of a finished run: its stages, the verdict, and where things are."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from configs.schema import RunConfig
from configs.secrets import redacted
from stages.report.page import REPORT, health_of
from stages.stage import StageResult
from tasks.progress import unless_away


def show_run(run: RunConfig, results: Sequence[StageResult]) -> None:
    """Put the stages, and after a training its health and addresses, into the UI."""
    rows = [
        {
            "stage": result.stage,
            "status": result.status,
            "seconds": round(result.seconds, 1),
            "key": result.artifact.key[:12],
            "address": result.artifact.address,
        }
        for result in results
    ]
    with unless_away():
        create_table_artifact(key="sft-stages", table=rows, description="The stages of this run.")
        page = _page(run, {result.stage: result for result in results})
        if page:
            create_markdown_artifact(key="sft-run", markdown=page, description="What this run made.")


def _page(run: RunConfig, results: dict[str, StageResult]) -> str:
    if "train" not in results:
        return ""
    lines = [f"# {redacted(run.base_model)}", ""]
    if "publish" in results:
        lines.append(f"- model: `{redacted(run.publish_to)}`")
    lines += [f"- report: `{run.output_dir}/{REPORT}`", f"- output: `{run.output_dir}`", ""]
    rows = health_of(results["train"].artifact)
    if rows:
        lines += ["| health | status | what was seen | what to do |", "|---|---|---|---|"]
        lines += [f"| {row['row']} | {row['status']} | {row['text']} | {row['remedy']} |" for row in rows]
    return "\n".join(lines)
