"""A check that samples packed into one sequence do not see each other, made on the model that is about to train.

Whether the attention is restricted to each sample depends on the model's code, the attention implementation and their
versions, and where it is not, nothing else tells: the loss even looks better. Two things are looked at: packed samples
have the logits that they have alone, up to rounding; and these do not change when the samples beside them say something
else. The second needs no more than the same shapes to be the same to the last bits, so that it sees in low precision,
too, what a convolution or a recurrent state carries over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.errors import StageError
from stages.train.data import Batch, Batches, Sample
from stages.train.model import computed_in
from stages.train.segments import NAME as BY_SAMPLE

LOOKED_AT = 16
"""Tokens at the start of each sample that are compared: a leak is strongest where the own context is short."""

SAMPLES, SAMPLE_TOKENS = 4, 256
"""So many samples, cut to so many tokens, are enough to see a leak, and cost less than a training step."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest ||packed - alone|| / ||alone|| of the logits that rounding explains."""

SWAY = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The same for packed samples beside others: experts alone round otherwise when they get other tokens besides."""


def check_isolation(model: PreTrainedModel, batches: Batches, *, tf32: bool = False) -> float | None:
    """Return the largest relative difference between samples packed and alone; None if no sequence holds two samples.

    Raises:
        StageError: a sample sees its neighbours.
    """
    sequence = batches.crowded()
    if sequence is None:
        return None
    samples = batches.beginning(sequence, samples=SAMPLES, tokens=SAMPLE_TOKENS)
    alone = [batches.collate([[sample]]) for sample in samples]
    lengths = [len(sample.input_ids) for sample in samples]
    packed, beside_others = (batches.collate([row]) for row in (samples, _beside_others(samples)))
    in_8_bits = getattr(model, "is_loaded_in_8bit", False)
    precision = torch.bfloat16 if tf32 or in_8_bits else computed_in(model)
    tolerance, worst = TOLERANCES[precision], leak(model, packed, alone, lengths)
    swayed = 0.0 if in_8_bits else sway(model, packed, beside_others, lengths)  # 8 bits: all tokens round together
    apart = worst <= tolerance and swayed <= SWAY[precision]  # neither is so where it is not a number
    if not apart and getattr(model.config, "_attn_implementation", None) == BY_SAMPLE:
        model.set_attn_implementation("sdpa")  # this model's code does not hand the positions on
        return check_isolation(model, batches, tf32=tf32)
    if not apart:
        implementation = getattr(model.config, "_attn_implementation", "?")
        raise StageError(
            f"attn_implementation {implementation!r} with {type(model).__name__}: samples that are packed into one "
            f"sequence see each other. Their logits differ by {worst:.3g} from those of each sample alone, where at "
            f"most {tolerance:g} is rounding, and by {swayed:.3g} when the other samples change, where at most "
            f"{SWAY[precision]:g} is. Set sample_packing: false, or another attn_implementation."
        )
    return worst


@torch.no_grad()
def leak(model: PreTrainedModel, packed: Batch, alone: list[Batch], lengths: list[int]) -> float:
    """Return the largest relative difference of logits, over the first tokens of each sample.

    Args:
        model: the model; left in the mode in which it was.
        packed: one row with all samples.
        alone: the same samples, each as a batch of its own, in the same order.
        lengths: tokens of each sample.
    """
    with _evaluating(model):
        pairs = zip(_of_samples(model, packed, lengths), alone, strict=True)
        found = [_difference(part, _logits(model, batch)[0]) for part, batch in pairs]
    return float(np.max(found))  # of numbers and nan it is nan


@torch.no_grad()
def sway(model: PreTrainedModel, packed: Batch, beside_others: Batch, lengths: list[int]) -> float:
    """Return the largest relative difference of logits of every second sample, where those between are other ones."""
    with _evaluating(model):
        here, there = (_of_samples(model, batch, lengths) for batch in (packed, beside_others))
    return float(np.max([_difference(there[n], here[n]) for n in range(1, len(lengths), 2)]))


def _beside_others(samples: list[Sample]) -> list[Sample]:
    """Return the samples, every second with the tokens of the one behind it, as many as it has itself."""
    others = [np.resize(behind.input_ids, len(here.input_ids)) for here, behind in pairwise([*samples, samples[0]])]
    return [
        here if n % 2 else Sample(other, here.labels)
        for n, (here, other) in enumerate(zip(samples, others, strict=True))
    ]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _of_samples(model: PreTrainedModel, packed: Batch, lengths: list[int]) -> list[torch.Tensor]:
    """Return the (length, vocabulary) logits of each sample of a packed row."""
    logits, ends = _logits(model, packed)[0], list(accumulate(lengths))
    return [logits[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return (rows, width, vocabulary) logits, computed as in training: no cache, only what the batch holds."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    inputs = {n: value.to(model.device) if isinstance(value, torch.Tensor) else value for n, value in given.items()}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    looked_at = min(LOOKED_AT, len(found))
    a, b = found[:looked_at].double(), expected[:looked_at].double()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))
