"""Input ids and labels of axolotl itself, bit for bit, through the real stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import yaml

from configs.schema import RunConfig

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.jsonl"))
FAULTS_OF_THE_ORIGINAL = {("chat_edge", 20)}  # content equal to its internal marker: a wrong span there
SCHEMA_KEYS = frozenset(RunConfig.model_fields)


def load_run(case: Path) -> RunConfig:
    settings: dict[str, Any] = yaml.safe_load((case / "config.yml").read_text())
    settings["base_model"] = str((case / settings["base_model"]).resolve())
    known = {key: value for key, value in settings.items() if key in SCHEMA_KEYS}
    return RunConfig.model_validate({**known, "max_rejected_ratio": 0.0})


@pytest.mark.parametrize("name", CASES or [pytest.param("", marks=pytest.mark.skip(reason="no ../shared/golden"))])
def test_ids_and_labels_are_those_of_axolotl(name: str, tmp_path: Path) -> None:
    case = GOLDEN / name
    artifact = fetched.tokenize(tmp_path, load_run(case), (case / "rows.jsonl").read_bytes().splitlines())
    expected = [orjson.loads(line) for line in (case / "expected.jsonl").read_bytes().splitlines()]
    found = fetched.tokenized_rows(artifact)
    assert [row for row, _, _ in found] == [want["row"] for want in expected]
    for (row, ids, labels), want in zip(found, expected, strict=True):
        assert ids == want["input_ids"], f"input_ids of row {row}"
        if (name, row) not in FAULTS_OF_THE_ORIGINAL:
            assert labels == want["labels"], f"labels of row {row}"
