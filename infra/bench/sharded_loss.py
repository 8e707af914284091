"""Peak memory of a training process with the loss by chunks and with the model's own, at a vocabulary of 150,000.

python infra/bench/sharded_loss.py [--cases one ddp fsdp2 zero3] [--lora] [--vocabulary 151936]

Each case trains three steps of 768 tokens in the processes that `sft train` starts, float32 on a CPU; memory is that of
the fullest process after its first step, less what the same training takes with a model of hardly any weights. Prints
one JSON document, and a sentence for each case on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from memory_estimate import LORA, TRAIN, peak, prepare

OWN_LOSS = (
    "-c",
    "import os, sys; from stages.train import loss, __main__;"
    "loss.LossByChunks.of = classmethod(lambda cls, model: None); sys.stdout.flush(); os._exit(__main__.main())",
)
TWO = {"launcher": {"processes": 2, "threads": 1}}
CASES: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": TWO,
    "fsdp2": {**TWO, "fsdp_config": {}},
    "zero3": {**TWO, "deepspeed": {"zero_optimization": {"stage": 3}}},
}


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--lora", action="store_true")
    options = parser.parse_args()
    found = {}
    for case in options.cases:
        keys = {**CASES[case], **(LORA if options.lora else {})}
        chunked, own = (measure(keys, options.vocabulary, program) for program in (TRAIN, OWN_LOSS))
        found[case] = {"by_chunks_mib": round(chunked), "own_mib": round(own), "share": round(chunked / own, 3)}
        print(f"{case}: {chunked:.0f} MiB by chunks, {own:.0f} MiB with all logits", file=sys.stderr, flush=True)
    print(json.dumps({"options": vars(options), "cases": found}, indent=2))


def measure(keys: dict[str, Any], vocabulary: int, program: tuple[str, ...]) -> float:
    """Return what the fullest process needs beyond what every process does, MiB."""
    sizes = [{"size": 128, "vocabulary": vocabulary}, {"size": 64, "vocabulary": 512}]
    peaks = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            peaks.append(peak(prepare(Path(folder), "llama", keys, layers=1, **size), program))
    return peaks[0] - peaks[1]


if __name__ == "__main__":
    main()
