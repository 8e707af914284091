"""Looks whether the data of a run has changed since it was last prepared, and tells Prefect's server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.variables import Variable

from configs.load import load_run
from flows import events
from flows.deployments.names import deployment_name
from stages.pipeline import plan
from stages.stage import open_run
from tasks.blocks import with_blocks


@flow(name="sft-watch", persist_result=False)
def watch(config: str, overrides: list[str] | None = None) -> bool:
    """Start the preparation of a run if its data has changed; returns whether it has.

    Args:
        config: Path of the YAML file of the run.
        overrides: `key=value` pairs that replace values of the file.
    """
    changed = tell_if_changed(Path(config), overrides or ())
    get_run_logger().info("the data has changed" if changed else "the data is as it was")
    return changed


def tell_if_changed(config: Path, overrides: Sequence[str]) -> bool:
    """Emit an event if the sources are not those in the store and this content was not told of before."""
    run = with_blocks(load_run(config, overrides).run)
    [step] = plan(*open_run(run), until="fetch")
    if step.artifact is not None:
        return False
    name = deployment_name(run, config)
    told = f"sft_watch_{name.replace('-', '_')}"
    if Variable.get(told) == step.key:
        return False
    payload = {"config": str(config), "overrides": list(overrides), "why": step.why, "changes": list(step.changes)}
    events.tell(events.DATA_CHANGED, name, payload, chain=True)
    Variable.set(told, step.key, overwrite=True)
    return True
