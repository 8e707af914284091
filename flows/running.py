"""Running the pipeline from the command line: from the store alone where possible, else as a Prefect flow."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.markup import escape

from configs.load import LoadedRun
from flows.command import say
from flows.display import LiveTable, PlainLines
from flows.planning import plan_stages, preflight
from flows.server import prefect_server, server_is_configured
from stages.artifacts import Store
from stages.errors import DamagedArtifactError, TransientError
from stages.export import export
from stages.pipeline import PlannedStage, StageName, stages_until
from stages.stage import StageResult, open_run
from tasks.listener import listening


def run_pipeline(
    loaded: LoadedRun,
    overrides: Sequence[str],
    *,
    until: StageName,
    refresh: Sequence[StageName],
    quiet: bool,
    strict: bool = False,
) -> list[StageResult]:
    """Return what became of each stage, in order.

    Raises:
        ConfigError: something would go wrong in a stage that has to run; with `strict`, something is unusual.
        SftError: a stage failed.
    """
    display = _display([stage.name for stage in stages_until(until)], quiet=quiet)
    started = time.monotonic()
    context, store = open_run(loaded.run)
    steps = plan_stages(loaded, context, store, until=until, refresh=refresh)
    if not server_is_configured():
        results = _from_store(loaded, store, steps, started)
        if results is not None:
            with display:
                for result in results:
                    display.started(result.stage)
                    display.finished(result)
            return results
    outlook = preflight(loaded, steps, until=until)
    if outlook is not None:
        outlook.stop(strict=strict)
        for warning in () if quiet else outlook.at("warning"):
            say(f"[yellow]warning[/yellow] {escape(str(warning))}")
    with display, _terminable(), _quiet_prefect(), prefect_server():
        from flows.sft import sft

        try:
            with listening(display):
                return list(
                    sft(
                        config=str(loaded.path),
                        overrides=list(overrides),
                        refresh=list(refresh),
                        until=until,
                        lenient=loaded.lenient,
                    )
                )
        except httpx.HTTPError as error:
            raise TransientError(
                f"Prefect's server does not answer any more ({error}). What was finished is in the store: start the "
                "run again, and it continues from there."
            ) from error


def _from_store(
    loaded: LoadedRun, store: Store, steps: Sequence[PlannedStage], started: float
) -> list[StageResult] | None:
    """Return the results of a run that has nothing to do, or None if a stage has to run."""
    artifacts = {step.stage: step.artifact for step in steps if step.artifact is not None}
    if len(artifacts) < len(steps):
        return None
    try:
        export(loaded.run, artifacts)
    except DamagedArtifactError:
        return None
    store.note_run(loaded.run.output_dir, artifacts.values())
    share = (time.monotonic() - started) / len(steps)
    return [StageResult(name, "reused", share, artifact) for name, artifact in artifacts.items()]


def _display(stages: Sequence[str], *, quiet: bool) -> LiveTable | PlainLines:
    if quiet or not sys.stderr.isatty():
        return PlainLines(quiet=quiet)
    return LiveTable(stages, Console(stderr=True))


@contextmanager
def _quiet_prefect() -> Iterator[None]:
    """Keep Prefect's own log off the terminal; the server still gets it."""
    name = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
    os.environ.setdefault(name, "CRITICAL")
    yield


@contextmanager
def _terminable() -> Iterator[None]:
    """End as after Ctrl-C on SIGTERM until Prefect, which has its own handler, is in charge."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
