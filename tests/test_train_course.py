"""When checkpoints are written and kept, which weights are the final ones, and where a training starts and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file

from configs.errors import ConfigError as WrongFile
from configs.load import load_run
from stages.errors import ConfigError
from stages.train.checkpoints import newest_checkpoint, seal
from stages.train.metrics import read_metrics
from stages.train.stage import key_inputs
from stages.train.start import check_steps_left
from tests.matrix import LENGTHS, LORA, SEQUENCES, losses, matrix_job, stop_jobs, train_jobs
from tests.ranks import run_on_ranks
from tests.test_config import GOOD
from tests.test_train_schedule import plan
from tests.test_train_stage import CPU
from tests.train_data import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
FAST: dict[str, Any] = {"learning_rate": 0.06, "lr_scheduler": "constant", "eval_steps": 1, "num_epochs": 4}
"""So fast that the loss on the evaluation set has its lowest point before the end."""


@pytest.mark.parametrize(
    ("keys", "saves"),
    [
        ({"save_strategy": "no"}, set()),
        ({"save_strategy": "best", "val_set_size": 5}, set()),
        ({"save_strategy": "epoch"}, {26, 52, 78}),
        ({"save_strategy": "steps"}, set()),  # each 500
        ({"save_strategy": "steps", "save_steps": 30, "save_first_step": True}, {1, 30, 60}),
    ],
)
def test_strategies_of_saving(keys: dict[str, Any], saves: set[int]) -> None:
    assert plan(101, num_epochs=3, **keys).saves == saves


def test_strategies_of_evaluation() -> None:
    assert plan(100, evals=5, eval_strategy="epoch", val_set_size=5, num_epochs=2).evals == {25, 50}
    assert plan(100, evals=5, eval_strategy="no", val_set_size=5).evals == {25}  # the end always


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("early_stopping_patience: 2\nval_set_size: 5", "early_stopping_patience needs several evaluations"),
        ("early_stopping_patience: 2\nevals_per_epoch: 2", "early_stopping_patience asks for an evaluation set"),
        ("save_strategy: best", "save_strategy asks for an evaluation set"),
        ("save_strategy: epoch\nsave_steps: 5", "save_strategy contradicts save_steps"),
        ("eval_strategy: steps\nval_set_size: 5", "eval_strategy: steps needs their number"),
        ("load_best_model_at_end: true\nval_set_size: 5\nmetric_for_best_model: accuracy", "metric_for_best_model"),
        ("load_best_model_at_end: true\nval_set_size: 5\ngreater_is_better: true", "greater_is_better"),
    ],
)
def test_what_cannot_hold_together(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + lines + "\n")
    with pytest.raises(WrongFile, match=message):
        load_run(tmp_path / "run.yaml")


def test_a_bare_no_is_no(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + "eval_strategy: no\nsave_strategy: no\n")
    run = load_run(tmp_path / "run.yaml").run
    assert (run.eval_strategy, run.save_strategy) == ("no", "no")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("course"), LENGTHS, SEQUENCES)


@pytest.fixture(scope="module")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    kinds: dict[str, dict[str, Any]] = {
        "whole": {**FAST, "save_steps": 1, "save_total_limit": 100},
        "best": {**FAST, "load_best_model_at_end": True, "save_strategy": "no", "save_total_limit": 1},
        "early": {**FAST, "early_stopping_patience": 2, "save_strategy": "no"},
        "lora, best": {**FAST, **LORA, "learning_rate": 0.1, "load_best_model_at_end": True},
        "only models": {"save_only_model": True, "save_steps": 2},
        "early, stopped": {**FAST, "early_stopping_patience": 2, "save_strategy": "no"},
        "only models, stopped": {"save_only_model": True, "save_steps": 2},
    }
    jobs = {name: matrix_job(bench, root / name, **keys) for name, keys in kinds.items()}
    texts = {name: job.model_dump_json() for name, job in jobs.items()}
    stopped = [text for name, text in texts.items() if "stopped" in name]
    assert run_on_ranks(stop_jobs, 1, stopped) == [[None] * len(stopped)]
    start = root / "whole/checkpoint-4"
    texts["elsewhere"] = matrix_job(bench, root / "elsewhere", **FAST).model_copy(update={"checkpoint": start})
    texts["elsewhere"] = texts["elsewhere"].model_dump_json()
    assert run_on_ranks(train_jobs, 1, list(texts.values())) == [[None] * len(texts)]
    return root


def evals(work: Path) -> dict[int, float]:
    return {r["step"]: r["eval_loss"] for r in read_metrics(work / "metrics.jsonl") if "eval_loss" in r}


def facts(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((work / "done.json").read_bytes())["facts"]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def test_the_best_weights_are_the_final_ones(trained: Path) -> None:
    for kind in ("best", "lora, best"):
        work = trained / kind
        best = min(evals(work), key=evals(work).__getitem__)
        assert 1 < best < max(evals(work)), "the loss has a lowest point between the ends"
        assert facts(work)["weights_of_step"] == best
        assert facts(work)["eval_loss"] == evals(work)[best]
        final, kept = weights(work / "final/model"), weights(work / f"checkpoint-{best}")
        assert all(torch.equal(final[name], kept[name]) for name in kept)
    assert evals(trained / "best") == evals(trained / "whole")
    assert {path.name for path in (trained / "best").glob("checkpoint-*")} == {
        f"checkpoint-{facts(trained / 'best')['weights_of_step']}"
    }


def test_a_training_that_gets_no_better_ends(trained: Path) -> None:
    whole, early = evals(trained / "whole"), evals(trained / "early")
    best = next(s for s in whole if whole[s] <= min(whole[n] for n in (s, s + 1, s + 2)))
    assert early == {step: whole[step] for step in range(1, best + 3)}
    assert facts(trained / "early")["steps"] == best + 2
    assert facts(trained / "early")["weights_of_step"] == best
    resumed = trained / "early, stopped"
    assert evals(resumed) == early
    assert facts(resumed)["losses_digest"] == facts(trained / "early")["losses_digest"]


def test_checkpoints_with_the_model_only(trained: Path) -> None:
    work = trained / "only models"
    assert {path.name for path in (work / "checkpoint-2").iterdir()} >= {"model.safetensors", "complete.json"}
    assert not (work / "checkpoint-2/optimizer.pt").exists()
    assert newest_checkpoint(work, "k") is None, "no training goes on from it"
    resumed = trained / "only models, stopped"
    assert (resumed / "checkpoint-1/optimizer.pt").exists(), "SIGTERM writes what a training goes on from"
    assert losses(resumed) == losses(work)


def test_a_training_starts_from_a_checkpoint_of_another(trained: Path) -> None:
    assert losses(trained / "elsewhere") == losses(trained / "whole")[4:]


def test_the_key_knows_the_checkpoint_and_what_picks_the_weights(bench: Bench, trained: Path) -> None:
    def key(**keys: Any) -> dict[str, Any]:
        return key_inputs(bench.context(bench.run(val_set_size=0.1, **keys)), CPU)

    assert key(eval_steps=1) == key()
    assert key(eval_steps=1, load_best_model_at_end=True) != key(load_best_model_at_end=True)
    first, second = trained / "whole/checkpoint-4", trained / "whole/checkpoint-5"
    assert key(resume_from_checkpoint=str(first)) != key(resume_from_checkpoint=str(second)) != key()
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint = .*nowhere.*: there is no checkpoint"):
        key(resume_from_checkpoint="nowhere")
    with pytest.raises(ConfigError, match="it is of step 4, and this training has 4 steps"):
        check_steps_left(first, 4)


def test_an_unresumable_checkpoint_is_kept_and_an_older_one_found(tmp_path: Path) -> None:
    for step, resumable in ((1, True), (2, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
        seal(folder, key="k", step=step, resumable=resumable)
    assert newest_checkpoint(tmp_path, "k") == tmp_path / "checkpoint-1"
    assert (tmp_path / "checkpoint-2").exists()
