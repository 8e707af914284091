"""Experiment trackers: asked for by axolotl's keys, told what metrics.jsonl holds, without influence on training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_run
from stages.train.metrics import read_metrics
from stages.train.rules import problems
from stages.train.stage import key_inputs
from stages.train.trackers import asked, login_problems, variables
from tests.matrix import LENGTHS, LORA, SEQUENCES, losses, matrix_job, stop_jobs, train_jobs
from tests.ranks import run_on_ranks
from tests.test_config import GOOD
from tests.test_train_schedule import run_config
from tests.test_train_stage import CPU
from tests.train_data import Bench

WANDB = {"wandb_project": "p", "wandb_name": "n", "wandb_mode": "offline"}


def test_a_tracker_is_asked_for_by_its_project_or_by_name() -> None:
    assert asked(run_config()) == []
    assert asked(run_config(wandb_project="p", mlflow_experiment_name="e")) == ["wandb", "mlflow"]
    assert asked(run_config(wandb_project="p", use_wandb=False, use_tensorboard=True)) == ["tensorboard"]
    assert variables(run_config(**WANDB))["WANDB_NAME"] == "n"


def test_nulls_ask_for_nothing(tmp_path: Path) -> None:
    keys = "wandb_project:\nwandb_entity:\nwandb_watch:\nwandb_name:\nwandb_log_model:\ntrackio_project_name:\n"
    (tmp_path / "run.yaml").write_text(GOOD + keys)
    loaded = load_run(tmp_path / "run.yaml")
    assert asked(loaded.run) == []
    assert not loaded.notices


def test_nobody_logged_in_and_a_missing_package_are_told_before_anything_runs(tmp_path: Path) -> None:
    online, home = run_config(wandb_project="p"), {"HOME": str(tmp_path)}
    [problem] = login_problems(online, home)
    assert problem.remedy == "Set WANDB_API_KEY, run `wandb login`, or set wandb_mode: offline."
    assert login_problems(online, {**home, "WANDB_API_KEY": "k"}) == []
    assert login_problems(run_config(**WANDB), home) == []
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k")
    assert login_problems(online, home) == []
    [problem] = problems(run_config(use_swanlab=True))
    assert (problem.key, problem.remedy) == ("use_swanlab", "Install it: pip install 'sft-flow[swanlab]'.")


def test_a_tracker_that_fails_is_told_nothing_more_and_the_others_are(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from stages.errors import StageError
    from stages.train.metrics import MetricsLog
    from stages.train.tracking import Tracking

    class Heard(TrainerCallback):  # type: ignore[misc]
        def __init__(self, *, fails: bool = False) -> None:
            self.fails, self.records = fails, []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.records.append(kwargs["logs"])
            if self.fails:
                raise OSError("the server is gone")

    class Unreachable(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("no route to host")

    log, fails, works = MetricsLog(tmp_path / "metrics.jsonl"), Heard(fails=True), Heard()
    trackers = Tracking({"mlflow": fails, "wandb": works}, tmp_path / "metrics.jsonl", tmp_path / "runs.json")
    trackers.on_train_begin(None, None, None)
    for step in (1, 2):
        log.append({"step": step, "loss": 1.5})
        trackers.on_log(None, None, None)
    assert (len(fails.records), works.records) == (1, [{"loss": 1.5}, {"loss": 1.5}])
    with pytest.raises(StageError, match="the tracker mlflow cannot be started: OSError: no route to host"):
        Tracking({"mlflow": Unreachable()}, tmp_path / "none", tmp_path / "runs.json").on_train_begin(None, None, None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("trackers"), LENGTHS, SEQUENCES)


def test_the_key_does_not_know_trackers(bench: Bench) -> None:
    keys = {**WANDB, "use_tensorboard": True, "mlflow_experiment_name": "e"}
    assert key_inputs(bench.context(bench.run(**keys)), CPU) == key_inputs(bench.context(bench.run()), CPU)


def train_offline(texts: list[str]) -> list[str | None]:
    """Train each job in a process of its own; the last one is stopped after its first step, and resumed."""
    os.environ["WANDB_SILENT"] = "true"
    return [*stop_jobs(texts[-1:]), *train_jobs(texts)]


@pytest.mark.slow
def test_trackers_get_every_record_and_change_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for us, who read it
    out, often = tmp_path / "out", {**LORA, "lora_dropout": 0.3, "logging_steps": 2, "eval_steps": 3}
    keys: dict[str, Any] = {
        **WANDB,
        "use_tensorboard": True,
        "mlflow_experiment_name": "e",
        "mlflow_tracking_uri": str(tmp_path / "mlflow"),
        "output_dir": str(out),
    }
    plain = matrix_job(bench, tmp_path / "plain", **often)
    tracked = matrix_job(bench, tmp_path / "tracked", **often, **keys)
    stopped = tracked.model_copy(update={"work": tmp_path / "stopped", "key": "stopped"})
    stopped.work.mkdir()
    texts = [job.model_dump_json() for job in (plain, tracked, stopped)]
    assert run_on_ranks(train_offline, 1, texts) == [[None] * 4]

    name = "final/model/adapter_model.safetensors"
    assert losses(tracked.work) == losses(plain.work) == losses(stopped.work)
    assert (tracked.work / name).read_bytes() == (plain.work / name).read_bytes()

    records = read_metrics(tracked.work / "metrics.jsonl")
    for name in ("loss", "eval_loss"):
        expected = [(record["step"], pytest.approx(record[name])) for record in records if name in record]
        for run in ("k", "stopped"):  # the second one was stopped after its first step, and resumed
            assert tensorboard_scalars(out / "runs" / run, name) == expected
        assert mlflow_scalars(keys["mlflow_tracking_uri"], name) == [expected, expected]
    runs = sorted(path.name.split("-")[-1] for path in (out / "wandb").glob("offline-run-*"))
    assert len(set(runs)) == 2, "the resumed training goes on in the run that it began"
    assert len(runs) == 3


def tensorboard_scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tag = {"loss": "train/loss", "eval_loss": "eval/loss"}[name]
    return [(event.step, event.value) for event in events.Scalars(tag)]


def mlflow_scalars(uri: str, name: str) -> list[list[tuple[int, float]]]:
    """Return what MLflow has of each run."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    return [[(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)] for run in runs]
