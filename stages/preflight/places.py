"""Folders, the publish target, disk space and the Hub's token: where results go, and whether they can."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

from configs.schema import RunConfig
from stages.errors import ConfigError
from stages.estimate.shapes import ModelShape
from stages.preflight.finding import Finding
from stages.preflight.scene import Scene, error, refused, warning
from stages.publish.stage import check_target
from stages.publish.target import local_folder

CHECKPOINT_BYTES = 12
"""Of a trained weight in a checkpoint: itself and two moments of the optimizer, in float32."""


def check_places(scene: Scene) -> Iterator[Finding]:
    """Yield what cannot be written, and what there is no room for."""
    if not scene.here:
        return
    yield from _folders(scene.run)
    yield from _target(scene.run)
    yield from _room(scene)


def _folders(run: RunConfig) -> Iterator[Finding]:
    """Folders that cannot be made or written; that of the publication is the check of `publish`, if it is another."""
    wanted = [
        ("artifact_store", run.artifact_store, "fetch", "store"),
        ("output_dir", run.output_dir, "train", "output"),
    ]
    if run.publish is not None:
        wanted.append(("publish.to", run.publish.to, "publish", "publish-target"))
    for key, where, stage, name in wanted:
        folder = local_folder(where)
        reason = _why_not(folder) if folder is not None else None
        if reason is not None:
            remedy = f"Set {key} to a folder that you can write."
            yield error(f"{name}-not-writable", key, where, reason, remedy, stage=stage)


def _why_not(folder: Path) -> str | None:
    """Return why nothing can be written below a folder, which may not exist yet."""
    found = _nearest(folder)
    if not found.is_dir():
        return f"{found} is a file, so nothing can be written below it"
    return None if os.access(found, os.W_OK | os.X_OK) else f"this user cannot write in {found}"


def _target(run: RunConfig) -> Iterator[Finding]:
    try:
        check_target(run)
    except ConfigError as found:
        yield from (refused("publish-target", wrong, stage="publish") for wrong in found.problems)
    if run.publish_to.startswith("hf://") and not huggingface_hub.get_token():
        rule = "writing to the Hub needs a token, and there is none in HF_TOKEN or from `hf auth login`"
        remedy = "Set the environment variable HF_TOKEN, or publish: ./model."
        yield error("hub-token-missing", "publish", run.publish_to, rule, remedy, stage="publish")


def _room(scene: Scene) -> Iterator[Finding]:
    """Too little disk: an error where not even one checkpoint and the models fit, else a warning."""
    run, shape = scene.run, scene.shape
    store = local_folder(run.artifact_store)
    if store is None or shape is None or not shape.sized or "train" in scene.finished:
        return
    places = _bytes_by_place(run, shape, store)
    for key, (folder, least, most) in places.items():
        found = _nearest(folder)
        if not found.is_dir():
            continue
        free = shutil.disk_usage(found).free
        told = f"{_gb(free)} are free on its disk"
        remedy = f"Free space, or set {key} to a folder on a larger disk."
        if free < least:
            rule = f"{told}, and models with one checkpoint take about {_gb(least)}"
            yield error("too-little-disk", key, folder, rule, remedy)
        elif free < most:
            rule = f"{told}, and models with {run.save_total_limit} checkpoints take about {_gb(most)}"
            yield warning("too-little-disk", key, folder, rule, f"{remedy[:-1]}, or set save_total_limit: 1.")


def _bytes_by_place(run: RunConfig, shape: ModelShape, store: Path) -> dict[str, tuple[Path, int, int]]:
    """Return key -> (folder, bytes with one checkpoint, bytes with all of them); one disk is counted once."""
    trained, whole = shape.trained_weights(run), shape.parameters
    per_weight = 4 if run.bf16 is False and not run.fp16 else 2
    checkpoint = CHECKPOINT_BYTES * trained
    final = 4 * trained if run.adapter else per_weight * trained
    models = final + per_weight * whole  # the training's result, and the merged model (a link to it without adapter)
    out = Path(run.output_dir)
    exported = final + (per_weight * whole if run.adapter and run.publish is None else 0)
    if _nearest(out).stat().st_dev == _nearest(store).stat().st_dev:
        models += exported
        return {"artifact_store": (store, models + checkpoint, models + run.save_total_limit * checkpoint)}
    return {
        "artifact_store": (store, models + checkpoint, models + run.save_total_limit * checkpoint),
        "output_dir": (out, exported, exported),
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _nearest(path: Path) -> Path:
    """Return the path itself or its nearest ancestor that exists."""
    path = path.expanduser().absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
