"""The shuffles and shards of `datasets`, as numbers of rows: what the keys of a run mean by them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def permutation(total: int, seed: int) -> Numbers:
    """Return (total,) the order of `Dataset.shuffle(seed)`. numpy does not promise it for ever: keys name its version.

    >>> permutation(5, seed=42)
    array([4, 2, 3, 1, 0])
    """
    return np.random.default_rng(seed).permutation(total).astype(np.int64)


def part(rows: Numbers, parts: int, index: int) -> Numbers:
    """Return `Dataset.shard(parts, index)`: neighbouring rows, the first parts longer by one where it is uneven.

    >>> part(np.arange(7), 3, 0), part(np.arange(7), 3, 2)
    (array([0, 1, 2]), array([5, 6]))
    """
    return np.array_split(rows, parts)[index]
