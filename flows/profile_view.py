"""`sft profile`: a recorded profile for people, or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.command import write_json
from stages.profile.summary import SNAPSHOT, summarise


def show_profile(folder: Path, *, as_json: bool) -> None:
    """Print the summary of the profile in an output folder."""
    summary = summarise(folder)
    if as_json:
        write_json(summary)
        return
    console = Console()
    first, last = summary["steps"]
    where = "GPU" if summary["device"] == "gpu" else "CPU"
    console.print(
        f"Steps {first} to {last} on a {where}: {summary['seconds_per_step']:.3f} s a step under the profiler, "
        f"{100 * summary['busy_share']:.0f} % of it at work.\n"
    )
    for finding in summary["findings"]:
        console.print(f"- {finding['text']} [dim]{finding['suggestion']}[/dim]")
    console.print(_table("Where the time goes", ["name"], summary["classes"]))
    console.print(_table("Most time", ["name", "shapes"], summary["top"]))
    if (folder / SNAPSHOT).exists():
        console.print(f"{folder / SNAPSHOT}: memory by allocation; drop it on https://pytorch.org/memory_viz")


def _table(title: str, names: list[str], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for name in ("seconds", "share", "calls"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row[name] for name in names]
        table.add_row(*cells, f"{row['seconds']:.3f}", f"{100 * row['share']:.1f} %", f"{row['calls']:,}")
    return table
