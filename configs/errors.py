"""The root of the exception tree, and what is wrong with a configuration.

SftError                    exit code 1: the run failed
 ├── ConfigError            exit code 2: a list of problems in a configuration
 └── (stages.errors)        DataError (exit code 2), StageError, TransientError, ...
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from configs.secrets import redacted


class SftError(Exception):
    """An error whose text is meant for the user: where, what was found, what was expected, what to do.

    The text holds no secrets: URLs in it have lost their user part and query, whoever put them there.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or unusual, in a configuration.

    Attributes:
        place: where it stands, `run.yaml:12:3` or `command line`.
        key: the dotted key, `datasets.0.type`; empty when the file as a whole is meant.
        value: what was found, as text; empty when nothing was.
        rule: what was expected.
        remedy: what to do about it.
    """

    place: str
    key: str
    value: str
    rule: str
    remedy: str

    def __post_init__(self) -> None:
        for name in ("value", "rule", "remedy"):
            object.__setattr__(self, name, redacted(getattr(self, name)))

    def __str__(self) -> str:
        found = f" = {self.value}" if self.value else ""
        subject = f"{self.key}{found}: " if self.key else ""
        return f"{self.place}: {subject}{self.rule}. {self.remedy}".rstrip()


@dataclass(frozen=True)
class KeyUse:
    """A key of a file, and what becomes of it: `acted on`, `without effect`, `replaced by` or `refused`."""

    key: str
    kind: str
    text: str


class ConfigError(SftError):
    """Everything that is wrong with a configuration, all at once; and what becomes of its keys, where that is known."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem], keys: Iterable[KeyUse] = ()) -> None:
        self.problems, self.keys = tuple(problems), tuple(keys)
        super().__init__("\n".join(str(problem) for problem in self.problems))
