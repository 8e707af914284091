"""The loss of each data set, and which rows a broken step held."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.errors import StageError
from stages.train.metrics import read_metrics
from tests.ranks import run_on_ranks
from tests.test_train_loss import make_job, train_job
from tests.train_data import Bench

LENGTHS = [12, 20, 16, 24, 14, 18, 22, 10]
SETS = [{"path": name, "type": "chat_template"} for name in ("one.jsonl", "two.jsonl")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, LENGTHS, [[0, 1], [2], [3], [4, 5], [6, 7]], held_out=2, datasets=[0, 0, 0, 0, 1, 0, 1, 1])


def error_of(text: str) -> str:
    try:
        train_job(text)
    except StageError as error:
        return str(error)
    return ""


def mean_loss(bench: Bench, model: Path, rows: list[int]) -> float:
    from transformers import AutoModelForCausalLM

    network, total, tokens = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64), 0.0, 0
    for row in rows:
        ids, trained = bench.rows[row]
        predictions = torch.log_softmax(network(torch.tensor([ids])).logits[0], dim=-1)
        places = [place for place in range(1, len(ids)) if trained[place]]
        total -= sum(float(predictions[place - 1, ids[place]].detach()) for place in places)
        tokens += len(places)
    return total / tokens


def test_evaluation_tells_the_loss_of_each_data_set(bench: Bench, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"datasets": SETS, "max_steps": 1, "learning_rate": 0.1}
    run_on_ranks(train_job, 2, make_job(bench, tmp_path / "work", 2, **keys))
    record = read_metrics(tmp_path / "work/metrics.jsonl")[-1]
    model = tmp_path / "work/final/model"
    assert record["eval_loss"] == pytest.approx(mean_loss(bench, model, [4, 5, 6, 7]), rel=1e-6)
    assert record["eval_losses"] == {
        "0: one.jsonl": pytest.approx(mean_loss(bench, model, [5]), rel=1e-6),
        "1: two.jsonl": pytest.approx(mean_loss(bench, model, [4, 6, 7]), rel=1e-6),
    }


def test_a_loss_that_is_no_number_stops_with_the_rows_of_its_step(bench: Bench, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"datasets": SETS, "learning_rate": 1e30, "micro_batch_size": 1, "num_epochs": 3}
    (error,) = run_on_ranks(error_of, 1, make_job(bench, tmp_path / "work", 1, **keys))
    assert "the weights are lost" in error
    assert "In that step: one.jsonl row " in error
    assert "Lower learning_rate" in error
    records = read_metrics(tmp_path / "work/metrics.jsonl")
    assert all(math.isfinite(record["loss"]) and record["loss"] > 0 for record in records)  # never logged as 0
