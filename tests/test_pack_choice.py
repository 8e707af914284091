"""Which rows a run uses: shuffles and splits as `datasets` has them, duplicates, shards, test sets, mixtures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_run
from stages.artifacts import Artifact
from stages.errors import ConfigError
from stages.pack.mixture import mix
from tests.test_pack import ALL, Bench, Row, rejected, sequences

TEST_SET = {"test_datasets": [{"path": "data/b.jsonl", "type": "alpaca"}]}
ONE = {"datasets": [{"path": "data/a.jsonl", "type": "alpaca"}]}
SHORT: Row = (5, ALL)
LONG: Row = (12, ALL)


def single(artifact: Artifact, side: str) -> list[int]:
    return [row for (row,) in sequences(artifact, side)]


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("size", [0.1, 7])
def test_rows_are_merged_and_split_as_the_original_does_it(
    tmp_path: Path, each: bool, together: bool, size: float
) -> None:
    """The slow way: `datasets` itself, then the rows that are too long dropped, then the tail held out."""
    shards = [[LONG if n % 7 == 3 else SHORT for n in range(count)] for count in (31, 18)]
    parts = [datasets.Dataset.from_dict({"row": rows}) for rows in (range(31), range(31, 49))]
    if each:
        parts = [part.shuffle(seed=42) for part in parts]
    whole = datasets.concatenate_datasets(parts)
    if together:
        whole = whole.shuffle(seed=42)
    lengths = [length for rows in shards for length, _ in rows]
    kept = [row for row in whole["row"] if lengths[row] <= 10]
    tail = math.ceil(size * len(kept)) if size < 1 else size
    made = Bench(tmp_path, shards).pack(
        sample_packing=False,
        shuffle_before_merging_datasets=each,
        shuffle_merged_datasets=together,
        val_set_size=size,
        seed=42,
    )
    assert single(made, "train") == kept[:-tail]
    assert single(made, "eval") == kept[-tail:]


def test_a_part_of_the_merged_rows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [[SHORT] * 10])
    shuffled = datasets.Dataset.from_dict({"row": range(10)}).shuffle(seed=42)
    for index in range(3):
        made = bench.pack(**ONE, sample_packing=False, dataset_shard_num=3, dataset_shard_idx=index)
        assert single(made, "train") == shuffled.shard(3, index)["row"]
        assert made.facts["left_out"] == {"dataset_shard_num": 10 - len(single(made, "train"))}


def test_test_datasets_are_evaluated_and_nothing_else(bench: Bench) -> None:
    keys = {**ONE, **TEST_SET, "sample_packing": False, "shuffle_merged_datasets": False}
    made = bench.pack(**keys, eval_sequence_len=12)
    assert single(made, "train") == [0, 1]
    assert single(made, "eval") == [6, 7, 8, 9]  # row 6 has 12 tokens
    assert single(bench.pack(**keys), "eval") == [7, 8, 9]
    assert made.facts["datasets"][1] == {"eval": {"rows": 4, "tokens": 32, "trained_tokens": 1 + 4 + 2 + 5}}


def test_a_duplicate_is_used_once_and_never_trained_if_it_is_in_a_test_set(tmp_path: Path) -> None:
    """Rows of the bench have the ids 0, 1, 2, ...: those of one length and mask are alike."""
    shards = [[(5, ALL), (6, ALL), (5, ALL), (5, slice(2, None)), (7, ALL)], [(7, ALL), (8, ALL), (8, ALL)]]
    keys: dict[str, Any] = {"sample_packing": False, "shuffle_merged_datasets": False}
    bench = Bench(tmp_path, shards)
    both = bench.pack(**keys, dataset_exact_deduplication=True)
    assert single(both, "train") == [0, 1, 3, 4, 6]
    assert rejected(both) == [(0, 20, "duplicate"), (1, 0, "duplicate"), (1, 20, "duplicate")]
    detail = both.path("rejected.jsonl").read_text().splitlines()[1]
    assert "the same tokens and mask as data/a.jsonl row 40" in detail
    apart = bench.pack(**keys, **ONE, **TEST_SET, dataset_exact_deduplication=True)
    assert single(apart, "train") == [0, 1, 3]
    assert single(apart, "eval") == [5, 6]
    assert single(bench.pack(**keys), "train") == list(range(8))


def test_rows_that_are_alike_only_after_the_cut_are_duplicates(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [[(12, ALL), (13, ALL), (9, ALL)]])
    keys = {"excess_length_strategy": "truncate", "shuffle_merged_datasets": False, "sample_packing": False}
    assert single(bench.pack(**ONE, **keys, dataset_exact_deduplication=True), "train") == [0, 2]


def weighted(first: float, second: float) -> dict[str, Any]:
    paths = ("data/a.jsonl", "data/b.jsonl")
    return {
        "datasets": [{"path": p, "type": "alpaca", "weight": w} for p, w in zip(paths, (first, second), strict=True)]
    }


def test_a_mixture_of_rows_and_one_of_trained_tokens(tmp_path: Path) -> None:
    """100 rows with 2 trained tokens, 100 with 6: half and half is 100 to 100 rows, or 99 to 33."""
    bench = Bench(tmp_path, [[(8, slice(6, None))] * 100, [(8, slice(2, None))] * 100])
    rows = bench.pack(**weighted(3, 1), mixture="rows").facts
    assert [side["train"]["rows"] for side in rows["datasets"]] == [100, 33]
    tokens = bench.pack(**weighted(1, 1), mixture={"unit": "trained_tokens"}).facts
    assert [side["train"]["trained_tokens"] for side in tokens["datasets"]] == [200, 198]
    assert tokens["left_out"] == {"mixture": 67}
    assert tokens["train"]["rows"] == 133


def test_a_mixture_that_repeats_uses_every_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [[SHORT] * 40, [SHORT] * 10])
    made = bench.pack(**weighted(1, 1), mixture={"unit": "rows", "repeat": True}, sample_packing=False, val_set_size=5)
    used = single(made, "train")
    counts = np.bincount(used, minlength=50)
    assert counts[:40].sum() == counts[40:].sum()
    assert set(used) | set(single(made, "eval")) == set(range(50))
    assert not set(used) & set(single(made, "eval"))
    assert counts[40:].max() - counts[40:][counts[40:] > 0].min() <= 1
    assert made.facts["left_out"] == {"mixture": 0}


def test_a_mixture_with_a_data_set_without_rows_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [[SHORT] * 4, [LONG]])
    with pytest.raises(ConfigError, match=r"datasets.1 = data/b.jsonl: no row of this data set is left"):
        bench.pack(mixture="rows")


@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    st.booleans(),
)
def test_every_mixture_is_as_near_to_its_proportions_as_rows_allow(
    amounts: list[list[int]], weights: list[float], repeat: bool
) -> None:
    """Against going through the rows one by one until the next one would lead further away."""
    weights = weights[: len(amounts)]
    chosen = mix([np.array(amount) for amount in amounts], weights, repeat=repeat)
    reach = [sum(amount) / weight for amount, weight in zip(amounts, weights, strict=True)]
    scale = max(reach) if repeat else min(reach)
    for amount, weight, positions in zip(amounts, weights, chosen, strict=True):
        wanted, got, taken = weight * scale, 0, 0
        while abs(got + amount[taken % len(amount)] - wanted) < abs(got - wanted) - 1e-6:
            got, taken = got + amount[taken % len(amount)], taken + 1
        assert abs(len(positions) - max(taken, 1)) <= (1 if taken else 0)
        assert (
            abs(sum(amount[p] for p in positions) - wanted) <= max(abs(got - wanted), min(amount)) + 1e-5 or taken == 0
        )
        assert positions.tolist() == [n % len(amount) for n in range(len(positions))]
        if not repeat:
            assert len(positions) <= len(amount)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    first: list[Row] = [
        (6, ALL),
        (4, slice(2, None)),
        (1, ALL),
        (12, slice(9, None)),
        (5, slice(0, 0)),
        (3, slice(0, 1)),
    ]
    second: list[Row] = [(12, slice(11, None)), (7, slice(3, None)), (3, slice(1, None)), (10, slice(5, None))]
    return Bench(tmp_path, [first, second])


def test_the_yaml_of_the_page_on_data_sets_is_understood(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "infra" / "docs" / "data-sets.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rest = "base_model: base\nlearning_rate: 0.0001\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\n"
    data = blocks[0][blocks[0].index("datasets:") :]
    runs = []
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(rest + (block if "datasets:" in block else block + data))
        runs.append(load_run(tmp_path / f"{number}.yaml").run)
    assert [(run.mixture.unit, run.mixture.repeat) for run in runs if run.mixture] == [
        ("trained_tokens", False),
        ("trained_tokens", True),
    ]
    assert [dataset.weight for dataset in runs[0].datasets] == [3, 1]
