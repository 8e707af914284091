"""`shards`, `shards_idx` and `weight`: the rows that `datasets` itself gives, read in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow.parquet as pq
import pytest

from stages.artifacts import Artifact
from stages.fetch import STAGE, shards
from stages.stage import run_stage
from stages.tokenize.shard import numbered_rows
from tests.test_fetch import Bench

LINES = [orjson.dumps({"n": n}) for n in range(101)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    bench = Bench(tmp_path)
    bench.write("a.jsonl", b"\n".join(LINES))
    return bench


def numbers(artifact: Artifact) -> list[int]:
    """Return the numbers of the rows, each of which says the same itself."""
    found = []
    for shard in artifact.facts["datasets"][0]["shards"]:
        for number, raw in numbered_rows(artifact.path(shard["file"]), shard["first_row"]):
            assert orjson.loads(raw)["n"] == number
            found.append(number)
    return found


@pytest.mark.parametrize(
    "keys", [{"shards": 4}, {"shards": 4, "shards_idx": 3}, {"weight": 0.29}, {"shards": 3, "weight": 0.5}]
)
@pytest.mark.parametrize("split", ["train", "train[10:90]", "train[:20]+train[50:]"])
def test_the_rows_are_those_that_datasets_draws(bench: Bench, keys: dict[str, Any], split: str) -> None:
    drawn = datasets.load_dataset(
        "json", data_files=str(bench.data / "a.jsonl"), split=split, cache_dir=str(bench.folder / "hf")
    )
    if "shards" in keys:
        drawn = drawn.shuffle(seed=42).shard(keys["shards"], keys.get("shards_idx", 0))
    if "weight" in keys:
        drawn = drawn.shuffle(seed=42).select(range(int(keys["weight"] * len(drawn))))
    made = bench.fetch({"path": bench.data / "a.jsonl", "split": split, **keys})
    assert numbers(made) == sorted(drawn["n"])
    assert made.facts["datasets"][0]["rows"] == len(drawn)


def test_a_draw_is_in_the_key_and_goes_on_after_a_crash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = {"path": bench.data / "a.jsonl", "weight": 0.5}
    key = STAGE.key_inputs(bench.context(dataset), {})
    assert key != STAGE.key_inputs(bench.context({"path": bench.data / "a.jsonl"}), {})
    assert "sampling" not in STAGE.key_inputs(bench.context({"path": bench.data / "a.jsonl"}), {})["datasets"][0]
    whole = bench.fetch(dataset)
    real, written = shards.write_rows, []

    def dying(*arguments: Any) -> None:
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(shards, "write_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        run_stage(STAGE, bench.context(dataset), {}, bench.store, refresh=True)
    again = run_stage(STAGE, bench.context(dataset), {}, bench.store, refresh=True).artifact
    assert again.digest == whole.digest
    assert numbers(again) == numbers(whole)


def test_without_a_draw_shards_hold_rows_alone(bench: Bench) -> None:
    made = bench.fetch({"path": bench.data / "a.jsonl"})
    assert pq.read_schema(made.path(made.facts["datasets"][0]["shards"][0]["file"])).names == ["row"]
    assert numbers(made) == list(range(101))


@pytest.mark.parametrize("keys", [{}, {"weight": 0.5}, {"split": "train[15:]"}])
def test_it_is_known_which_file_a_row_is_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """Also when an earlier try was ended in the middle: each file's rows say its name."""
    for number in range(4):
        rows = [orjson.dumps({"n": 10 * number + n, "of": f"{number}.jsonl"}) for n in range(10 if number != 1 else 1)]
        bench.write(f"many/{number}.jsonl", b"\n".join(rows))
    dataset, real, written = {"path": bench.data / "many", **keys}, shards.write_rows, list[int]()

    def dying(*arguments: Any) -> None:
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(shards, "write_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        bench.fetch(dataset)
    made = bench.fetch(dataset)
    files = shards.files_of(made)[0]
    for shard in made.facts["datasets"][0]["shards"]:
        for number, raw in numbered_rows(made.path(shard["file"]), shard["first_row"]):
            assert Path(shards.file_of_row(files, number) or "").name == orjson.loads(raw)["of"]
