"""`sft sweep` as a person or a script sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from flows.command import GivenConfig, say, write_json
from flows.sweep.comparison import page, rows_of, show
from flows.sweep.grid import grid
from flows.sweep.running import read_trials, run_trials
from stages.pipeline import StageName

PAGE, DOCUMENT = "sweep.html", "sweep.json"


def sweep(given: GivenConfig, *, parallel: int | None, until: StageName, as_json: bool) -> None:
    """Run every combination, and leave a comparison in the output folder; exit code 1 if a run failed."""
    trials = read_trials(given, grid(given.overrides))
    say(f"{len(trials)} runs; the data is prepared once")
    rows = rows_of(run_trials(trials, parallel=parallel, until=until, strict=given.strict, tell=say))
    folder = Path(trials[0].loaded.run.output_dir)
    (folder / DOCUMENT).write_bytes(orjson.dumps({"runs": rows}, option=orjson.OPT_INDENT_2))
    (folder / PAGE).write_text(page(f"Sweep of {given.path.name}", rows), encoding="utf-8")
    failed = sum(row["status"] == "failed" for row in rows)
    if as_json:
        write_json({"runs": rows, "failed": failed, "page": str(folder / PAGE)})
    else:
        show(rows)
        say(f"\ncomparison  {folder / PAGE}")
    if failed:
        say(f"[red]error[/red] {failed} of {len(rows)} runs failed; sweep.log in the folder of each tells why")
        sys.exit(1)
