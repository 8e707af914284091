"""The pack stage: what is kept, what is rejected and why, what is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.errors import ConfigError, DataError
from stages.pack import STAGE
from stages.stage import Context, Stage, Upstream, run_stage
from stages.tokens import TOKEN_SCHEMA, Packs, TokenRows, write_arrow

Row = tuple[int, slice]
"""(tokens, which of them are trained)"""
ALL = slice(None)


class Bench:
    """A store with tokenized rows in it."""

    def __init__(self, folder: Path, shards: list[list[Row]]) -> None:
        self.digests = FileDigests(folder / "digests.sqlite")
        self.store = Store(folder / "store", self.digests)
        tokenize = Stage("tokenize", 1, (), lambda context, upstream: {}, lambda c, u, writer: _tokens(shards, writer))
        self.tokens = run_stage(tokenize, self.context(), {}, self.store).artifact

    def context(self, **keys: Any) -> Context:
        config = {
            "base_model": "base",
            "datasets": [{"path": "data/a.jsonl", "type": "alpaca"}, {"path": "data/b.jsonl", "type": "alpaca"}],
            "learning_rate": 1e-4,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "sequence_len": 10,
            "sample_packing": True,
            **keys,
        }
        return Context(RunConfig.model_validate(config), self.digests)

    @property
    def upstream(self) -> Upstream:
        return {"tokenize": self.tokens}

    def pack(self, **keys: Any) -> Artifact:
        return run_stage(STAGE, self.context(**keys), self.upstream, self.store).artifact

    def key(self, **keys: Any) -> dict[str, Any]:
        return STAGE.key_inputs(self.context(**keys), self.upstream)


def _tokens(shards: list[list[Row]], writer: Any) -> dict[str, Any]:
    """Write shard i as data set i, its rows numbered 0, 10, 20, ..."""
    facts = []
    for dataset, rows in enumerate(shards):
        masks = [np.zeros(length, bool) for length, _ in rows]
        for mask, (_, trained) in zip(masks, rows, strict=True):
            mask[trained] = True
        columns = {
            "input_ids": [list(range(length)) for length, _ in rows],
            "trained": [mask.tolist() for mask in masks],
            "dataset": [dataset] * len(rows),
            "row": [10 * number for number in range(len(rows))],
        }
        with writer.create(f"{dataset}.arrow") as draft:
            write_arrow(draft.path, pa.table(columns, schema=TOKEN_SCHEMA))
        facts.append({"file": f"{dataset}.arrow", "dataset": dataset, "rows": len(rows), "tokens": 0})
    return {"shards": facts, "rows_read": sum(map(len, shards)), "rejected": {}}


def sequences(artifact: Artifact, side: str) -> list[list[int]]:
    packs = Packs.read(artifact.path(f"{side}.arrow"))
    pairs = zip(packs.offsets[:-1], packs.offsets[1:], strict=True)
    return [packs.rows[begin:end].tolist() for begin, end in pairs]


def rejected(artifact: Artifact) -> list[tuple[int, int, str]]:
    lines = artifact.path("rejected.jsonl").read_bytes().splitlines()
    return [(record["dataset"], record["row"], record["reason"]) for record in map(orjson.loads, lines)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    first = [(6, ALL), (4, slice(2, None)), (1, ALL), (12, slice(9, None)), (5, slice(0, 0)), (3, slice(0, 1))]
    second = [(12, slice(11, None)), (7, slice(3, None)), (3, slice(1, None)), (10, slice(5, None))]
    return Bench(tmp_path, [first, second])


def test_rows_that_cannot_be_trained_on_are_rejected_with_their_reason(bench: Bench) -> None:
    made = bench.pack()
    assert rejected(made) == [
        (0, 20, "too_short"),
        (0, 30, "too_long"),
        (0, 40, "nothing_trained"),
        (0, 50, "nothing_trained"),  # trained on its first token only, which nothing predicts
        (1, 0, "too_long"),
    ]
    assert made.facts["rejected"] == {"too_long": 2, "too_short": 1, "nothing_trained": 2, "duplicate": 0}
    record = orjson.loads(made.path("rejected.jsonl").read_bytes().splitlines()[1])
    assert record["path"] == "data/a.jsonl"
    assert record["detail"] == "12 tokens, more than sequence_len (10)"


def test_the_kept_rows_fill_sequences(bench: Bench) -> None:
    made = bench.pack(shuffle_merged_datasets=False)
    assert sequences(made, "train") == [[9], [7, 8], [0, 1]]
    assert made.facts["train"] == {"sequences": 3, "rows": 5, "tokens": 30, "trained_tokens": 19, "efficiency": 1.0}
    assert made.facts["eval"] == {"sequences": 0, "rows": 0, "tokens": 0, "trained_tokens": 0, "efficiency": 0.0}
    assert sequences(made, "eval") == []


def test_truncation_cuts_the_end_and_never_leaves_a_row_without_a_trained_token(bench: Bench) -> None:
    made = bench.pack(excess_length_strategy="truncate", shuffle_merged_datasets=False)
    assert (1, 0, "too_long") in rejected(made)  # its only trained token is the twelfth
    packs = Packs.read(made.path("train.arrow"))
    assert dict(zip(packs.rows.tolist(), packs.lengths.tolist(), strict=True))[3] == 10
    assert made.facts["truncated"] == 1
    rows = TokenRows(bench.tokens)
    for row, start, length in zip(packs.rows, packs.starts, packs.lengths, strict=True):
        _, labels = rows.slice(int(row), int(start), int(length))
        assert (labels[1:] != -100).any()


def test_raise_names_the_long_rows(bench: Bench) -> None:
    with pytest.raises(
        DataError, match=r"2 of 10 rows .*longest has 12: data/a.jsonl row 30: 12 tokens; data/b.jsonl row 0"
    ):
        bench.pack(excess_length_strategy="raise")
    assert bench.pack(excess_length_strategy="raise", sequence_len=12).facts["rejected"]["too_long"] == 0


def test_without_packing_each_row_is_a_sequence(bench: Bench) -> None:
    assert sequences(bench.pack(sample_packing=False, shuffle_merged_datasets=False), "train") == [
        [0],
        [1],
        [7],
        [8],
        [9],
    ]


def test_rows_are_packed_in_their_order_where_that_is_asked_for(bench: Bench) -> None:
    assert sequences(bench.pack(curriculum_sampling=True), "train") == [[0, 1], [7, 8], [9]], "nor are they shuffled"
    alone = bench.pack(sample_packing_sequentially=True, shuffle_merged_datasets=False, sequence_len=12)
    flat = [row for sequence in sequences(alone, "train") for row in sequence]
    assert flat == sorted(flat)
    plain = bench.key()
    assert "packs_in_order" not in plain
    assert bench.key(sample_packing_sequentially=True) == {**plain, "packs_in_order": True}


def test_evaluation_is_packed_as_eval_sample_packing_says(bench: Bench) -> None:
    keys = {"shuffle_merged_datasets": False, "val_set_size": 2, "sequence_len": 20}
    assert sequences(bench.pack(**keys), "eval") == [[9, 8]]
    assert sequences(bench.pack(**keys, eval_sample_packing=False), "eval") == [[8], [9]]


@pytest.mark.parametrize(("size", "held_out"), [(0, 0), (3, 3), (0.2, 20), (0.07, 7), (0.001, 1), (0.015, 2)])
def test_the_held_out_rows_are_the_tail(tmp_path: Path, size: float, held_out: int) -> None:
    bench = Bench(tmp_path, [[(5, ALL)] * 100])
    made = bench.pack(val_set_size=size, shuffle_merged_datasets=False, sample_packing=False)
    assert sequences(made, "eval") == [[row] for row in range(100 - held_out, 100)]
    assert sequences(made, "train") == [[row] for row in range(100 - held_out)]


def test_the_seed_alone_decides_the_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [[(5, ALL)] * 40, [(5, ALL)] * 40])
    keys = {"val_set_size": 10, "sample_packing": False}
    first, same, other = (bench.pack(**keys, seed=seed, sequence_len=n) for seed, n in ((1, 10), (1, 11), (2, 10)))
    assert sequences(first, "train") == sequences(same, "train")
    assert sequences(first, "eval") != sequences(other, "eval")
    everything = sorted(row for side in ("train", "eval") for (row,) in sequences(first, side))
    assert everything == list(range(80))
    assert sequences(first, "train") != sorted(sequences(first, "train"))


@pytest.mark.parametrize("size", [5, 7, 0.999])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(bench: Bench, size: float) -> None:
    with pytest.raises(ConfigError, match=r"val_set_size = .* of 5 rows would be held out"):
        bench.pack(val_set_size=size)


def test_no_row_left_is_an_error_with_the_counts(bench: Bench) -> None:
    with pytest.raises(
        DataError, match=r"none of the 10 tokenized rows .*: 9 too_long, 1 too_short. For too_long raise"
    ):
        bench.pack(sequence_len=2)


def test_the_key_has_what_is_read_and_nothing_else(bench: Bench) -> None:
    base = bench.key()
    for same in ({"learning_rate": 1.0}, {"output_dir": "x"}, {"dataset_num_proc": 3}, {"eval_sample_packing": False}):
        assert bench.key(**same) == base
    assert bench.key(seed=1, shuffle_merged_datasets=False) == bench.key(seed=2, shuffle_merged_datasets=False)
    changes: list[dict[str, Any]] = [
        {"sequence_len": 11},
        {"seed": 1},
        {"val_set_size": 1},
        {"sample_packing": False},
        {"excess_length_strategy": "truncate"},
        {"min_sample_len": 3},
        {"shuffle_merged_datasets": False},
        {"val_set_size": 1, "eval_sample_packing": False},
    ]
    keys = [bench.key(**change) for change in [{}, *changes]]
    assert all(keys.count(key) == 1 for key in keys)


def test_the_content_does_not_depend_on_where_the_data_lies(bench: Bench) -> None:
    moved = [{"path": "elsewhere/a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"}]
    here = bench.pack()
    there = run_stage(STAGE, bench.context(datasets=moved), bench.upstream, bench.store, refresh=True).artifact
    assert there.digest == here.digest
    assert b"elsewhere/a.jsonl" in there.path("rejected.jsonl").read_bytes()
