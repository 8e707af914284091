"""The stages in their order, and what a run of them would do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from stages.artifacts import Artifact, Store, digest_of
from stages.errors import TransientError
from stages.fetch import STAGE as FETCH
from stages.merge import STAGE as MERGE
from stages.pack import STAGE as PACK
from stages.publish import STAGE as PUBLISH
from stages.stage import Context, Stage, Upstream, why_stale
from stages.tokenize import STAGE as TOKENIZE
from stages.train.stage import STAGE as TRAIN

StageName = Literal["fetch", "tokenize", "pack", "train", "merge", "publish"]
STAGES: tuple[Stage, ...] = (FETCH, TOKENIZE, PACK, TRAIN, MERGE, PUBLISH)
STAGE_NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)


def stages_until(name: str) -> tuple[Stage, ...]:
    """Return the stages up to and with the one of that name."""
    return STAGES[: STAGE_NAMES.index(name) + 1]


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with one stage.

    Attributes:
        stage: its name.
        status: "reused", or "run".
        key: the content key; None while an upstream stage has to run first, because its result decides.
        why: the reason in words.
        changes: what differs from the inputs of the last artifact of this stage, one sentence each.
        artifact: the artifact that would be reused.
    """

    stage: str
    status: str
    key: str | None
    why: str
    changes: tuple[str, ...] = ()
    artifact: Artifact | None = None


def plan(
    context: Context, store: Store, *, until: str = "publish", refresh: Collection[str] = ()
) -> list[PlannedStage]:
    """Return what a run would do, stage by stage; reads the store and the sources, produces nothing."""
    planned: list[PlannedStage] = []
    upstream: dict[str, Artifact] = {}
    for stage in stages_until(until):
        step = _plan_stage(stage, context, upstream, store, refresh=stage.name in refresh)
        planned.append(step)
        if step.artifact is not None:
            upstream[stage.name] = step.artifact
    return planned


def _plan_stage(stage: Stage, context: Context, upstream: Upstream, store: Store, *, refresh: bool) -> PlannedStage:
    unknown = [name for name in stage.needs if name not in upstream]
    if unknown:
        return PlannedStage(stage.name, "run", None, f"{unknown[0]} runs first; its result decides")
    try:
        inputs = stage.key_inputs(context, upstream)
    except TransientError as error:
        return PlannedStage(stage.name, "run", None, f"what it reads cannot be looked up now: {error}")
    key = digest_of(inputs)
    if refresh:
        return PlannedStage(stage.name, "run", key, "asked for by --refresh")
    present = store.read(stage.name, key)
    damage = store.damage(present) if present is not None else []
    artifact = present if not damage else None
    if artifact is not None:
        stale = why_stale(stage, context, artifact)
        if stale is None:
            return PlannedStage(stage.name, "reused", key, "the artifact is there", artifact=artifact)
        return PlannedStage(stage.name, "run", key, stale)
    if damage:
        return PlannedStage(stage.name, "run", key, damage[0])
    last = store.newest(stage.name)
    if last is None:
        return PlannedStage(stage.name, "run", key, "there is no artifact of this stage yet")
    changes = tuple(differences(last.manifest.inputs, inputs))
    return PlannedStage(stage.name, "run", key, f"{len(changes)} of its inputs changed", changes)


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Return a sentence for each place where two JSON values differ.

    >>> differences({"seed": 1, "r": [1, 2]}, {"seed": 2, "r": [1, 2]})
    ['seed: 1 -> 2']
    """
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted(before.keys() | after.keys()):
            inner = f"{place}.{key}" if place else key
            found += differences(before.get(key), after.get(key), inner)
        return found
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for position, (old, new) in pairs for line in differences(old, new, f"{place}.{position}")]
    return [] if before == after else [f"{place}: {_short(before)} -> {_short(after)}"]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    if len(text) == 64 and all(character in "0123456789abcdef" for character in text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."
