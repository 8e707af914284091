"""What a forward pass keeps for the backward pass, counted tensor by tensor as transformers' models make it.

    H hidden width   Q width of all query heads   K width of all key heads   I width inside the feed-forward part

    kept by a block of Llama's kind, numbers per token      all trained    adapter on every linear layer
      residual stream, for each of the two norms            2 H            2 H
      norms before their weights                            2 H            -
      norms after them: inputs of the linear layers         2 H            2 H
      queries, keys, values, what attention gives           2 Q + 2 K      2 Q + 2 K     (5 Q on a CPU)
      gate, its activation, up, their product               4 I            4 I

In lower precision norms keep the stream in float32, and autocast keeps a copy of its inputs for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.schema import RunConfig
from stages.estimate.shapes import Linear, ModelShape

Precision = Literal["fp32", "bf16", "fp16"]
FLOAT = 4
BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Pass:
    """One forward pass of a training process.

    Attributes:
        precision: precision of the computation.
        device: "cpu" or "cuda".
        rows: sequences.
        width: tokens of each.
    """

    precision: Precision
    device: Literal["cpu", "cuda"]
    rows: int
    width: int

    @property
    def tokens(self) -> int:
        """Return the tokens of the pass."""
        return self.rows * self.width

    @property
    def bytes(self) -> int:
        """Return the bytes of a number in the precision of the computation."""
        return BYTES[self.precision]


def uses_autocast(run: RunConfig, step: Pass) -> bool:
    """Return whether the computation is in a lower precision than the trained weights."""
    return step.precision != "fp32" and run.bf16 != "full"


def kept(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the bytes that are kept from the forward pass to the backward pass."""
    block = kept_by_block(run, shape, step)
    if not run.recomputes_activations:
        return shape.layers * block
    stream = FLOAT if uses_autocast(run, step) and run.adapter is None else step.bytes
    layers = 1 if run.offloads_activations and step.device == "cuda" else shape.layers
    return layers * step.tokens * shape.hidden * stream + block


def kept_by_block(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the bytes that one block keeps, the mean over all blocks."""
    numbers = _stream(run, shape, step) + _attention(shape, step) + _feed_forward(run, shape, step)
    return step.tokens * (numbers + _adapters(run, shape, step)) + _mask(run, step)


def under_way(shape: ModelShape, step: Pass) -> float:
    """Return the gradients of activations that are alive at once in the backward pass of a block."""
    return step.tokens * step.bytes * (2 * shape.intermediate + 2 * shape.hidden)


def _stream(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of the residual stream, the norms, and the inputs of the linear layers."""
    hidden, norms = shape.hidden, max(1, shape.build.norms)
    if run.adapter is not None:  # inputs are counted with the adapters
        return norms * FLOAT * hidden
    if uses_autocast(run, step):
        casts = len(shape.build.qkv) + len(shape.build.gate)
        return norms * 2 * FLOAT * hidden + casts * step.bytes * hidden
    if step.precision == "fp32":
        return (norms * 2 + 2) * FLOAT * hidden
    return norms * (FLOAT + step.bytes) * hidden + 2 * step.bytes * hidden


def _attention(shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of what attention keeps; on a CPU keys and values are repeated for each query head."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    numbers = 5 * queries if step.device == "cpu" else 2 * queries + 2 * keys
    normed = 2 * (queries + keys) if shape.build.head_norms else 0
    return numbers * step.bytes + normed * (FLOAT if step.bytes < FLOAT else step.bytes)


def _feed_forward(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token inside the feed-forward part; the product is an adapter's input, and counted there."""
    gated = 3 if shape.build.gated else 1
    product = 1 if run.adapter is None else 0
    return step.bytes * (gated + product) * shape.intermediate


def _adapters(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of what the adapters keep: their inputs, and what comes out of the first matrix."""
    adapted = shape.adapted(run)
    if uses_autocast(run, step) or run.lora_dropout:
        mask = step.bytes + 1 if run.lora_dropout else 0  # the dropped input, and which numbers were dropped
        copies = step.bytes if uses_autocast(run, step) or not run.lora_dropout else 0
        inputs = sum((copies + mask) * _per_block(linear, shape) * linear.inputs for linear in adapted)
    else:  # layers with the same input share it
        inputs = step.bytes * sum(
            max((_per_block(linear, shape) * linear.inputs for linear in group), default=0.0)
            for group in _by_input(adapted, shape)
        )
    ranks = step.bytes * run.lora_r * sum(_per_block(linear, shape) for linear in adapted)
    return inputs + ranks


def _by_input(adapted: tuple[Linear, ...], shape: ModelShape) -> list[list[Linear]]:
    """Return the adapted layers in groups that read the same tensor."""
    readers = [*shape.build.qkv], [shape.build.out], [*shape.build.gate], [shape.build.down]
    return [[linear for linear in adapted if linear.name in names] for names in readers]


def _per_block(linear: Linear, shape: ModelShape) -> float:
    return linear.copies / max(1, shape.layers)


def _mask(run: RunConfig, step: Pass) -> float:
    """Return the bytes of a mask of packed samples: SDPA on a GPU needs one, a truth value and a number a pair."""
    needs = run.sample_packing and step.device == "cuda" and run.attn_implementation == "sdpa"
    return step.rows * step.width**2 * (1 + step.bytes) if needs else 0
