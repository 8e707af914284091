"""Which of the usable rows a run trains on and evaluates on: merged, without duplicates, split, and in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema import RunConfig
from stages.errors import ConfigError, DataError, Problem
from stages.pack.duplicates import duplicates
from stages.pack.mixture import mix
from stages.pack.order import held_out_rows, merged
from stages.pack.selection import Selection
from stages.shuffling import Numbers, part
from stages.tokens import TokenRows


@dataclass(frozen=True)
class Choice:
    """Which rows are used, in their order.

    Attributes:
        selection: the verdicts, with duplicates.
        train: (rows,) for training; with a mixture a row may stand there several times.
        held_out: (rows,) for evaluation.
        repeats: duplicate -> the row that it repeats.
        left_out: how many usable rows no part or proportion asks for, by the key that says so.
    """

    selection: Selection
    train: Numbers
    held_out: Numbers
    repeats: dict[int, int]
    left_out: dict[str, int]


def choose(rows: TokenRows, selection: Selection, run: RunConfig) -> Choice:
    """Return which rows are used.

    Raises:
        ConfigError: val_set_size leaves no row to train on, or a mixture has a data set without rows.
        DataError: no row can be trained on.
    """
    train, test = _merged(rows, selection, run)
    repeats: dict[int, int] = {}
    if run.dataset_exact_deduplication:  # test rows first: evaluations stay comparable, training learns none of them
        repeats = duplicates(rows, selection.lengths, test, train)
        train, test = (side[~np.isin(side, list(repeats))] for side in (train, test))
    left_out = {}
    if run.dataset_shard_num is not None:
        left_out["dataset_shard_num"] = len(train)
        train = part(train, run.dataset_shard_num, run.dataset_shard_idx)
        left_out["dataset_shard_num"] -= len(train)
    train, held_out = _split(train, selection, run)
    if run.mixture is not None:
        left_out["mixture"] = len(train)
        train = _mixed(rows.datasets, train, selection, run)
        left_out["mixture"] -= len(np.unique(train))
    return Choice(selection.without(repeats), train, np.concatenate([held_out, test]), repeats, left_out)


def _merged(rows: TokenRows, selection: Selection, run: RunConfig) -> tuple[Numbers, Numbers]:
    """Return the kept rows of (data sets, test data sets) in their order, which the rejected ones take part in."""
    own, every = len(run.datasets), len(run.sources)
    each, together = run.shuffle_before_merging_datasets, run.shuffles
    sides = (
        merged(rows.datasets, members, run.seed, each=each, together=together)
        for members in (range(own), range(own, every))
    )
    train, test = (side[selection.verdicts[side] == 0] for side in sides)
    return train, test


def _mixed(datasets: npt.NDArray[np.int32], train: Numbers, selection: Selection, run: RunConfig) -> Numbers:
    """Return the rows of the mixture: those that are used, in their order, then those that are used again."""
    mixture = run.mixture
    if mixture is None:
        return train
    members = [train[datasets[train] == number] for number in range(len(run.datasets))]
    empty = [number for number, rows in enumerate(members) if not len(rows)]
    if empty:
        rule, remedy = "no row of this data set is left to be mixed", "Look at its rejected rows, or remove it."
        path = run.datasets[empty[0]].shown
        raise ConfigError([Problem("configuration", f"datasets.{empty[0]}", path, rule, remedy)])
    amounts = [np.ones(len(m), np.int32) if mixture.unit == "rows" else selection.trained[m] for m in members]
    chosen = mix(amounts, [dataset.weight for dataset in run.datasets], repeat=mixture.repeat)
    used = np.concatenate([rows[positions] for rows, positions in zip(members, chosen, strict=True)])
    once = train[np.isin(train, used)]
    _, first = np.unique(used, return_index=True)
    return np.concatenate([once, np.delete(used, first)])


def _split(kept: Numbers, selection: Selection, run: RunConfig) -> tuple[Numbers, Numbers]:
    """Return the rows of (train, eval), in their order: eval is the tail."""
    if not len(kept):
        raise DataError(
            f"none of the {len(selection.lengths)} tokenized rows can be trained on: {_told(selection)}. "
            f"For too_long raise sequence_len (now {run.sequence_len}), for too_short lower min_sample_len "
            f"(now {run.min_sample_len}), for nothing_trained check roles and columns (`sft inspect` shows the mask)."
        )
    held_out = held_out_rows(len(kept), run.val_set_size)
    if held_out >= len(kept):
        rule = f"leaves no row to train on: {held_out} of {len(kept)} rows would be held out"
        remedy = "Lower it, or add data."
        raise ConfigError([Problem("configuration", "val_set_size", f"{run.val_set_size:g}", rule, remedy)])
    return kept[: len(kept) - held_out], kept[len(kept) - held_out :]


def _told(selection: Selection) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in selection.counts.items() if count) or "there was none"
