"""One thing that was found about a run before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stages.errors import ConfigError, Problem

Level = Literal["error", "warning", "note"]
"""What it means for the run: it would fail; it is probably not meant so; it is safe, and may surprise."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual.

    Attributes:
        level: an error stops a run, a warning only with `--strict`, a note never does.
        check: name of the check that found it, `missing-chat-template`; stable, for programs.
        key: the dotted key that it is about.
        value: what was found, as text; empty when nothing was.
        rule: what is expected, and what happens otherwise.
        remedy: what to do about it, as a key and its value.
        place: where the key stands, `run.yaml:12:3`.
        stage: the stage that would fail.
        of_machine: whether another machine could be without it.
    """

    level: Level
    check: str
    key: str
    value: str
    rule: str
    remedy: str
    place: str = "configuration"
    stage: str = "train"
    of_machine: bool = False

    def as_problem(self) -> Problem:
        """Return it as a problem of the configuration."""
        return Problem(self.place, self.key, self.value, self.rule, self.remedy)

    def __str__(self) -> str:
        return str(self.as_problem())


def stop_on(findings: Iterable[Finding], *, strict: bool = False) -> None:
    """Refuse a run with errors, and with `strict` one with warnings.

    Raises:
        ConfigError: with all of them.
    """
    levels = ("error", "warning") if strict else ("error",)
    found = [finding.as_problem() for finding in findings if finding.level in levels]
    if found:
        raise ConfigError(found)
