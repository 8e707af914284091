"""`python -m tests.crash`: the whole laboratory within a budget of minutes, and its table of results."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.faults import break_network
from tests.crash.laboratory import Tally, enumerate_kills, kill_again_and_again
from tests.crash.remote_scenarios import on_server
from tests.crash.scenarios import LOCAL, Scenario
from tests.crash.whole import kill_whole_runs
from tests.store_servers import ENVIRONMENT, serving

SAMPLE = 13  # the short form kills at every so many operations


def main() -> None:
    """Run what the command line asks for; exit code 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="budget of the whole laboratory")
    parser.add_argument("--only", choices=["kills", "faults", "runs"], help="a part of it")
    parser.add_argument("--seed", type=int, default=1, help="of the first round of faults")
    parser.add_argument("--short", action="store_true", help="a sample of each kind, for every day")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    memory = Path("/dev/shm")  # noqa: S108  SIGKILL does not lose what the kernel holds: waiting for a disk adds nothing
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory if memory.is_dir() else None) as name:
        if given.short:
            tallies = run_sample(Path(name))
        else:
            tallies = run_all(Path(name), given.minutes * 60, given.only, given.seed)
    rows = [tally.row() for tally in tallies]
    wrong = [line for tally in tallies for line in tally.wrong]
    print(json.dumps({"rows": rows, "wrong": wrong}) if given.json else table(rows, wrong))
    sys.exit(1 if wrong else 0)


def run_sample(folder: Path) -> list[Tally]:
    """Return the tally of a few kills at this machine's files, and of one round of faults."""
    never = time.monotonic() + 3600
    tallies = [enumerate_kills(scenario, folder, never, SAMPLE) for scenario in LOCAL]
    with serving("s3", folder / "server") as server:
        return [*tallies, *break_network(server, folder, never, range(1, 3))]


def run_all(folder: Path, seconds: float, only: str | None, seed: int) -> list[Tally]:
    """Return the tally of each scenario: every point once, then recoveries killed too, then faults, then whole runs."""
    began, tallies = time.monotonic(), []

    def until(share: float) -> float:
        return began + seconds * share

    with serving("s3", folder / "server") as server:
        if only in (None, "kills"):
            end = 1.0 if only else 0.6
            tallies += _kill((*LOCAL, *on_server(server)), folder, until(0.4 * end), until(end))
        if only in (None, "faults"):
            tallies += break_network(server, folder, until(1.0 if only else 0.8), range(seed, seed + 100_000))
    if only in (None, "runs"):
        tallies.append(kill_whole_runs(folder, until(1.0), most=1000))
    return tallies


def _kill(scenarios: tuple[Scenario, ...], folder: Path, half: float, deadline: float) -> list[Tally]:
    """Kill at every point once, as far as the first part of the time goes, then recoveries too."""
    tallies = [enumerate_kills(scenario, folder, half) for scenario in scenarios]
    for number, scenario in enumerate(scenarios):
        left = deadline - time.monotonic()
        tallies.append(kill_again_and_again(scenario, folder, deadline - left * (1 - 1 / (len(scenarios) - number))))
    return tallies


def table(rows: list[dict[str, object]], wrong: list[str]) -> str:
    """Return the results as a Markdown table, and a line for everything that went wrong."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    main()
