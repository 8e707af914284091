"""Which rows of a data set are drawn: one shard of the shuffled rows, and a share of what is left.

The rows are those that `datasets` gives for `.shuffle(seed).shard(shards, shards_idx)` and
`.shuffle(seed).select(range(int(weight * rows)))`; they keep their order in the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import RunConfig
from stages.shuffling import Numbers, part, permutation


@dataclass(frozen=True)
class Sampling:
    """A draw of rows. Attributes as the keys of the configuration; `shards` 1 and `weight` 1.0 leave all rows."""

    seed: int
    shards: int = 1
    shards_idx: int = 0
    weight: float = 1.0

    def inputs(self) -> dict[str, Any]:
        """Return what determines the draw, JSON-ready; numpy does not promise its permutations for ever."""
        return {**vars(self), "numpy": np.__version__}

    def rows(self, total: int) -> Numbers:
        """Return (drawn,) the rows that are drawn of `total`, rising; at least one."""
        rows = np.arange(total, dtype=np.int64)
        if self.shards > 1:
            rows = part(rows[permutation(total, self.seed)], self.shards, self.shards_idx)
        if self.weight < 1:
            rows = rows[permutation(len(rows), self.seed)][: max(1, int(len(rows) * self.weight))]
        return np.sort(rows)


def sampling_of(run: RunConfig, number: int) -> Sampling | None:
    """Return how the rows of data set `number` are drawn, None if all of them are read.

    In a mixture the weights of training data are proportions, which `pack` brings about.
    """
    dataset = run.sources[number]
    mixed = run.mixture is not None and number < len(run.datasets)
    sampling = Sampling(run.seed, dataset.shards or 1, dataset.shards_idx, 1.0 if mixed else dataset.weight)
    return sampling if sampling.shards > 1 or sampling.weight < 1 else None
