"""`overrides_of_model_config` (axolotl's `model_config`): a base model with other values in its config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import load_run
from stages.artifacts import FileDigests
from stages.base_model import MODEL_FILES, TOKENIZER_FILES, find_model, find_tokenizer
from tests.matrix import LENGTHS, SEQUENCES, losses, matrix_job, train_jobs
from tests.ranks import run_on_ranks
from tests.test_config import GOOD
from tests.train_data import Bench

SCALED = {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 1024}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("overrides"), LENGTHS, SEQUENCES)


def test_axolotl_s_name_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(GOOD + "model_config:\n  output_router_logits: true\n")
    loaded = load_run(tmp_path / "run.yaml")
    assert loaded.run.overrides_of_model_config == {"output_router_logits": True}
    assert loaded.notices[0].key == "model_config"


def test_the_model_is_another_one_and_the_tokens_are_the_same(bench: Bench, tmp_path: Path) -> None:
    digests = FileDigests(tmp_path / "digests.sqlite")
    plain, changed = bench.run(), bench.run(overrides_of_model_config=SCALED)
    assert find_model(plain).content(MODEL_FILES, digests) != find_model(changed).content(MODEL_FILES, digests)
    tokenizer = find_tokenizer(plain).content(TOKENIZER_FILES, digests)
    assert find_tokenizer(changed).content(TOKENIZER_FILES, digests) == tokenizer

    folder = find_model(changed).folder(MODEL_FILES)
    original = json.loads((bench.model / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == {**original, **SCALED}
    names = {path.name for path in bench.model.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes() == (bench.model / name).read_bytes() for name in names - {"config.json"})
    assert json.loads((bench.model / "config.json").read_text()) == original


def test_training_and_its_result_have_them(bench: Bench, tmp_path: Path) -> None:
    runs = {"plain": {}, "scaled": SCALED, "typo": {"rms_norm_epps": 1e-5}}
    jobs = []
    for name, values in runs.items():
        job = matrix_job(bench, tmp_path / name, overrides_of_model_config=values)
        jobs.append(job.model_copy(update={"model": find_model(job.run).folder(MODEL_FILES)}))
    [ends] = run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs])
    assert ends[:2] == [None, None]
    assert "overrides_of_model_config.rms_norm_epps" in str(ends[2])
    assert "rms_norm_eps" in str(ends[2]).partition("near it")[2]
    assert losses(tmp_path / "scaled")[0] != losses(tmp_path / "plain")[0]
    config = json.loads((tmp_path / "scaled/final/model/config.json").read_text())
    assert config["rope_parameters"]["factor"] == 4.0
