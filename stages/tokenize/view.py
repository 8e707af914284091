"""The checks before training as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIGNS = {"pass": "✓", "note": "·", "warning": "!"}


def check_lines(checks: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a line with all checks of each data set (by its key), and one for each check that has something to say."""
    lines = []
    for key, found in checks.items():
        lines.append(f"{key}: {'  '.join(_short(check) for check in found)}")
        lines += [_line(check) for check in found if check["verdict"] != "pass"]
    return lines


def _line(check: Mapping[str, Any]) -> str:
    return f"  {SIGNS[check['verdict']]} {check['check']}: {check['detail']}"


def _short(check: Mapping[str, Any]) -> str:
    return f"{SIGNS[check['verdict']]} {check['check']}"
