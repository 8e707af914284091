"""Runs a sweep: prepares the data once, then trains as many runs at a time as there are GPUs for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from configs.errors import ConfigError, Problem
from configs.load import LoadedRun
from flows.command import GivenConfig
from flows.running import run_pipeline
from flows.server import prefect_server
from flows.sweep.grid import Point
from stages.lifeline import bound
from stages.pipeline import StageName
from stages.train.machine import Machine, this_machine, world_size

LOG = "sweep.log"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Trial:
    """A run of a sweep that is to be started: its point and its folder."""

    point: Point
    output_dir: Path
    loaded: LoadedRun

    @property
    def overrides(self) -> list[str]:
        """Return what the run is given on its command line."""
        return [*self.point.overrides, f"output_dir={self.output_dir}"]


@dataclass(frozen=True)
class Outcome:
    """What became of a run: `document` is what it ended with; None if it failed, which `error` tells."""

    trial: Trial
    document: dict[str, Any] | None
    error: str = ""


def read_trials(given: GivenConfig, points: Sequence[Point]) -> list[Trial]:
    """Return the runs of a sweep.

    Raises:
        ConfigError: with the problems of every combination that is not valid.
    """
    trials: list[Trial] = []
    problems: list[Problem] = []
    for point in points:
        try:
            base = replace(given, overrides=point.overrides).read()
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        trials.append(Trial(point, Path(base.run.output_dir) / point.name, base))
    if problems:
        raise ConfigError(problems)
    return trials


def run_trials(
    trials: Sequence[Trial],
    *,
    parallel: int | None,
    until: StageName,
    strict: bool,
    tell: Callable[[str], None],
) -> list[Outcome]:
    """Return what became of each run, in their order; a run that fails does not stop the others."""
    for trial in trials:
        run_pipeline(trial.loaded, trial.overrides, until="pack", refresh=(), quiet=True, strict=strict)
    slots = _slots(trials, parallel, this_machine())
    waiting, ended = list(trials), dict[str, Outcome]()
    running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
    with prefect_server():
        try:
            while waiting or running:
                while waiting and len(running) < len(slots):
                    slot = next(slot for slot in range(len(slots)) if slot not in running)
                    trial = waiting.pop(0)
                    tell(f"{trial.point.name}: started")
                    running[slot] = (trial, _start(trial, until, slots[slot], strict=strict))
                for slot, (trial, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        ended[trial.point.name] = outcome = _outcome(trial, process)
                        tell(f"{trial.point.name}: {'done' if outcome.document else outcome.error}")
                time.sleep(POLL_SECONDS)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    return [ended[trial.point.name] for trial in trials]


def _slots(trials: Sequence[Trial], parallel: int | None, machine: Machine) -> list[str | None]:
    """Return for each run at a time the GPUs that it sees (CUDA_VISIBLE_DEVICES); None: all there are."""
    if not machine.gpus or all(trial.loaded.run.launcher.is_elsewhere for trial in trials):
        return [None] * (parallel or 1)
    wanted = max(world_size(trial.loaded.run, machine) for trial in trials)
    automatic = any(trial.loaded.run.launcher.processes == "auto" for trial in trials)
    each = max(1, len(machine.gpus) // parallel) if automatic and parallel else wanted
    names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(len(machine.gpus))))).split(",")
    shares = [names[at : at + each] for at in range(0, len(names) - each + 1, each)]
    return [",".join(share) for share in shares[: parallel or len(shares)]]


def _start(trial: Trial, until: StageName, gpus: str | None, *, strict: bool) -> subprocess.Popen[bytes]:
    trial.output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flows.cli", "run", str(trial.loaded.path), *trial.overrides]
    command += ["--until", until, "--json", *["--lenient"] * trial.loaded.lenient, *["--strict"] * strict]
    environment = dict(os.environ) if gpus is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpus}
    with (trial.output_dir / LOG).open("wb") as log, (trial.output_dir / f".{LOG}.json").open("wb") as out:
        return subprocess.Popen(bound(command), stdout=out, stderr=log, env=environment)


def _outcome(trial: Trial, process: subprocess.Popen[bytes]) -> Outcome:
    written = trial.output_dir / f".{LOG}.json"
    try:
        document = orjson.loads(written.read_bytes())
    except orjson.JSONDecodeError:
        document = {"error": f"it ended with exit code {process.returncode}; see {trial.output_dir / LOG}"}
    written.unlink()
    if process.returncode:
        return Outcome(trial, None, document.get("error", f"exit code {process.returncode}"))
    return Outcome(trial, document)
