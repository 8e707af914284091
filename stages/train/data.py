"""From packed sequences to batches of tensors.

    two sequences of one batch, padded to 8 (p is padding)
    input_ids      a a a b b p p p        c c c c c c p p
    position_ids   0 1 2 0 1 0 1 2        0 1 2 3 4 5 0 1
    labels         . a a . b . . .        . c c c c c . .      (. is -100)

Positions that start again tell the attention where a sample begins: with them, and with no attention mask and no cache
of keys and values, it is restricted to each sample. Padding is a sample of its own. The first token of a sample is
never a label, for it would be predicted from the last token of the sample before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import BatchSampler, Dataset

from stages.tokens import IGNORED, Packs, TokenRows
from stages.train.balance import EMPTY, rank_passes
from stages.train.schedule import Schedule

Batch = dict[str, Any]
"""`input_ids`, `labels`, `position_ids`: each (rows, width) int64.

In a flat batch besides, for FlashAttention and its like: `cu_seq_lens_q` and `_k`, (samples + 1,) int32, where samples
begin, and `max_length_q` and `_k`, tokens of the longest.
"""

ALIGNMENT = 8
"""Widths are multiples of this: tensor cores work on blocks of 8."""


@dataclass(frozen=True)
class BatchForm:
    """How sequences are laid out in a batch.

    Attributes:
        pad_id: token that fills up.
        width: width of every sequence's row; None: as wide as the longest of the batch needs.
        flat: lay all sequences in one row, which flash attention needs to keep samples apart.
    """

    pad_id: int
    width: int | None = None
    flat: bool = False


class Batches(Dataset[Batch]):
    """The packed sequences of a run, as batches; sequence `EMPTY` is a row of padding."""

    def __init__(self, rows: TokenRows, packs: Packs, form: BatchForm) -> None:
        self._rows, self._packs, self.form = rows, packs, form
        self._tokens = packs.tokens

    def __len__(self) -> int:
        return len(self._packs)

    def __getitems__(self, sequences: Sequence[int]) -> Batch:
        """Return one batch: what a data loader with a batch sampler asks for."""
        samples = [self.samples(sequence) for sequence in sequences]
        return self.collate(samples)

    def tokens(self, sequences: npt.NDArray[np.int64]) -> int:
        """Return the number of tokens in the sequences, without padding."""
        return int(self._tokens[sequences[sequences != EMPTY]].sum())

    def samples(self, sequence: int) -> list[Sample]:
        """Return the samples of a sequence, in order."""
        if sequence == EMPTY:
            return []
        begin, end = self._packs.offsets[sequence], self._packs.offsets[sequence + 1]
        slices = zip(
            self._packs.rows[begin:end].tolist(),
            self._packs.starts[begin:end].tolist(),
            self._packs.lengths[begin:end].tolist(),
            strict=True,
        )
        return [Sample(*self._rows.slice(row, start, length)) for row, start, length in slices]

    def beginning(self, sequence: int, *, samples: int, tokens: int) -> list[Sample]:
        """Return the first samples of a sequence, each cut to its first tokens."""
        first = self.samples(sequence)[:samples]
        return [Sample(sample.input_ids[:tokens], sample.labels[:tokens]) for sample in first]

    def unpadded(self) -> Batches:
        """Return the same sequences in rows that are no wider than they need."""
        return Batches(self._rows, self._packs, replace(self.form, width=None))

    def sources(self, sequences: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return (index of the data set, row number in it) of every sample in the sequences."""
        whole = sequences[sequences != EMPTY].tolist()
        begins, ends = self._packs.offsets[:-1], self._packs.offsets[1:]
        return [self._rows.source(row) for s in whole for row in self._packs.rows[begins[s] : ends[s]].tolist()]

    def by_dataset(self) -> list[tuple[int, Batches]]:
        """Return (index of a data set, its samples alone) for each: together as many tokens as all at once."""
        datasets = np.asarray([self._rows.source(row)[0] for row in self._packs.rows.tolist()], np.int64)
        return [
            (int(d), Batches(self._rows, _kept(self._packs, datasets == d), self.form)) for d in np.unique(datasets)
        ]

    def collate(self, sequences: Sequence[Sequence[Sample]]) -> Batch:
        """Return sequences, each a list of samples, as one batch."""
        if self.form.flat:
            width = self.form.width and self.form.width * len(sequences)
            batch = _lay_out([[sample for samples in sequences for sample in samples]], self.form.pad_id, width)
            return batch | _boundaries(batch["position_ids"][0])
        return _lay_out(sequences, self.form.pad_id, self.form.width)

    def crowded(self) -> int | None:
        """Return the first sequence that holds more than one sample, or None if none does."""
        crowded = np.flatnonzero(np.diff(self._packs.offsets) > 1)
        return int(crowded[0]) if len(crowded) else None


@dataclass(frozen=True)
class Sample:
    """A part of a tokenized row: `input_ids` and `labels`, each (length,) int32."""

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]


def _kept(packs: Packs, kept: npt.NDArray[np.bool_]) -> Packs:
    """Return the packs with the slices that are kept, without sequences that would be empty."""
    counts = np.add.reduceat(kept.astype(np.int64), packs.offsets[:-1])
    offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    return Packs(offsets, packs.rows[kept], packs.starts[kept], packs.lengths[kept])


class RankPasses(BatchSampler):
    """The sequences of each forward pass of one process, over the whole training.

    A step's sequences are dealt out to and fro, so that none has all the dear ones; the empty rows of a last, short
    step fall on all processes alike.
    """

    def __init__(self, schedule: Schedule, *, passes_per_step: int, rank: int, world_size: int) -> None:
        self._schedule, self._passes, self._rank, self._world_size = schedule, passes_per_step, rank, world_size

    def __len__(self) -> int:
        return self._schedule.steps * self._passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._schedule.step_sequences():
            yield from rank_passes(step, passes=self._passes, world_size=self._world_size)[self._rank].tolist()


def eval_passes(sequences: int, per_pass: int, *, rank: int, world_size: int) -> Iterator[list[int]]:
    """Yield the sequences of each evaluation pass of one process; every process makes as many passes."""
    missing = -sequences % (per_pass * world_size)
    order = np.concatenate([np.arange(sequences), np.full(missing, EMPTY)])
    for pass_sequences in order.reshape(-1, world_size, per_pass)[:, rank]:
        yield pass_sequences.tolist()


def _boundaries(positions: torch.Tensor) -> Batch:
    """Return where the samples of a flat row begin, known here without asking a GPU.

    >>> _boundaries(torch.tensor([0, 1, 2, 0, 1]))["cu_seq_lens_q"]
    tensor([0, 3, 5], dtype=torch.int32)
    """
    begins = torch.nonzero(positions == 0).flatten()
    ends = torch.cat([begins, begins.new_tensor([len(positions)])]).to(torch.int32)
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _lay_out(sequences: Sequence[Sequence[Sample]], pad_id: int, width: int | None) -> Batch:
    """Return the sequences as rows of one width, each sample with its own positions, padding as a last sample."""
    lengths = [[len(sample.input_ids) for sample in samples] for samples in sequences]
    if width is None:
        longest = max(sum(row) for row in lengths)
        width = max(ALIGNMENT, longest + -longest % ALIGNMENT)
    input_ids = np.full((len(sequences), width), pad_id, np.int64)
    labels = np.full((len(sequences), width), IGNORED, np.int64)
    position_ids = np.empty((len(sequences), width), np.int64)
    for row, samples in enumerate(sequences):
        used = sum(lengths[row])
        if samples:
            input_ids[row, :used] = np.concatenate([sample.input_ids for sample in samples])
            labels[row, :used] = np.concatenate([sample.labels for sample in samples])
        segments = np.asarray([*lengths[row], width - used])
        begins = np.cumsum(segments) - segments
        position_ids[row] = np.arange(width) - np.repeat(begins, segments)
        labels[row, begins[segments > 0]] = IGNORED
    arrays = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
