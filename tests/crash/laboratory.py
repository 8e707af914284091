"""Kills the work of a scenario at every operation in turn, starts it again, and keeps the tally."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stages.errors import TransientError
from tasks.stage_task import RETRIES
from tests.crash.killing import Ended, run_forked
from tests.crash.scenarios import Scenario, nothing

ROOT = "work"
"""The folder of every try: what is published tells where it is."""


@dataclass
class Tally:
    """What happened in one scenario.

    Attributes:
        name: of the scenario.
        points: operations that can be told apart.
        kills: of processes.
        faults: that a proxy injected.
        tries_again: of whole works, after an error that says that trying again can help.
        wrong: a sentence for everything that must not be.
        recovery: seconds from the start of a fresh process to the finished work, each time.
    """

    name: str
    points: int = 0
    kills: int = 0
    faults: int = 0
    tries_again: int = 0
    wrong: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        ordered = sorted(self.recovery) or [0.0]
        return {
            "scenario": self.name,
            "points": self.points,
            "kills": self.kills,
            "faults": self.faults,
            "tries_again": self.tries_again,
            "lost_or_wrong": len(self.wrong),
            "recovery_median": round(ordered[len(ordered) // 2], 3),
            "recovery_longest": round(ordered[-1], 3),
        }


def enumerate_kills(scenario: Scenario, folder: Path, deadline: float, step: int = 1, first: int = 1) -> Tally:
    """Kill at operation `first`, `first + step`, ... of a scenario, until its work ends before that operation.

    Args:
        scenario: what is killed.
        folder: to work in.
        deadline: of `time.monotonic()`; no kill begins after it.
        step: 1 kills at every operation.
        first: where to begin.
    """
    tally, root = Tally(f"{scenario.name}: each point once"), folder / ROOT
    expected, _ = _undisturbed(scenario, root)
    tally.points = expected.operations
    for point in range(first, 100_000, step):
        _begin_anew(scenario, root)
        if time.monotonic() > deadline or not run_forked(scenario.work, root, point).killed:
            break
        tally.kills += 1
        judge(scenario, root, expected.result, tally, f"killed at operation {point}")
    return tally


def kill_again_and_again(scenario: Scenario, folder: Path, deadline: float, seed: int = 0) -> Tally:
    """Kill at random operations, and each recovery too, up to four times, until the deadline."""
    rng, tally, root = random.Random(seed), Tally(f"{scenario.name}: recoveries killed too"), folder / ROOT
    expected, _ = _undisturbed(scenario, root)
    tally.points = expected.operations
    while time.monotonic() < deadline:
        _begin_anew(scenario, root)
        points = [rng.randint(1, max(1, expected.operations)) for _ in range(rng.randint(2, 4))]
        tally.kills += sum(run_forked(scenario.work, root, point).killed for point in points)
        judge(scenario, root, expected.result, tally, f"killed at operations {points}")
    return tally


def kill_at_moments(scenario: Scenario, folder: Path, deadline: float, seed: int = 0) -> Tally:
    """Kill at random moments, one to three times before the work may end, until the deadline."""
    rng, tally, root = random.Random(seed), Tally(f"{scenario.name}: at random moments"), folder / ROOT
    expected, seconds = _undisturbed(scenario, root)
    while time.monotonic() < deadline:
        _begin_anew(scenario, root)
        moments = [rng.uniform(0, seconds) for _ in range(rng.randint(1, 3))]
        tally.kills += sum(run_forked(scenario.work, root, seconds=moment).killed for moment in moments)
        judge(scenario, root, expected.result, tally, f"killed after {moments} seconds")
    return tally


def _undisturbed(scenario: Scenario, root: Path) -> tuple[Ended, float]:
    """Return how the work ends when nothing happens, and the seconds that it takes."""
    scenario.warm_up()
    _begin_anew(scenario, root)
    began = time.monotonic()
    return run_forked(scenario.work, root), time.monotonic() - began


def judge(scenario: Scenario, root: Path, expected: Any, tally: Tally, what: str) -> None:
    """Let a fresh process see what a reader sees, finish the work, and compare with what an undisturbed one made."""
    found = run_forked(partial(_recover, scenario), root).result
    tally.recovery.append(found["seconds"])
    tally.tries_again += found["tries_again"]
    if found["result"] != expected:
        tally.wrong.append(f"{scenario.name}, {what}: the result is {found['result']} instead of {expected}")
    tally.wrong += [f"{scenario.name}, {what}: {line}" for line in found["wrong"]]


def _recover(scenario: Scenario, root: Path) -> dict[str, Any]:
    wrong = [f"a reader sees: {line}" for line in scenario.look(root)]
    began, tries_again = time.monotonic(), 0
    while True:
        try:
            result = scenario.work(root)
            break
        except TransientError:  # as its Prefect task would
            tries_again += 1
            if tries_again > RETRIES:
                raise
    seconds = time.monotonic() - began
    wrong += [f"afterwards a reader sees: {line}" for line in scenario.look(root)]
    wrong += [f"left over: {line}" for line in scenario.leftovers(root)]
    return {"result": result, "seconds": seconds, "tries_again": tries_again, "wrong": wrong}


def _begin_anew(scenario: Scenario, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    if scenario.prepare is not nothing:
        run_forked(scenario.prepare, root)
