"""`python -m tests.crash`: the whole laboratory within a budget of minutes, and its table of results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.laboratory import Tally, enumerate_kills
from tests.crash.scenarios import LOCAL


def main() -> None:
    """Run what the command line asks for; exit code 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="budget of the whole laboratory")
    parser.add_argument("--short", action="store_true", help="a sample of each kind, within half a minute")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    given = parser.parse_args()
    memory = Path("/dev/shm")  # noqa: S108  SIGKILL does not lose what the kernel holds: waiting for a disk would add nothing
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory if memory.is_dir() else None) as name:
        tallies = run_all(Path(name), given.minutes * 60, short=given.short)
    rows = [tally.row() for tally in tallies]
    wrong = [line for tally in tallies for line in tally.wrong]
    print(json.dumps({"rows": rows, "wrong": wrong}) if given.json else table(rows, wrong))
    sys.exit(1 if wrong else 0)


def run_all(folder: Path, seconds: float, *, short: bool) -> list[Tally]:
    """Return the tally of each scenario."""
    deadline = time.monotonic() + seconds
    tallies = []
    for scenario in LOCAL:
        tallies.append(enumerate_kills(scenario, folder, deadline, step=5 if short else 1))
        if not short:
            tallies.append(enumerate_kills(scenario, folder, deadline, twice=True))
    return tallies


def table(rows: list[dict[str, object]], wrong: list[str]) -> str:
    """Return the results as a Markdown table, and a line for everything that went wrong."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    main()
