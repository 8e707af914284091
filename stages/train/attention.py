"""A check that samples packed into one sequence do not see each other, made on the model that is about to train.

Whether the attention is restricted to each sample depends on the model's code, the attention implementation and their
versions, and where it is not, nothing else tells: the loss even looks better.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from stages.errors import StageError
from stages.train.data import Batch, Batches, Sample
from stages.train.segments import NAME as BY_SAMPLE

LOOKED_AT = 16
"""Tokens at the start of each sample that are compared: a leak is strongest where the own context is short."""

SAMPLES, SAMPLE_TOKENS = 4, 256
"""So many samples, cut to so many tokens, are enough to see a leak, and cost less than a training step."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Largest ||packed - alone|| / ||alone|| of the logits that rounding explains."""


def check_isolation(model: PreTrainedModel, batches: Batches, *, tf32: bool = False) -> float | None:
    """Return the largest relative difference between samples packed and alone; None if no sequence holds two samples.

    Raises:
        StageError: a sample sees its neighbours.
    """
    sequence = batches.crowded()
    if sequence is None:
        return None
    samples = [_cut(sample) for sample in batches.samples(sequence)[:SAMPLES]]
    alone = [batches.collate([[sample]]) for sample in samples]
    worst = leak(model, batches.collate([samples]), alone, [len(sample.input_ids) for sample in samples])
    rounds = tf32 or getattr(model, "is_loaded_in_8bit", False)
    tolerance = TOLERANCES[torch.bfloat16 if rounds else _compute_dtype(model)]
    if not worst <= tolerance and getattr(model.config, "_attn_implementation", None) == BY_SAMPLE:
        model.set_attn_implementation("sdpa")  # this model's code does not hand the positions on
        return check_isolation(model, batches, tf32=tf32)
    if not worst <= tolerance:  # also where it is not a number
        implementation = getattr(model.config, "_attn_implementation", "?")
        raise StageError(
            f"attn_implementation {implementation!r} with {type(model).__name__}: samples that are packed into one "
            f"sequence see each other. Their logits differ by {worst:.3g} from those of each sample alone, where at "
            f"most {tolerance:g} is rounding. Set attn_implementation: sdpa, or sample_packing: false."
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
    was_training = model.training
    model.eval()
    try:
        logits = _logits(model, packed)[0]
        differences, begin = [], 0
        for batch, length in zip(alone, lengths, strict=True):
            differences.append(_difference(logits[begin:], _logits(model, batch)[0], length))
            begin += length
        return max(differences)
    finally:
        model.train(was_training)


def _logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return (rows, width, vocabulary) logits, computed as in training: no cache, only what the batch holds."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    inputs = {n: value.to(model.device) if isinstance(value, torch.Tensor) else value for n, value in given.items()}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def _difference(packed: torch.Tensor, alone: torch.Tensor, length: int) -> float:
    looked_at = min(LOOKED_AT, length)
    a, b = packed[:looked_at].double(), alone[:looked_at].double()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def _compute_dtype(model: PreTrainedModel) -> torch.dtype:
    if torch.is_autocast_enabled(model.device.type):
        return torch.get_autocast_dtype(model.device.type)
    dtype: torch.dtype = model.dtype
    return dtype


def _cut(sample: Sample) -> Sample:
    return Sample(sample.input_ids[:SAMPLE_TOKENS], sample.labels[:SAMPLE_TOKENS])
