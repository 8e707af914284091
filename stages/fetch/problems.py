"""What is wrong with one entry of `datasets`, told where its position in the list is not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from configs.schema import DatasetConfig
from stages.errors import ConfigError, Problem


class DatasetProblemError(Exception):
    """A rule that a key of the data set breaks, and the remedy."""

    def __init__(self, key: str, rule: str, remedy: str) -> None:
        self.key, self.rule, self.remedy = key, rule, remedy
        super().__init__(f"{key}: {rule}. {remedy}")


@contextmanager
def problems_of(place: str, dataset: DatasetConfig) -> Iterator[None]:
    """Turn a problem of a data set into a ConfigError that names its place (`datasets.0`).

    Raises:
        ConfigError: always instead of a `DatasetProblemError`.
    """
    try:
        yield
    except DatasetProblemError as problem:
        value = getattr(dataset, problem.key) or ""
        text = value if isinstance(value, str) else ", ".join(value)
        found = Problem("configuration", f"{place}.{problem.key}", text, problem.rule, problem.remedy)
        raise ConfigError([found]) from problem
