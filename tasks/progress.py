"""Progress of a stage as a bar in Prefect's UI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

SECONDS_BETWEEN_UPDATES = 10.0


class ProgressArtifact:
    """A progress bar that appears for a stage that takes longer than a moment, updated at most every ten seconds."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._last = time.monotonic() - SECONDS_BETWEEN_UPDATES + 2.0  # nothing for what is done within two seconds

    def __enter__(self) -> ProgressArtifact:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._artifact is not None and error is None:
            with unless_away():
                update_progress_artifact(artifact_id=self._artifact, progress=100.0, description=f"{self._stage}: done")

    def update(self, done: float, total: float | None, unit: str) -> None:
        """Show `done` of `total`; without a total there is nothing to show."""
        now = time.monotonic()
        if not total or now - self._last < SECONDS_BETWEEN_UPDATES:
            return
        self._last = now
        percent, text = min(100.0, 100.0 * done / total), f"{self._stage}: {done:,.0f} of {total:,.0f} {unit}"
        with unless_away():
            if self._artifact is None:
                created = create_progress_artifact(
                    progress=percent, key=f"sft-{self._stage}-progress", description=text
                )
                self._artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=percent, description=text)


@contextmanager
def unless_away() -> Iterator[None]:
    """Leave out what the UI would show while the server does not answer: work of hours must not fail for a picture."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect's server did not take a report: %s", error)
