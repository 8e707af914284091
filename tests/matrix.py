"""Trainings of the matrix adapter x sharding, on processes of this machine."""

from __future__ import annotations

import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stages.train.job import Job
from stages.train.metrics import read_metrics
from tests.train_data import Bench

JOB_SECONDS = 100
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


def train_jobs(texts: list[str], *, stopped: bool = False) -> list[str | None]:
    """Train each job on this rank, one after the other, to its end; return its error, or None.

    Each has a process of its own, for FSDP remembers the group of processes that it first saw; it is a fork of this
    one, which has the libraries loaded already.
    """
    import bitsandbytes  # noqa: F401

    import stages.train.worker  # noqa: F401

    fork, ends = multiprocessing.get_context("fork"), []
    for text in texts:
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_train, args=(sender, text, stopped))
        child.start()
        sender.close()
        try:
            ends.append(receiver.recv() if receiver.poll(JOB_SECONDS) else "it hangs")
        except EOFError:
            ends.append("it ended without an answer")
        child.kill()
        child.join()
    return ends


def stop_jobs(texts: list[str]) -> list[str | None]:
    """Train the first step of each job, as if SIGTERM came then."""
    return train_jobs(texts, stopped=True)


def _train(sender: Connection, text: str, stopped: bool) -> None:
    try:
        sender.send(_end_of(Job.model_validate_json(text), stopped=stopped))
    except BaseException:  # noqa: BLE001  whatever it was, the test shows it
        sender.send(traceback.format_exc())


def _end_of(job: Job, *, stopped: bool) -> str | None:
    from stages.errors import SftError
    from stages.train.stopping import StopFlag
    from stages.train.worker import train

    stop = StopFlag()
    stop.is_set = stopped
    try:
        assert train(job, stop) == (143 if stopped else 0)
    except SftError as error:
        return f"{type(error).__name__}: {error}"
    return None


def losses(work: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(work / "metrics.jsonl") if "loss" in record]


def eval_loss(work: Path) -> float:
    return float([record["eval_loss"] for record in read_metrics(work / "metrics.jsonl") if "eval_loss" in record][-1])
