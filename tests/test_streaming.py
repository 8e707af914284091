"""`streaming` and `pretraining_dataset`: one bounded pass over the data, as far as `max_steps` goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import tiny
import yaml

from configs.errors import ConfigError
from configs.load import load_run
from configs.schema import RunConfig
from stages.artifacts import FileDigests, Store
from stages.fetch import STAGE
from stages.fetch.sampling import bytes_wanted
from stages.stage import Context, run_stage
from tests.test_config import GOOD


def load(folder: Path, **keys: Any) -> RunConfig:
    tiny.build_tokenizer(folder / "base")
    base = {key: value for key, value in yaml.safe_load(GOOD).items() if key != "datasets"}
    (folder / "run.yaml").write_text(yaml.safe_dump({**base, "base_model": "base", **keys}))
    return load_run(folder / "run.yaml").run


def test_a_pretraining_dataset_is_text_that_is_read_as_far_as_the_steps_go(tmp_path: Path) -> None:
    line = orjson.dumps({"body": "word " * 400}) + b"\n"
    (tmp_path / "data.jsonl").write_bytes(line * 15_000)  # 30 MB: several shards
    given = {"path": "data.jsonl", "text_column": "body", "type": "pretrain"}
    launcher = {"processes": 1}
    run = load(tmp_path, pretraining_dataset=[given], max_steps=5, launcher=launcher)
    [dataset] = run.datasets
    assert (dataset.type, dataset.field, run.streaming) == ("completion", "body", True)
    assert bytes_wanted(run) == 5 * run.sequences_per_pass * run.passes_per_step * run.sequence_len * 8
    assert RunConfig.model_validate_json(run.model_dump_json()) == run
    rows = []
    for steps in (5, 10**6):
        run = load(tmp_path, pretraining_dataset=given, max_steps=steps, launcher=launcher)
        context = Context(run, FileDigests(tmp_path / "digests.sqlite"))
        artifact = run_stage(STAGE, context, {}, Store(tmp_path / "store")).artifact
        rows.append(artifact.facts["datasets"][0]["rows"])
    assert 0 < rows[0] < rows[1] == 15_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pretraining_dataset": "data.jsonl"}, "et max_steps: 1000"),
        ({"datasets": [{"path": "x", "type": "alpaca"}], "streaming": True}, "et max_steps: 1000"),
        ({"pretraining_dataset": [{"path": "x", "type": "alpaca"}], "max_steps": 1}, "only text is read here"),
        ({"pretraining_dataset": [{"path": "x", "skip": 5}], "max_steps": 1}, "train[1000:]"),
        (
            {"pretraining_dataset": "x", "datasets": [{"path": "x", "type": "alpaca"}], "max_steps": 1},
            "exclude each other",
        ),
    ],
)
def test_what_cannot_be_read_so(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, **keys)
    assert message in str(error.value)
