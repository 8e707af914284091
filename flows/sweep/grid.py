"""The runs of a sweep: every combination of the values that were given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stages.errors import ConfigError, Problem

_OUTSIDE_BRACKETS = re.compile(r",(?![^\[{]*[\]}])")
MOST_RUNS = 256


@dataclass(frozen=True)
class Point:
    """One run of a sweep: `name` is that of its folder, `values` are what differs, `overrides` what it is given."""

    name: str
    values: dict[str, str]
    overrides: tuple[str, ...]


def grid(overrides: Sequence[str]) -> list[Point]:
    """Return the runs that `key=a,b,c` ask for, the last key changing fastest; other overrides hold for all.

    >>> [point.name for point in grid(["lora_r=8,16", "learning_rate=1e-4,2e-4", "seed=1"])][:2]
    ['lora_r=8,learning_rate=1e-4', 'lora_r=8,learning_rate=2e-4']

    A comma inside brackets does not separate: `lora_target_modules=[q_proj,v_proj]` is one value.

    Raises:
        ConfigError: nothing varies, a value is given twice, or there are more than MOST_RUNS combinations.
    """
    split = [(key, _OUTSIDE_BRACKETS.split(value)) for key, _, value in (text.partition("=") for text in overrides)]
    varied = {key: values for key, values in split if len(values) > 1}
    fixed = tuple(text for text, (_, values) in zip(overrides, split, strict=True) if len(values) == 1)
    count = 1
    for values in varied.values():
        count *= len(values)
    problems = [
        Problem("command line", key, ",".join(values), "a value is there twice, and so its run", "Remove one of them.")
        for key, values in varied.items()
        if len({*values}) < len(values)
    ]
    if not varied:
        rule = "a sweep varies at least one key"
        problems.append(Problem("command line", "sweep", "absent", rule, "Give values: learning_rate=1e-4,2e-4."))
    if count > MOST_RUNS:
        rule = f"a sweep has at most {MOST_RUNS} runs"
        problems.append(Problem("command line", "sweep", f"{count} runs", rule, "Vary fewer keys or values."))
    if problems:
        raise ConfigError(problems)
    points = []
    for combination in itertools.product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        texts = tuple(f"{key}={value}" for key, value in chosen.items())
        points.append(Point(_folder_name(",".join(texts)), chosen, (*fixed, *texts)))
    return points


def _folder_name(text: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", text)[:200]
