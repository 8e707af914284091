"""How our pages are made: Jinja templates that share the parts in `report_parts.html`."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.report.curves import number

HERE = Path(__file__).parent


def pages_in(folder: Path) -> Environment:
    """Return the environment for the page templates of a folder: escaping, and failing where a value is missing."""
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: "" if value is None else number(value)
    return environment
