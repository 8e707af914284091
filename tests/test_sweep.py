"""Sweeps: many trainings on one preprocessing, compared."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from configs.errors import ConfigError
from flows.sweep.grid import grid
from tests.project import Project
from tests.store_servers import ENVIRONMENT, serving

pytestmark = pytest.mark.timeout(600)


def test_a_sweep_is_every_combination_and_brackets_hold_together() -> None:
    points = grid(["lora_r=8,16", "lora_target_modules=[q_proj,v_proj]", "learning_rate=1e-4,2e-4,3e-4"])
    assert [tuple(point.values.values()) for point in points] == [
        (rank, rate) for rank in ("8", "16") for rate in ("1e-4", "2e-4", "3e-4")
    ]
    assert len({point.name for point in points}) == 6
    assert all("lora_target_modules=[q_proj,v_proj]" in point.overrides for point in points)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "varies at least one key"),
        (["seed=1"], "varies"),
        (["seed=1,1"], "twice"),
        (["seed=" + "1,".join(map(str, range(300)))], "256"),
    ],
)
def test_what_is_no_sweep_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        grid(overrides)


def test_every_wrong_combination_is_told_before_anything_runs(tmp_path: Path) -> None:
    project = Project.create(tmp_path)
    done = project.sft("sweep", "run.yaml", "lora_r=0,-1,8", "val_set_size=a,b", expect=2)
    assert "lora_r" in done.err
    assert "val_set_size" in done.err
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_runs_share_the_preprocessing_and_a_failed_one_does_not_stop_the_rest(tmp_path: Path) -> None:
    project = Project.create(tmp_path, num_epochs=1)
    arguments = ("sweep", "run.yaml", "learning_rate=0.001,0.02", "lora_target_modules=[q_proj],[nowhere]")
    done = project.sft(*arguments, "lora_target_linear=false", "--parallel", "2", "--json", expect=1, seconds=500)
    rows = orjson.loads((tmp_path / "out" / "sweep.json").read_bytes())["runs"]
    assert done.json()["runs"] == rows
    assert "nowhere" in rows[-1]["error"]
    assert [row["status"] for row in rows] == ["ran", "ran", "failed", "failed"]
    assert rows[0]["eval_loss"] <= rows[1]["eval_loss"]
    assert {len(list((tmp_path / "store" / stage).iterdir())) for stage in ("fetch", "tokenize", "pack")} == {1}
    assert len(list((tmp_path / "store" / "train").iterdir())) == 2
    html = (tmp_path / "out" / "sweep.html").read_text()
    assert "0.02" in html
    assert "http" not in html.replace("http-equiv", "")


@pytest.mark.slow
def test_a_sweep_with_its_store_in_a_bucket_is_compared_too(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    with serving("s3", tmp_path / "s3") as server:
        options = {"endpoint_url": server.url}
        project = Project.create(
            tmp_path / "project", num_epochs=1, artifact_store=server.place().address, artifact_store_options=options
        )
        project.environment |= {**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        rows = project.sft("sweep", "run.yaml", "learning_rate=0.001,0.02", "--json", seconds=500).json()["runs"]
    assert [row["values"]["learning_rate"] for row in rows] == ["0.02", "0.001"]
    assert all(row["steps"] and row["health"] for row in rows)
