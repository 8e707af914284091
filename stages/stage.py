"""What a stage is: a name, a format version, what its key is made of, and how its artifact is produced."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from configs.schema import RunConfig
from stages.artifacts import Artifact, ArtifactWriter, FileDigests, Store, digest_of
from stages.artifacts.opening import open_store
from stages.errors import DamagedArtifactError, StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

Upstream = Mapping[str, Artifact]
"""Stage name -> the artifact of that stage in this run."""


class Progress(Protocol):
    """Is told how far a stage is; must be cheap to call."""

    def __call__(self, done: float, total: float | None, unit: str, **detail: Any) -> None:
        """Report `done` of `total` (None if not known) in `unit` ("rows", "steps", "bytes"), with more figures."""


def no_progress(done: float, total: float | None, unit: str, **detail: Any) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Context:
    """What a stage works with besides its upstream artifacts: the configuration and this machine's services."""

    run: RunConfig
    digests: FileDigests
    progress: Progress = no_progress
    log: Callable[[str], None] = lambda line: None
    today: date = field(default_factory=date.today)


def open_run(run: RunConfig) -> tuple[Context, Store]:
    """Return what the stages of a run work with, and the store that they share."""
    digests = FileDigests.of_this_user()
    store = open_store(
        run.artifact_store,
        digests,
        options=run.artifact_store_options,
        cache=Path(run.artifact_cache) if run.artifact_cache else None,
        cache_bytes=run.artifact_cache_size,
    )
    return Context(run, digests), store


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: as in the store, the command line and the UI.
        version: raised when the same inputs would give other bytes.
        needs: the stages whose artifacts it reads.
        inputs: returns what determines the result, JSON-ready; reads configuration values and upstream digests.
        produce: writes the data files and returns the facts of the manifest.
        stale: returns why a present artifact does not hold any more (a published folder that is gone), else None.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    inputs: Callable[[Context, Upstream], dict[str, Any]]
    produce: Callable[[Context, Upstream, ArtifactWriter], dict[str, Any]]
    stale: Callable[[Context, Artifact], str | None] = lambda context, artifact: None

    def key_inputs(self, context: Context, upstream: Upstream) -> dict[str, Any]:
        """Return everything that determines this stage's result, in clear."""
        return self.key_of(self.inputs(context, upstream), upstream)

    def key_of(self, inputs: dict[str, Any], upstream: Upstream) -> dict[str, Any]:
        """Return `inputs` with what every stage adds to them."""
        parents = {name: upstream[name].digest for name in self.needs}
        return {"stage": self.name, "version": self.version, "upstream": parents, **inputs}


@dataclass(frozen=True)
class StageResult:
    """What became of a stage in a run: `status` is "ran" or "reused", `seconds` its wall time."""

    stage: str
    status: str
    seconds: float
    artifact: Artifact


def run_stage(
    stage: Stage, context: Context, upstream: Upstream, store: Store, *, refresh: bool = False
) -> StageResult:
    """Return the artifact of a stage: from the store if it is there, else by producing it once."""
    started = time.monotonic()
    inputs = stage.key_inputs(context, upstream)
    key = digest_of(inputs)
    present = None if refresh else usable(stage, context, store, key)
    if present is None:
        with store.lock(stage.name, key):
            present = None if refresh else usable(stage, context, store, key)  # another process may have made it
            if present is None:
                parents = {name: upstream[name].key for name in stage.needs}
                with _disk_errors(store), store.writer(stage.name, inputs, parents, anew=refresh) as writer:
                    facts = stage.produce(context, upstream, writer)
                    made = writer.commit(facts=facts)
                return StageResult(stage.name, "ran", time.monotonic() - started, made)
    store.note_use(present)
    return StageResult(stage.name, "reused", time.monotonic() - started, present)


@contextmanager
def _disk_errors(store: Store) -> Iterator[None]:
    """Say what to do about a full disk, or one that may not be written to.

    Raises:
        StoreError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        remedy = (
            "Free space (`sft artifacts gc` removes what no run needs), or move the store to another disk."
            if error.errno in FULL
            else "Give this user the rights that it needs there."
        )
        raise StoreError(
            f"{error.filename or store.root}: {error.strerror}. {remedy} What was finished is kept; run again."
        ) from error


def usable(stage: Stage, context: Context, store: Store, key: str) -> Artifact | None:
    """Return the artifact of a key if it is there, whole, and still holds; else None."""
    artifact = store.find(stage.name, key)
    return artifact if artifact is not None and why_stale(stage, context, artifact) is None else None


def why_stale(stage: Stage, context: Context, artifact: Artifact) -> str | None:
    """Return why a present artifact does not hold any more, None if it does."""
    try:
        return stage.stale(context, artifact)
    except DamagedArtifactError as error:
        return str(error)
