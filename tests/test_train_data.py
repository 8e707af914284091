"""Batches, by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.artifacts import FileDigests, Store
from stages.tokens import Packs, TokenRows
from stages.train.data import Batches, BatchForm, RankPasses, eval_passes
from stages.train.schedule import Schedule
from tests.tiny import build_tokenizer
from tests.train_data import Row, packs_of, write_tokens

A: Row = ([10, 11, 12], [False, True, True])
B: Row = ([20, 21], [True, True])
C: Row = ([30, 31, 32, 33, 34, 35], [False, False, True, True, True, True])
X, P = -100, 3


@pytest.fixture
def token_rows(tmp_path: Path) -> TokenRows:
    store = Store(tmp_path / "store", FileDigests(tmp_path / "digests.sqlite"))
    return TokenRows(write_tokens(store, [A, B, C], build_tokenizer(tmp_path / "tokenizer")))


def batch(
    rows: TokenRows, form: BatchForm, packs: Packs | None = None, wanted: tuple[int, ...] = (0, 1)
) -> dict[str, list]:  # type: ignore[type-arg]
    batches = Batches(rows, packs or packs_of([[0, 1], [2]], [A, B, C]), form)
    found = batches.__getitems__(wanted)
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}


def test_samples_start_at_position_zero_and_first_tokens_and_padding_are_no_labels(token_rows: TokenRows) -> None:
    assert batch(token_rows, BatchForm(pad_id=P)) == {
        "input_ids": [[10, 11, 12, 20, 21, P, P, P], [30, 31, 32, 33, 34, 35, P, P]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 5, 0, 1]],
        "labels": [[X, 11, 12, X, 21, X, X, X], [X, X, 32, 33, 34, 35, X, X]],
    }


def test_flat_form_lays_all_sequences_in_one_row(token_rows: TokenRows) -> None:
    flat = batch(token_rows, BatchForm(pad_id=P, flat=True))
    assert flat["input_ids"] == [[10, 11, 12, 20, 21, 30, 31, 32, 33, 34, 35, P, P, P, P, P]]
    assert flat["position_ids"] == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]]
    assert flat["labels"] == [[X, 11, 12, X, 21, X, X, 32, 33, 34, 35, X, X, X, X, X]]
    assert flat["cu_seq_lens_q"] == flat["cu_seq_lens_k"] == [0, 3, 5, 11, 16]
    assert flat["max_length_q"] == flat["max_length_k"] == 6


def test_a_fixed_width_and_a_row_without_a_sequence(token_rows: TokenRows) -> None:
    padded = batch(token_rows, BatchForm(pad_id=P, width=6), wanted=(1, -1))
    assert padded["input_ids"] == [[30, 31, 32, 33, 34, 35], [P] * 6]
    assert padded["position_ids"] == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert padded["labels"][1] == [X] * 6


def test_a_slice_of_a_row_is_a_sample_of_its_own(token_rows: TokenRows) -> None:
    offsets, rows = np.array([0, 2], np.int64), np.array([2, 2], np.int64)
    packs = Packs(offsets, rows, starts=np.array([0, 3], np.int32), lengths=np.array([3, 3], np.int32))
    cut = batch(token_rows, BatchForm(pad_id=P, width=6), packs, (0,))
    assert cut["position_ids"] == [[0, 1, 2, 0, 1, 2]]
    assert cut["labels"] == [[X, X, 32, X, 34, 35]]


def test_processes_share_a_step_and_its_empty_rows_come_last() -> None:
    common = {"warmup_steps": 0, "logging_steps": 1, "saves": frozenset(), "evals": frozenset(), "seed": 1}
    common |= {"costs": np.ones(11), "in_order": False}
    schedule = Schedule(sequences=11, batch=8, steps_per_epoch=2, steps=2, **common)  # type: ignore[arg-type]
    ranks = [list(RankPasses(schedule, passes_per_step=2, rank=rank, world_size=2)) for rank in (0, 1)]
    first, second = (step.tolist() for step in schedule.step_sequences())
    assert [ranks[0][:2], ranks[1][:2]] == [
        [[first[0], first[3]], [first[4], first[7]]],
        [[first[1], first[2]], [first[5], first[6]]],
    ]
    assert [ranks[0][2:], ranks[1][2:]] == [[[second[0], -1], [-1, -1]], [[second[1], second[2]], [-1, -1]]]


def test_evaluation_shares_all_sequences_in_equally_many_passes() -> None:
    ranks = [list(eval_passes(5, 2, rank=rank, world_size=2)) for rank in (0, 1)]
    assert ranks == [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]
