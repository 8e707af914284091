"""What the key of a training is made of, what its end means, and what is handed on while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.artifacts import digest_of
from stages.errors import ConfigError, SftError, StageError, TransientError
from stages.train.job import WorkFolder
from stages.train.launch import LineTail, RateLimit
from stages.train.machine import Machine, precision, this_machine, threads, world_size
from stages.train.metrics import MetricsLog, MetricsTail
from stages.train.outcome import error_of
from stages.train.stage import STAGE, key_inputs
from tests.train_data import Bench

CPU, OLD_GPU, GPUS = Machine(()), Machine(((7, 5),)), Machine(((9, 0), (9, 0)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("stage"), [9, 5, 8], [[0], [1], [2]], held_out=1)


def key(bench: Bench, machine: Machine = CPU, **keys: Any) -> str:
    return digest_of(key_inputs(bench.context(bench.run(**keys)), machine))


@pytest.mark.parametrize(
    "keys",
    [
        {"output_dir": "elsewhere"},
        {"logging_steps": 7},
        {"save_steps": 3},
        {"save_total_limit": 1},
        {"dataset_num_proc": 3},
        {"dataloader_num_workers": 2},
        {"val_set_size": 0.2, "eval_steps": 2},  # the held-out rows are in the pack artifact's digest
        {"launcher": {"threads": 4, "processes": 1}},
        {"lora_r": 4},  # there is no adapter
        {"batch_size": 2, "gradient_accumulation_steps": None},  # the same two numbers in other words
        {"sequence_len": 4096},
    ],
)
def test_the_key_does_not_know(bench: Bench, keys: dict[str, Any]) -> None:
    assert key(bench, **keys) == key(bench)


@pytest.mark.parametrize(
    "keys",
    [
        {"learning_rate": 0.02},
        {"num_epochs": 2},
        {"micro_batch_size": 3},
        {"gradient_accumulation_steps": 2},
        {"seed": 1},
        {"bf16": True},
        {"optimizer": "sgd"},
        {"warmup_steps": 5},
        {"lr_scheduler": "linear"},
        {"weight_decay": 0.1},
        {"adapter": "lora", "lora_target_linear": True},
        {"launcher": {"processes": 2}},
        {"attn_implementation": "eager"},
    ],
)
def test_the_key_knows(bench: Bench, keys: dict[str, Any]) -> None:
    assert key(bench, **keys) != key(bench)


def test_the_key_knows_the_weights_of_the_base_model_not_where_they_are(bench: Bench, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(bench.model, tmp_path / "moved")
    assert key(bench, base_model=str(moved)) == key(bench)
    (moved / "model.safetensors").write_bytes(b"other weights")
    assert key(bench, base_model=str(moved)) != key(bench)


def test_the_width_of_padding_matters_only_where_rows_are_padded_to_it(bench: Bench) -> None:
    assert key(bench, pad_to_sequence_len=True) != key(bench)


def test_the_stage_reads_the_key_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, stages.train.stage; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
    assert STAGE.needs == ("tokenize", "pack")


def test_precision_and_processes_follow_from_the_machine(bench: Bench) -> None:
    auto = bench.run(bf16="auto")
    assert [precision(auto, machine) for machine in (CPU, OLD_GPU, GPUS)] == ["fp32", "fp16", "bf16"]
    assert [world_size(auto, machine) for machine in (CPU, OLD_GPU, GPUS)] == [1, 1, 2]
    assert precision(bench.run(bf16=True), CPU) == "bf16"
    assert precision(bench.run(bf16="auto", fp16=True), GPUS) == "fp16"
    assert threads(bench.run(launcher={"threads": 3}), 2) == 3
    with pytest.raises(ConfigError, match="this machine shows 2 GPU"):
        world_size(bench.run(launcher={"processes": 3}), GPUS)
    with pytest.raises(ConfigError, match="float16 training needs a GPU"):
        precision(bench.run(fp16=True), CPU)
    assert world_size(bench.run(launcher={"processes": 3}), CPU) == 3
    assert isinstance(this_machine().gpus, tuple)


def ended(folder: Path, codes: list[tuple[int, int]], agent_code: int = 1, log: str = "") -> SftError:
    work = WorkFolder(folder)
    work.log.write_text(log)
    failures = [{"rank": rank, "exit_code": code, "time": at} for at, (rank, code) in enumerate(codes)]
    work.agent_report(0).write_bytes(orjson.dumps({"failures": failures}))
    return error_of(work, agent_code)


def test_the_error_tells_the_cause(tmp_path: Path) -> None:
    assert isinstance(ended(tmp_path, [(1, -9)]), TransientError)
    assert isinstance(ended(tmp_path, [(0, 1), (1, -9)]), TransientError)  # rank 0 failed because rank 1 was killed
    assert isinstance(ended(tmp_path, [(0, 143)]), TransientError)
    assert isinstance(ended(tmp_path, [], agent_code=-9), TransientError)
    crash = ended(tmp_path, [(0, 1)], log="\n".join(f"line {n}" for n in range(100)))
    assert type(crash) is StageError
    assert "line 99" in str(crash)
    assert "line 50\n" in str(crash)
    assert "line 49\n" not in str(crash)


def test_a_rate_limit_lets_a_burst_through_and_says_what_it_held_back() -> None:
    now, said = [0.0], list[str]()
    gate = RateLimit(burst=2, per_second=1.0, clock=lambda: now[0])
    for n in range(5):
        gate(f"line {n}", said.append)
    now[0] = 1.0
    gate("line 5", said.append)
    assert said == ["line 0", "line 1", "(3 lines are only in train.log)", "line 5"]


def test_lines_are_handed_on_when_they_are_finished(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"of an earlier try\n")
    tail = LineTail(log)
    with log.open("ab") as file:
        file.write(b"10%\r20%\rdo")
    assert tail.read() == ["10%", "20%"]
    with log.open("ab") as file:
        file.write(b"ne\n\n")
    assert tail.read() == ["done"]


def test_metrics_past_a_checkpoint_are_cut_and_a_half_line_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log, tail = MetricsLog(path), MetricsTail(path)
    log.cut(0)
    assert tail.read() == []
    for step in (1, 2, 3):
        log.append({"step": step})
    assert tail.read() == [{"step": 1}, {"step": 2}, {"step": 3}]
    with path.open("ab") as file:
        file.write(b'{"step": 4')
    assert tail.read() == []
    log.cut(2)
    log.append({"step": 3, "again": True})
    assert tail.read() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
