"""What a packed sequence costs, and an order in which the sequences of a step cost the same.

Sequences that are equally full differ in attention: one sample of 16 looks back at 8 times as many tokens as 8 of 2.

    |a a a a a a a a a a a a a a a a|    16 tokens, 16 * 16       = 256 pairs
    |b b|c c|d d|e e|f f|g g|h h|i i|    16 tokens, 8 * (2 * 2)   =  32 pairs

Processes that get one of these each do not finish together, and at the end of the step the quick ones wait. So a step
is made of sequences whose costs are within `TOLERANCE` of each other; which of these, and the order of the steps, is
random. The price: a step sees rows of one kind of length, as with Hugging Face's `group_by_length`, but no finer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from configs.schema import RunConfig
from stages.tokens import Packs

TOLERANCE = 0.01
"""Costs that differ by less than this share of the mean cost count as equal, and their order stays random."""

EMPTY = -1
"""Stands for no sequence: a row of padding that fills the last batch of an epoch and adds nothing to the loss."""

Costs = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]


def sequence_costs(packs: Packs, pair_cost: float) -> Costs:
    """Return (sequences,) what each costs, in tokens' worth of matrix products.

    Args:
        packs: the sequences.
        pair_cost: what a pair of tokens of one sample costs, as `pair_cost_of` gives it.
    """
    if not len(packs):
        return np.zeros(0)
    lengths = packs.lengths.astype(np.int64)
    return packs.tokens + pair_cost * np.add.reduceat(lengths * lengths, packs.offsets[:-1])


def training_costs(run: RunConfig, packs: Packs, model: Path) -> Costs:
    """Return (sequences,) what each costs in training; all the same, so that the order is random, for plain rows.

    Args:
        run: the configuration.
        packs: the sequences.
        model: folder of the base model.
    """
    if not (run.sample_packing or run.group_by_length):
        return np.ones(len(packs))
    return sequence_costs(packs, pair_cost_of(orjson.loads((model / "config.json").read_bytes())))


def pair_cost_of(model: dict[str, Any]) -> float:
    """Return what attention between two tokens costs, measured in what the weights' products of one token cost.

    Counted in a layer: a token passes each weight once; a pair takes one product for its score and one for its value,
    each as wide as all heads, and only half of the pairs of a sample are looked at (the causal ones).

    Args:
        model: `config.json` of the base model; of a model with parts, its text part counts.

    >>> smollm2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    >>> round(1 / pair_cost_of(smollm2))  # samples of this length spend as much on attention as on all else
    6144
    """
    text = model.get("text_config") or model
    hidden = text.get("hidden_size") or text.get("n_embd") or 4096
    heads = text.get("num_attention_heads") or text.get("n_head") or 32
    width = heads * (text.get("head_dim") or hidden // heads)
    key_width = width * (text.get("num_key_value_heads") or heads) // heads
    experts = text.get("num_experts_per_tok") or 1
    inner = text.get("moe_intermediate_size") or text.get("intermediate_size") or 4 * hidden
    weights = 2 * hidden * width + 2 * hidden * key_width + 3 * hidden * inner * experts
    return width / weights


def epoch_order(seed: int, epoch: int, costs: Costs, batch: int) -> Order:
    """Return the sequences of an epoch, (steps, batch), filled up with `EMPTY`; the last step may be short.

    It depends on nothing but the arguments: two processes with two passes each see the same steps as one with four.
    Sequences are cut into steps in the order of their cost, and steps are shuffled; in a step the dearest comes first.
    Sequences of one cost are in a random order altogether. The bits come from PCG64 itself, whose stream NumPy promises
    to keep.
    """
    bits = np.random.PCG64([seed, epoch])
    order = np.argsort(bits.random_raw(len(costs)), kind="stable").astype(np.int64)
    missing = -len(order) % batch
    filling = np.full(missing, EMPTY, np.int64)
    classes = _cost_classes(costs, bits.random_raw() / 2**64)
    if not len(order) or classes.min() == classes.max():
        return np.concatenate([order, filling]).reshape(-1, batch)
    order = order[np.argsort(classes[order], kind="stable")]
    last = order[:0]
    if missing:  # the short step is cut out anywhere: else the cheapest or the dearest would always be its rows
        begin = bits.random_raw() % -(-len(order) // batch) * batch
        cut = slice(begin, begin + batch - missing)
        last, order = order[cut], np.delete(order, cut)
    steps = order.reshape(-1, batch)
    steps = steps[np.argsort(bits.random_raw(len(steps)), kind="stable")]
    steps = np.concatenate([steps, np.concatenate([last, filling]).reshape(-1, batch)])
    known = np.where(steps == EMPTY, -1.0, costs[steps])
    return np.take_along_axis(steps, np.argsort(-known, axis=1, kind="stable"), axis=1)


def in_order(sequences: int, batch: int) -> Order:
    """Return the sequences of an epoch in their own order, (steps, batch), filled up with `EMPTY`."""
    order = np.arange(sequences + -sequences % batch, dtype=np.int64)
    order[sequences:] = EMPTY
    return order.reshape(-1, batch)


def rank_passes(step: Order, *, passes: int, world_size: int) -> Order:
    """Return (world size, passes, sequences of a pass) what each process gets of a step, dealt out to and fro.

    A step of 8, dearest first, for two processes: 0 3 | 4 7 and 1 2 | 5 6.
    """
    dealt = step.reshape(-1, world_size).copy()
    dealt[1::2] = dealt[1::2, ::-1]
    return dealt.T.reshape(world_size, passes, -1)


def waiting(costs: Costs, steps: Order, *, passes: int, world_size: int) -> float:
    """Return the share of time that processes wait for the slowest one, if they meet after every pass.

    The last, short step of an epoch is left out: no order could fill it.
    """
    full = steps[(steps != EMPTY).all(axis=1)]
    if world_size == 1 or not len(full):
        return 0.0
    dealt = np.stack([rank_passes(step, passes=passes, world_size=world_size) for step in full])
    loads = costs[dealt].sum(axis=3)  # (steps, world size, passes)
    slowest = loads.max(axis=1).sum()
    return float(1 - loads.mean(axis=1).sum() / slowest)


def _cost_classes(costs: Costs, shift: float) -> npt.NDArray[np.int64]:
    """Return (sequences,) a number for each that rises with its cost; `shift` in [0, 1) moves the limits."""
    width = TOLERANCE * float(costs.mean()) if len(costs) else 1.0
    return np.floor(costs / width + shift).astype(np.int64)
