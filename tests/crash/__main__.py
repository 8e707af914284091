"""`python -m tests.crash`: the whole laboratory within a budget of minutes, and its table of results."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.crash.faults import SHARE, Exchange, break_requests, with_server, with_web
from tests.crash.laboratory import Tally, enumerate_kills, kill_again_and_again, kill_at_moments
from tests.crash.remote_scenarios import on_server
from tests.crash.scenarios import LOCAL
from tests.crash.stage_scenarios import TRAINING_PROCESS, WITH_MODEL
from tests.crash.whole import kill_whole_runs
from tests.store_servers import ENVIRONMENT, Server, Where, serving
from tests.web_server import file_server

SAMPLE = 13  # the short form kills at every so many operations


@dataclass(frozen=True)
class Experiment:
    """A part of the laboratory: its name, what it does until a deadline, and its weight in the sharing of time."""

    name: str
    run: Callable[[float], Tally]
    weight: float = 1.0


def main() -> None:
    """Run what the command line asks for; exit code 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="budget of the whole laboratory")
    parser.add_argument("--only", default="", help="experiments whose name has a match of this regular expression")
    parser.add_argument("--seed", type=int, default=1, help="of what is random; of the first round of faults")
    parser.add_argument("--part", default="1/1", help="2/4: every fourth point, from the second on")
    parser.add_argument("--short", action="store_true", help="a sample of each kind, for every day")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    memory = Path("/dev/shm")  # noqa: S108  SIGKILL does not lose what the kernel holds: waiting for a disk adds nothing
    with ExitStack() as stack:
        name = tempfile.TemporaryDirectory(prefix="crash-", dir=memory if memory.is_dir() else None)
        folder = Path(stack.enter_context(name))
        s3 = stack.enter_context(serving("s3", folder / "server"))
        exchanges = [*with_server(s3), with_web(stack.enter_context(file_server(folder)).endpoint, folder)]
        if given.short:
            tallies = run_sample(exchanges, folder)
        else:
            gcs = stack.enter_context(serving("gcs", folder / "gcs"))
            found = experiments(s3, gcs, exchanges, folder, given)
            tallies = run_all([each for each in found if re.search(given.only, each.name)], given.minutes * 60)
    rows = [tally.row() for tally in tallies]
    wrong = [line for tally in tallies for line in tally.wrong]
    print(json.dumps({"rows": rows, "wrong": wrong}) if given.json else table(rows, wrong))
    sys.exit(1 if wrong else 0)


def run_sample(exchanges: list[Exchange], folder: Path) -> list[Tally]:
    """Return the tally of a few kills at this machine's files, and of two rounds of faults."""
    never = time.monotonic() + 3600
    tallies = [enumerate_kills(scenario, folder, never, SAMPLE) for scenario in LOCAL]
    return [*tallies, *(break_requests(each, folder, never, seed=1, most=2) for each in exchanges)]


def experiments(
    s3: Server, gcs: Server, exchanges: list[Exchange], folder: Path, given: argparse.Namespace
) -> Iterator[Experiment]:
    """Yield all of them: each point once, recoveries killed too, kills at random moments, and faults."""
    first, step = map(int, given.part.split("/"))
    for scenario in (*LOCAL, *WITH_MODEL, *on_server(s3), *on_server(gcs)):
        once = partial(enumerate_kills, scenario, folder, step=step, first=first)
        again = partial(kill_again_and_again, scenario, folder, seed=given.seed)
        yield Experiment(f"{scenario.name}: each point once", once, weight=4.0)
        yield Experiment(f"{scenario.name}: recoveries killed too", again)
    moments = partial(kill_at_moments, TRAINING_PROCESS, folder, seed=given.seed)
    yield Experiment(f"{TRAINING_PROCESS.name}: at random moments", moments, weight=4.0)
    for where in (None, Where(s3, "whole")):
        runs = partial(kill_whole_runs, where, folder, seed=given.seed)
        yield Experiment(f"sft run{', store in a bucket' if where else ''}: at random moments", runs, weight=8.0)
    for exchange in (*exchanges, *with_server(gcs)):  # last: threads begin here, and forked was before
        broken = partial(break_requests, exchange, folder, seed=given.seed)
        yield Experiment(f"{exchange.name}: {SHARE:.0%} of requests broken", broken, weight=2.0)


def run_all(chosen: list[Experiment], seconds: float) -> list[Tally]:
    """Return the tally of each experiment; what one does not need of its time, the later ones have."""
    deadline, tallies = time.monotonic() + seconds, []
    for number, each in enumerate(chosen):
        share = each.weight / sum(other.weight for other in chosen[number:])
        tallies.append(each.run(time.monotonic() + (deadline - time.monotonic()) * share))
    return tallies


def table(rows: list[dict[str, object]], wrong: list[str]) -> str:
    """Return the results as a Markdown table, and a line for everything that went wrong."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    main()
