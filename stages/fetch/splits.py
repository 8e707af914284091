"""`split:` of a data set: names of splits with slices, as `train[:20%]`, `train[10:50]`, `train+test[-1%:]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.fetch.problems import DatasetProblemError

DEFAULT_SPLIT = "train"
EXAMPLES = "Examples: train, test, train[:20%], train[10:50], train[-100:], train+validation."
PART = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class SplitPart:
    """A slice of one split. `start` and `stop` as written: "10", "-10", "20%" or None for the end of the split."""

    name: str
    start: str | None = None
    stop: str | None = None

    def __str__(self) -> str:
        return f"{self.name}[{self.start or ''}:{self.stop or ''}]" if self.sliced else self.name

    @property
    def sliced(self) -> bool:
        """Return whether it may be less than the whole split."""
        return self.start is not None or self.stop is not None

    def rows(self, total: int) -> range:
        """Return the rows that are meant, of a split of `total` rows; percentages are rounded to the nearest row.

        >>> SplitPart("train", "50%", "-1").rows(11)
        range(6, 10)

        Raises:
            DatasetProblemError: a bound is beyond the split, or the slice is empty.
        """
        start = 0 if self.start is None else _bound(self.start, total)
        stop = total if self.stop is None else _bound(self.stop, total)
        if not 0 <= start < stop <= total:
            rule = f"{self} is empty or reaches beyond the split, which has {total} rows"
            raise DatasetProblemError("split", rule, "Change the slice.")
        return range(start, stop)


def parse_split(text: str) -> tuple[SplitPart, ...]:
    """Return the parts of a split expression.

    Raises:
        DatasetProblemError: the text is not a split expression.
    """
    parts = []
    for written in text.split("+"):
        match = PART.fullmatch(re.sub(r"\s", "", written))
        if match is None:
            raise DatasetProblemError("split", "expected the name of a split, with a slice or without", EXAMPLES)
        parts.append(SplitPart(match["name"], match["start"], match["stop"]))
    return tuple(parts)


def _bound(text: str, total: int) -> int:
    number = round(int(text[:-1]) * total / 100) if text.endswith("%") else int(text)
    return total + number if text.startswith("-") else number
