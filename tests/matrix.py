"""Trainings of the matrix adapter x sharding, on processes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.train.job import Job
from stages.train.metrics import read_metrics
from tests.train_data import Bench

LENGTHS = [30, 12, 45, 20, 9, 33, 18, 27]
SEQUENCES = [[0, 1], [2], [3, 4], [5], [6, 7], [1, 4], [0], [3]]
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_target_linear": True}
QLORA: dict[str, Any] = {**LORA, "adapter": "qlora", "load_in_4bit": True}
LORA8: dict[str, Any] = {**LORA, "load_in_8bit": True}


def matrix_job(bench: Bench, work: Path, *, precision: str = "fp32", world_size: int = 1, **keys: Any) -> Job:
    """Return a job of 6 steps of 4 sequences, whatever the number of processes."""
    work.mkdir(parents=True, exist_ok=True)
    sizes = {"micro_batch_size": 4 // world_size, "num_epochs": 3, "val_set_size": 0.1}
    folders = {"tokens": bench.upstream["tokenize"].folder, "packs": bench.upstream["pack"].folder, "work": work}
    base = {"model": bench.model, "model_name": "the/base", "model_commit": "abc"}
    settings = {"key": "k", "precision": precision, "tf32": False, "world_size": world_size}
    return Job(run=bench.run(**{**sizes, **keys}), **folders, **base, **settings)  # type: ignore[arg-type]


def train_jobs(texts: list[str], stop_first: bool = False) -> list[str | None]:
    """Train each job on this rank; return its error, or None. With `stop_first`, only its first step."""
    from stages.errors import SftError
    from stages.train.stopping import StopFlag
    from stages.train.worker import train

    ends: list[str | None] = []
    for text in texts:
        stop = StopFlag()
        stop.is_set = stop_first
        try:
            assert train(Job.model_validate_json(text), stop) == (143 if stop_first else 0)
            ends.append(None)
        except SftError as error:
            ends.append(f"{type(error).__name__}: {error}")
    return ends


def losses(work: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(work / "metrics.jsonl") if "loss" in record]


def eval_loss(work: Path) -> float:
    return float([record["eval_loss"] for record in read_metrics(work / "metrics.jsonl") if "eval_loss" in record][-1])
