"""What the runs of a sweep came to: rows to compare, a page, a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.sweep.running import Outcome, Trial
from stages.report.curves import Chart, Series, draw, number
from stages.report.page import health_of
from stages.report.templating import pages_in
from stages.stage import open_run
from stages.train.health import SEVERITY
from stages.train.metrics import read_metrics

MOST_LINES = 8
"""Lines of a chart that can be told apart: of the best runs."""


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a JSON-ready row for each run, the best first: by evaluation loss, else by the last training loss."""
    rows = [_row(outcome) for outcome in outcomes]
    by = "eval_loss" if any(row["eval_loss"] is not None for row in rows) else "loss"
    return sorted(rows, key=lambda row: math.inf if row[by] is None else row[by])


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"values": outcome.trial.point.values, "output_dir": str(outcome.trial.output_dir)}
    row |= {"status": "failed", "error": outcome.error, "key": None, "steps": None, "loss": None, "eval_loss": None}
    row |= {"tokens_per_second": None, "health": None}
    if outcome.document is None:
        return row
    [train] = [stage for stage in outcome.document["stages"] if stage["stage"] == "train"]
    records = read_metrics(outcome.trial.output_dir / "metrics.jsonl")
    steps, held_out = [r for r in records if "loss" in r], [r for r in records if "eval_loss" in r]
    return row | {
        "status": train["status"],
        "error": "",
        "key": train["key"],
        "steps": steps[-1]["step"] if steps else 0,
        "loss": steps[-1]["loss"] if steps else None,
        "eval_loss": held_out[-1]["eval_loss"] if held_out else None,
        "tokens_per_second": sum(r["tokens_per_second"] for r in steps) / len(steps) if steps else None,
        "health": _health(outcome.trial, train["key"]),
    }


def _health(trial: Trial, key: str) -> str | None:
    _, store = open_run(trial.loaded.run)
    train = store.read("train", key)
    rows = [] if train is None else health_of(train)
    return max((row["status"] for row in rows), key=SEVERITY.index, default=None)


def page(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison as one self-contained page."""
    return (
        pages_in(Path(__file__).parent).get_template("sweep.html").render(title=title, rows=rows, charts=_charts(rows))
    )


def _charts(rows: Sequence[dict[str, Any]]) -> list[Chart]:
    shown = [row for row in rows if row["key"] is not None][:MOST_LINES]
    drawn = []
    for title, name in (("Evaluation loss", "eval_loss"), ("Training loss", "loss")):
        lines = []
        for row in shown:
            records = read_metrics(Path(row["output_dir"]) / "metrics.jsonl")
            points = [(record["step"], record[name]) for record in records if name in record]
            label = ", ".join(f"{key} {value}" for key, value in row["values"].items())
            lines.append(Series(label, points, dots=name == "eval_loss"))
        drawn.append(draw(title, lines))
    return [chart for chart in drawn if chart is not None]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the comparison."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key in rows[0]["values"]:
        table.add_column(key)
    for name in ("eval loss", "loss", "steps", "tokens/s", "health", ""):
        table.add_column(name, justify="right" if name not in ("health", "") else "left")
    for row in rows:
        figures = [row[name] for name in ("eval_loss", "loss", "steps", "tokens_per_second")]
        cells = ["" if value is None else number(value) for value in figures]
        table.add_row(*row["values"].values(), *cells, row["health"] or "", row["error"])
    Console().print(table)
