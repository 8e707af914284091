"""Input ids and labels of axolotl itself, bit for bit, through the real stage."""

from __future__ import annotations

from collections.abc import Callable
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
RUN_KEYS = ("train_on_inputs", "eot_tokens", "sequence_len")
TEMPLATE_KEYS = ("chat_template", "chat_template_jinja")
Row = tuple[int, list[int], list[int]]

if not CASES:
    pytest.skip("no ../shared/golden", allow_module_level=True)


def load_case(name: str) -> tuple[str, dict[str, Any]]:
    """Return (what of the run's keys decides, as text, the data set with the template of its run)."""
    settings: dict[str, Any] = yaml.safe_load((GOLDEN / name / "config.yml").read_text())
    dataset = settings["datasets"][0]
    if dataset["type"] == "chat_template":
        dataset |= {key: settings[key] for key in TEMPLATE_KEYS if key in settings}
    run_keys = {key: settings[key] for key in RUN_KEYS if key in settings}
    return orjson.dumps(run_keys, option=orjson.OPT_SORT_KEYS).decode(), dataset


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Row]]:
    """Tokenize all cases that can share a run as its data sets: the tokenizer is loaded once for each run."""
    done: dict[str, list[Row]] = {}

    def tokenize_group(run_keys: str) -> None:
        names = [name for name in CASES if load_case(name)[0] == run_keys]
        settings = {
            **fetched.REQUIRED,
            **orjson.loads(run_keys),
            "base_model": str(GOLDEN.parent / "models" / "smollm2-tokenizer"),
            "datasets": [load_case(name)[1] for name in names],
            "max_rejected_ratio": 0.0,
        }
        rows = [(GOLDEN / name / "rows.jsonl").read_bytes().splitlines() for name in names]
        artifact = fetched.tokenize(tmp_path_factory.mktemp("golden"), RunConfig.model_validate(settings), *rows)
        found = fetched.tokenized_rows(artifact)
        for number, name in enumerate(names):
            done[name] = [row for dataset, *row in found if dataset == number]  # type: ignore[misc]

    def rows(name: str) -> list[Row]:
        if name not in done:
            tokenize_group(load_case(name)[0])
        return done[name]

    return rows


@pytest.mark.parametrize("name", CASES)
def test_ids_and_labels_are_those_of_axolotl(name: str, rows_of: Callable[[str], list[Row]]) -> None:
    expected = [orjson.loads(line) for line in (GOLDEN / name / "expected.jsonl").read_bytes().splitlines()]
    found = rows_of(name)
    assert [row for row, _, _ in found] == [want["row"] for want in expected]
    for (row, ids, labels), want in zip(found, expected, strict=True):
        assert ids == want["input_ids"], f"input_ids of row {row}"
        if (name, row) not in FAULTS_OF_THE_ORIGINAL:
            assert labels == want["labels"], f"labels of row {row}"
