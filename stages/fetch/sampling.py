"""Which rows of a data set are read: one shard of the shuffled rows, a share of what is left, and no more than is used.

The rows are those that `datasets` gives for `.shuffle(seed).shard(shards, shards_idx)` and
`.shuffle(seed).select(range(int(weight * rows)))`; they keep their order in the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema import RunConfig
from stages.shuffling import Numbers, part, permutation

BYTES_A_TOKEN = 8
MOST_PROCESSES = 8
"""What `streaming` reckons with: see `bytes_wanted`."""


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


def bytes_wanted(run: RunConfig) -> int | None:
    """Return how much is read of each data set (bytes of its rows as JSON), None for all of it.

    Enough to fill every sequence of `max_steps`: a token seldom has more than `BYTES_A_TOKEN`. Where the number of
    processes is left to the machine, `MOST_PROCESSES` are reckoned with, so that it does not change the key.
    """
    if not run.streaming or run.max_steps is None:
        return None
    processes = MOST_PROCESSES if run.launcher.processes == "auto" else run.launcher.processes
    sequences = run.max_steps * run.sequences_per_pass * run.passes_per_step * processes * run.launcher.nodes
    return sequences * run.sequence_len * BYTES_A_TOKEN
