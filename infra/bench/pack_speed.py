"""Packing a million sequences: CPU seconds, and how full the packs are against the bound that no packing can beat.

python infra/bench/pack_speed.py [--rows 1000000] [--capacity 2048]

The distributions: lengths as of real chats (log-normal), and some that are hard for a packer. The bound is the larger
of all tokens over the capacity, and the rows of more than half of it, of which no two share a pack. Median of three.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt

from stages.pack import pack_best_fit

ROUNDS = 3
Lengths = npt.NDArray[np.int32]


def main() -> None:
    """Print the figures as JSON, and a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--capacity", type=int, default=2048)
    options = parser.parse_args()
    made = distributions(options.rows, options.capacity)
    found = {name: _measure(lengths, options.capacity) for name, lengths in made.items()}
    print(json.dumps({"rows": options.rows, "capacity": options.capacity, **found}))
    slowest = max(found.values(), key=lambda figures: figures["cpu_seconds"])["cpu_seconds"]
    fullest = min(figures["share_of_bound"] for figures in found.values())
    print(
        f"{options.rows:,} rows take at most {slowest:.2f} CPU seconds and reach at least {fullest:.2%} of the bound."
    )


def distributions(rows: int, capacity: int) -> dict[str, Lengths]:
    """Return (rows,) lengths by name."""
    random = np.random.default_rng(0)
    chats = np.clip(random.lognormal(5.8, 0.9, rows), 2, capacity)
    cut = np.where(random.random(rows) < 0.2, capacity, chats)  # as truncation leaves them
    thirds = random.choice([capacity // 3 + 1, capacity // 3 - 1, capacity // 2 - 1], rows)
    return {
        "chats": chats.astype(np.int32),
        "chats, a fifth at the limit": cut.astype(np.int32),
        "uniform": random.integers(1, capacity + 1, rows).astype(np.int32),
        "just over a half": np.full(rows, capacity // 2 + 1, np.int32),
        "around a third and a half": thirds.astype(np.int32),
        "two tokens each": np.full(rows, 2, np.int32),
    }


def _measure(lengths: Lengths, capacity: int) -> dict[str, float]:
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        offsets, _ = pack_best_fit(lengths, capacity)
        seconds.append(time.process_time() - started)
    packs = len(offsets) - 1
    bound = max(-(-int(lengths.sum(dtype=np.int64)) // capacity), int(np.count_nonzero(lengths > capacity // 2)))
    full = int(lengths.sum(dtype=np.int64)) / (packs * capacity)
    figures = {"cpu_seconds": median(seconds), "share_of_bound": bound / packs, "efficiency": full}
    return {name: round(value, 5) for name, value in figures.items()}


if __name__ == "__main__":
    main()
