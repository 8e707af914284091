"""Tokenizing with one worker and with several: CPU seconds in all, wall seconds, memory of a worker, equal bytes.

python infra/bench/tokenize_cores.py --data chats.jsonl --tokenizer FOLDER [--workers 1 2] [--copies 4]

Goes through the stage as a run does, start of the workers included. Where cores are free, wall seconds tell the
speed-up; on a busy machine only the CPU seconds do: if they do not grow with the workers, sharing out costs nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.fetch import STAGE as FETCH
from stages.stage import Context, run_stage
from stages.tokenize import STAGE

POLL_SECONDS = 0.25


def main() -> None:
    """Print the figures as JSON, and a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--type", default="chat_template")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--copies", type=int, default=4, help="how often the data stands in the file that is tokenized")
    options = parser.parse_args()
    found, digests = {}, set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.jsonl").write_bytes(Path(options.data).read_bytes() * options.copies)
        raw = run_stage(FETCH, _context(folder, options, 1), {}, Store(folder / "store")).artifact
        for workers in options.workers:
            artifact, found[str(workers)] = _measured(folder, raw, _context(folder, options, workers), workers)
            digests.add(artifact.digest)
    assert len(digests) == 1, "other bytes with another number of workers"
    megabytes = sum(shard["bytes"] for dataset in raw.facts["datasets"] for shard in dataset["shards"]) / 1e6
    print(json.dumps({"megabytes": round(megabytes, 1), "workers": found}))
    first, last = found[str(options.workers[0])], found[str(options.workers[-1])]
    print(
        f"{options.workers[-1]} workers take {last['cpu_seconds'] / first['cpu_seconds']:.2f} times the CPU seconds of "
        f"{options.workers[0]}, at most {max(one['worker_megabytes'] for one in found.values()):.0f} MB each."
    )


def _context(folder: Path, options: argparse.Namespace, workers: int) -> Context:
    values: dict[str, Any] = {"base_model": options.tokenizer, "learning_rate": 1e-4, "dataset_num_proc": workers}
    values |= {"datasets": [{"path": str(folder / "data.jsonl"), "type": options.type}], "sequence_len": 2048}
    run = RunConfig.model_validate({**values, "micro_batch_size": 1, "gradient_accumulation_steps": 1})
    return Context(run, FileDigests(folder / "digests.sqlite"))


def _measured(folder: Path, raw: Artifact, context: Context, workers: int) -> tuple[Artifact, dict[str, float]]:
    stop, peak = threading.Event(), [0.0]
    watcher = threading.Thread(target=_watch, args=(stop, peak))
    watcher.start()
    before, started = _cpu_seconds(), time.monotonic()
    artifact = run_stage(STAGE, context, {"fetch": raw}, Store(folder / f"store-{workers}")).artifact
    figures = {"cpu_seconds": _cpu_seconds() - before, "wall_seconds": time.monotonic() - started}
    stop.set()
    watcher.join()
    return artifact, {**{name: round(value, 2) for name, value in figures.items()}, "worker_megabytes": round(peak[0])}


def _cpu_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _watch(stop: threading.Event, peak: list[float]) -> None:
    """Follow the memory of the largest process that tokenizes: a child, or with one worker this process."""
    here = psutil.Process()
    while not stop.wait(POLL_SECONDS):
        try:
            peak[0] = max(peak[0], *(one.memory_info().rss / 1e6 for one in [here, *here.children()]))
        except psutil.NoSuchProcess:
            pass


if __name__ == "__main__":
    main()
