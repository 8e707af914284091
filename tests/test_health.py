"""Each illness is planted, in records or in a real training of the tiny model, and must be named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.errors import StageError
from stages.train.health import Finding, Setting, as_record, judge, worst
from tests.ranks import run_on_ranks
from tests.test_train_loss import make_job, train_job
from tests.train_data import Bench

SETTING = Setting(steps=100, warmup_steps=10, learning_rate=1e-3, lr_scheduler="cosine", vocabulary=512)


def rate(step: int) -> float:
    """Return the learning rate of SETTING at a step, from 1."""
    if step <= 10:
        return 1e-3 * (step - 1) / 10
    return 5e-4 * (1 + math.cos(math.pi * (step - 1 - 10) / 90))


def course(
    loss: Callable[[int], float] = lambda step: 1 + 2 * math.exp(-step / 30),
    norm: Callable[[int], float | None] = lambda step: 1.0,
    learning_rate: Callable[[int], float] = rate,
    held_out: Sequence[tuple[int, float]] = ((50, 1.5), (100, 1.2)),
) -> list[dict[str, Any]]:
    """A training of 100 steps, healthy where nothing else is asked for."""
    steps = [
        {"step": step, "loss": loss(step), "grad_norm": norm(step), "learning_rate": learning_rate(step)}
        for step in range(1, 101)
    ]
    return sorted([*steps, *({"step": s, "eval_loss": v} for s, v in held_out)], key=lambda record: record["step"])


def finding(records: list[dict[str, Any]], row: str, setting: Setting = SETTING) -> Finding:
    return next(found for found in judge(records, setting) if found.row == row)


def test_a_healthy_training_is_healthy_in_every_row() -> None:
    found = judge(course(), SETTING)
    assert [(finding.row, finding.status) for finding in found] == [
        ("train_loss", "healthy"),
        ("eval_loss", "healthy"),
        ("grad_norm", "healthy"),
        ("learning_rate", "healthy"),
    ]
    assert worst(found) == "healthy"
    assert not any(finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("row", "sign", "status", "step", "planted"),
    [
        ("train_loss", "flat", "sick", 100, {"loss": lambda step: 3 + 0.05 * math.sin(step)}),
        ("train_loss", "rising", "sick", 100, {"loss": lambda step: 3 + step / 50}),
        ("train_loss", "climbed", "sick", 20, {"loss": lambda step: 9 - abs(step - 20) / 10 if step > 5 else 3.0}),
        ("train_loss", "memorised", "sick", 29, {"loss": lambda step: 4 * math.exp(-step / 5.4)}),
        ("train_loss", "worse_than_guessing", "sick", 1, {"loss": lambda step: 11 - step / 20}),
        (
            "train_loss",
            "spike",
            "watch",
            60,
            {"loss": lambda step: 9.0 if step == 60 else 1 + 2 * math.exp(-step / 30)},
        ),
        ("train_loss", "not_finite", "sick", 40, {"loss": lambda step: math.nan if step > 39 else 2.0}),
        ("eval_loss", "overfitting", "sick", 40, {"held_out": [(20, 2.1), (40, 1.9), (100, 2.6)]}),
        ("eval_loss", "apart", "watch", 100, {"held_out": [(100, 4.0)]}),
        ("eval_loss", "none", "unknown", None, {"held_out": []}),
        ("grad_norm", "frozen", "sick", 1, {"norm": lambda step: 0.0}),
        ("grad_norm", "unstable", "watch", 30, {"norm": lambda step: 400.0 if step == 30 else 1.0}),
        ("grad_norm", "unstable", "sick", 100, {"norm": lambda step: 100.0 + step}),
        ("grad_norm", "unusual", "watch", 100, {"norm": lambda step: 0.001}),
        ("learning_rate", "flat", "sick", 100, {"learning_rate": lambda step: 1e-3}),
        ("learning_rate", "low", "sick", 100, {"learning_rate": lambda step: rate(step) / 10}),
        ("learning_rate", "rises", "sick", 51, {"learning_rate": lambda step: rate(step if step < 51 else 20)}),
        ("learning_rate", "not_finite", "sick", 1, {"learning_rate": lambda step: math.nan}),
    ],
)
def test_an_illness_is_named_with_its_step_and_a_remedy(
    row: str, sign: str, status: str, step: int | None, planted: dict[str, Any]
) -> None:
    found = finding(course(**planted), row)
    assert (found.sign, found.status, found.step) == (sign, status, step)
    assert found.remedy
    assert found.text.endswith(".")
    orjson.dumps(as_record([found]))  # no number that JSON has no word for
    assert found.value is None or math.isfinite(found.value)


def test_a_schedule_that_was_asked_to_be_flat_is_healthy() -> None:
    setting = Setting(100, 0, 1e-3, "constant", 512)
    assert finding(course(learning_rate=lambda step: 1e-3), "learning_rate", setting).sign == "constant"


def test_a_small_fall_over_the_noise_is_one() -> None:
    records = course(loss=lambda step: 1.3 - 0.0004 * step + 0.01 * math.sin(7 * step), held_out=[])
    assert finding(records, "train_loss").sign == "falls"


def test_a_few_steps_are_not_enough_to_call_a_loss_flat() -> None:
    records = course(loss=lambda step: 3.0)[:8]
    assert finding(records, "train_loss", Setting(8, 0, 1e-3, "cosine", 512)).status == "watch"


# Real trainings of the tiny model

LENGTHS = [12, 20, 16, 24, 14, 18, 22, 10, 12, 16]
KEYS: dict[str, Any] = {"optimizer": "adamw_torch", "lr_scheduler": "cosine", "max_grad_norm": 1.0, "save_steps": 1000}
TRAININGS: dict[str, dict[str, Any]] = {
    "by_heart": {"learning_rate": 0.02, "num_epochs": 30, "evals_per_epoch": 1},
    "too_high": {"learning_rate": 0.3, "num_epochs": 5},  # 0.003 is right
    "asked": {"learning_rate": 0.003, "num_epochs": 1, "generate_samples": True, "num_generation_samples": 2},
    "not_asked": {"learning_rate": 0.003, "num_epochs": 1},
    "no_effect": {"learning_rate": 1e-9, "num_epochs": 8},
    "long_warm_up": {"learning_rate": 0.003, "warmup_steps": 50, "max_steps": 4},
    "bitten": {"learning_rate": 0.003, "loss_watchdog_threshold": 1.0, "loss_watchdog_patience": 2},
}


def train_all(texts: list[str]) -> list[str]:
    """Train one after the other in one process; return the error of each, or nothing."""
    errors = []
    for text in texts:
        try:
            train_job(text)
            errors.append("")
        except StageError as error:
            errors.append(str(error))
    return errors


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Train with each planted cause; give name -> (working folder, error)."""
    folder = tmp_path_factory.mktemp("health")
    bench = Bench(folder, LENGTHS, [[row] for row in range(10)])
    texts = [make_job(bench, folder / name, 1, **{**KEYS, **keys}) for name, keys in TRAININGS.items()]
    (errors,) = run_on_ranks(train_all, 1, texts)
    return {name: (folder / name, error) for name, error in zip(TRAININGS, errors, strict=True)}


def verdict(training: tuple[Path, str]) -> dict[str, Any]:
    """Return row -> what was written about it, with evaluations, and check it against the artifact's facts."""
    work, error = training
    assert not error
    whole = {row["row"]: row for row in orjson.loads((work / "health.json").read_bytes())["rows"]}
    facts = {row["row"]: row for row in orjson.loads((work / "done.json").read_bytes())["facts"]["health"]["rows"]}
    assert all(facts[name] == whole[name] for name in ("train_loss", "grad_norm", "learning_rate"))
    return whole


def test_random_rows_learnt_by_heart_are_overfitting(trainings: dict[str, tuple[Path, str]]) -> None:
    rows = verdict(trainings["by_heart"])
    assert (rows["eval_loss"]["sign"], rows["eval_loss"]["status"]) == ("overfitting", "sick")
    assert rows["train_loss"]["sign"] in ("falls", "memorised")


def test_a_learning_rate_a_hundred_times_too_high_is_a_climbing_loss(trainings: dict[str, tuple[Path, str]]) -> None:
    rows = verdict(trainings["too_high"])
    assert (rows["train_loss"]["sign"], rows["train_loss"]["status"]) == ("climbed", "sick")
    assert "Lower learning_rate (now 0.3)" in rows["train_loss"]["remedy"]


def test_a_learning_rate_that_does_nothing_is_a_flat_loss(trainings: dict[str, tuple[Path, str]]) -> None:
    rows = verdict(trainings["no_effect"])
    assert (rows["train_loss"]["sign"], rows["train_loss"]["status"]) == ("flat", "sick")
    assert rows["learning_rate"]["status"] == "healthy"


def test_a_warm_up_that_never_ends_is_seen(trainings: dict[str, tuple[Path, str]]) -> None:
    assert verdict(trainings["long_warm_up"])["learning_rate"]["sign"] == "never_at_peak"


def test_the_watchdog_stops_a_training_whose_loss_stays_high(trainings: dict[str, tuple[Path, str]]) -> None:
    work, error = trainings["bitten"]
    assert "step 2: the loss was above loss_watchdog_threshold (1) for 2 steps in a row" in error
    assert not (work / "done.json").exists()


def test_an_illness_is_told_once_while_it_trains(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import TrainerControl, TrainerState

    from stages.train.watch import HealthMonitor

    monitor, state = HealthMonitor(SETTING, None), TrainerState()
    for record in course(norm=lambda step: 0.0, held_out=[]):
        state.log_history.append(record)
        state.global_step = record["step"]
        monitor.on_log(None, state, TrainerControl(), logs=record)
    (line,) = [record.getMessage() for record in caplog.records if "grad_norm" in record.getMessage()]
    assert line.startswith("health, step 5, grad_norm: The gradient is 0 at every step: no weight is trained. Check")


def test_held_out_prompts_are_answered_before_and_after_without_changing_the_training(
    trainings: dict[str, tuple[Path, str]],
) -> None:
    asked, not_asked = trainings["asked"][0], trainings["not_asked"][0]
    records = [orjson.loads(line) for line in (asked / "samples.jsonl").read_bytes().splitlines()]
    assert [(record["step"], record["row"]) for record in records] == [(0, 8), (0, 9), (4, 8), (4, 9)]
    assert all(record["text"] and record["prompt"] and record["expected"] for record in records)
    assert records[0]["text"] != records[2]["text"]
    facts = [orjson.loads((work / "done.json").read_bytes())["facts"] for work in (asked, not_asked)]
    assert facts[0] == facts[1]  # losses_digest among them
