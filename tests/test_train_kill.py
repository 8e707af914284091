"""Trainings that are killed, stopped and resumed: the same losses and weights, and no process left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.errors import TransientError
from stages.stage import run_stage
from stages.train.metrics import read_metrics
from stages.train.stage import STAGE
from tests.train_data import Bench

LENGTHS = [120, 30, 90, 200, 60, 45, 150, 33]
SEQUENCES = [[0, 1], [2], [3], [4, 5], [6], [7, 1], [0], [5]]
Strike = Callable[[], None]


STEPS = 30


def lora_run(bench: Bench, **sharding: Any) -> RunConfig:
    """A run with dropout and a checkpoint after every third step, on two processes."""
    return bench.run(
        **sharding,
        adapter="lora",
        lora_r=4,
        lora_target_linear=True,
        lora_dropout=0.2,
        launcher={"threads": 1, "processes": 2},
        num_epochs=50,
        max_steps=STEPS,
        save_steps=3,
        logging_steps=1,
        val_set_size=0.1,
    )


def train(bench: Bench, run: RunConfig, strike: Strike | None = None, at: int = 0) -> Artifact:
    """Train; after step `at`, strike once."""
    struck = []

    def progress(done: float, total: float | None, unit: str, **detail: Any) -> None:
        if strike is not None and done >= at and not struck:
            struck.append(done)
            strike()

    context = bench.context(run, progress=progress)
    return run_stage(STAGE, context, bench.upstream, bench.store).artifact


def children() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [process for process in below if process.status() != psutil.STATUS_ZOMBIE]


def ranks() -> list[psutil.Process]:
    return [process for process in children() if "stages.train" in process.cmdline()]


def send_to_rank(number: signal.Signals) -> None:
    ranks()[-1].send_signal(number)


def kill_torchrun() -> None:
    next(p for p in children() if "stages.train.agent" in p.cmdline()).kill()


def kill_parent() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cancel() -> None:
    raise KeyboardInterrupt


def processes_of(folder: Path) -> list[int]:
    """Ids of the processes anywhere that have the folder on their command line."""
    processes = psutil.process_iter(["cmdline"])
    return [p.pid for p in processes if any(str(folder) in word for word in p.info["cmdline"] or [])]


def assert_none_left(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []


def work_of(bench: Bench) -> Path:
    (work,) = (bench.store.root / ".work" / "train").iterdir()
    return work


def checkpoints(work: Path) -> set[int]:
    return {int(path.parent.name.split("-")[1]) for path in work.glob("checkpoint-*/complete.json")}


def assert_same_training(one: Artifact, other: Artifact) -> None:
    assert one.key == other.key
    assert one.facts == other.facts
    assert one.digest == other.digest  # every byte of the model
    losses = [[r["loss"] for r in read_metrics(a.path("metrics.jsonl")) if "loss" in r] for a in (one, other)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def test_killed_stopped_and_cancelled_it_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Two processes, one training: killed are its parent, then a rank, then torchrun; in the end it is cancelled."""
    calm, bench = Bench(tmp_path / "calm", LENGTHS, SEQUENCES), Bench(tmp_path / "hit", LENGTHS, SEQUENCES)
    expected = train(calm, lora_run(calm))
    run = lora_run(bench)

    parent = [sys.executable, "-c", PARENT, str(bench.folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(parent, env=environment, check=False, timeout=200).returncode == -signal.SIGKILL
    assert_none_left(bench.store.root)
    work = work_of(bench)
    assert 3 in checkpoints(work)

    with pytest.raises(TransientError, match=r"was killed .*memory"):
        train(bench, run, lambda: send_to_rank(signal.SIGKILL), at=8)
    assert_none_left(bench.store.root)

    with pytest.raises(TransientError, match="was killed"):
        train(bench, run, kill_torchrun, at=13)
    assert_none_left(bench.store.root)

    before = max(checkpoints(work))
    assert len(checkpoints(work)) == 4  # save_total_limit
    with pytest.raises(KeyboardInterrupt):
        train(bench, run, cancel, at=before + 1)
    assert_none_left(bench.store.root)
    newest = max(checkpoints(work))
    assert newest > before  # written on the way out

    damaged = work / f"checkpoint-{newest}/optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    shutil.copytree(work / f"checkpoint-{before}", work / f"checkpoint-{STEPS - 1}")
    (work / f"checkpoint-{STEPS - 1}/complete.json").unlink()
    lines: list[str] = []
    result = run_stage(STAGE, bench.context(run, log=lines.append), bench.upstream, bench.store).artifact
    last_whole = max(step for step in {before, *(int(line.split()[-1]) for line in lines if "continuing" in line)})
    assert last_whole < newest
    assert_same_training(expected, result)


PARENT = """
import pathlib, sys
from tests.test_train_kill import LENGTHS, SEQUENCES, kill_parent, lora_run, train
from tests.train_data import Bench

bench = Bench(pathlib.Path(sys.argv[1]), LENGTHS, SEQUENCES)
train(bench, lora_run(bench), kill_parent, at=5)
"""

SHARDINGS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
    "zero2": {"deepspeed": {"zero_optimization": {"stage": 2}}},
}
STRIKES: dict[str, Strike] = {
    "a rank": lambda: send_to_rank(signal.SIGKILL),
    "torchrun": kill_torchrun,
    "the parent": kill_parent,
}
KILLS = 7
STRUCK = "import sys; from tests.test_train_kill import train_struck; train_struck(*sys.argv[1:])"


def train_struck(folder: str, sharding: str, whom: str, after: str) -> None:
    """Train on from the newest checkpoint, and kill somebody when so many more steps are done."""
    bench = Bench(Path(folder), LENGTHS, SEQUENCES)
    works = list((bench.store.root / ".work" / "train").glob("*"))
    done = max((step for work in works for step in checkpoints(work)), default=0)
    train(bench, lora_run(bench, **SHARDINGS[sharding]), STRIKES[whom], at=min(done + int(after), STEPS - 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_killed_again_and_again_at_random_steps(tmp_path: Path, sharding: str) -> None:
    if sharding == "zero2":
        pytest.importorskip("deepspeed")
    calm, hit = Bench(tmp_path / "calm", LENGTHS, SEQUENCES), Bench(tmp_path / "hit", LENGTHS, SEQUENCES)
    expected = train(calm, lora_run(calm, **SHARDINGS[sharding]))
    draw = random.Random(sharding)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(KILLS):
        whom, after = draw.choice(list(STRIKES)), draw.randint(1, 5)
        command = [sys.executable, "-c", STRUCK, str(hit.folder), sharding, whom, str(after)]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL or "was killed" in done.stderr, (whom, after, done.stderr)
        assert_none_left(hit.store.root)
    assert_same_training(expected, train(hit, lora_run(hit, **SHARDINGS[sharding])))
