"""What a forward pass keeps for the backward pass, counted tensor by tensor as transformers' models make it.

    H hidden width   Q width of all query heads   K width of all key heads   I width inside the feed-forward part

    kept by a block of Llama's kind, numbers per token      all trained    adapter on every linear layer
      residual stream, for each of the two norms            2 H            2 H
      norms before their weights                            2 H            -
      norms after them: inputs of the linear layers         2 H            2 H
      queries, keys, values, what attention gives           2 Q + 2 K      2 Q + 2 K     (5 Q on a CPU)
      gate, its activation, up, their product               4 I            4 I
      each expert of a token: what goes there and back      2 H            2 H

The tensors that autograd saves were counted on a CPU (infra/docs/planning.md). In lower precision norms keep the stream
in float32, and autocast keeps a copy of its inputs for each layer.
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


def stored(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the bytes that are kept from the forward pass to the backward pass: recomputed, only what blocks read."""
    if not run.recomputes_activations:
        return shape.layers * kept_by_block(run, shape, step)
    if run.gradient_checkpointing == "offload":
        return 0.0
    stream = FLOAT if uses_autocast(run, step) and run.adapter is None else step.bytes
    return float(shape.layers * step.tokens * shape.hidden * stream)


def kept_by_block(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return the bytes that one block keeps, the mean over all blocks."""
    parts = (_stream, _attention, _feed_forward, _adapters, _experts)
    return step.tokens * sum(part(run, shape, step) for part in parts) + _mask(run, step)


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


def _attention(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of what attention keeps; on a CPU keys and values are repeated for each query head."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    frozen = run.adapter is not None
    if step.device == "cpu":
        numbers = (4 if frozen else 5) * queries  # what comes out in one piece is kept by a trained layer alone
    else:
        numbers = 2 * queries + 2 * keys
    normed = (queries + keys) * (FLOAT + (0 if frozen else step.bytes)) if shape.build.head_norms else 0
    return numbers * step.bytes + normed + (2 * FLOAT * shape.heads * step.width if _has_all_pairs(run, shape) else 0)


def _has_all_pairs(run: RunConfig, shape: ModelShape) -> bool:
    """Return whether attention keeps a number for each pair of tokens, before and after the softmax."""
    return run.attn_implementation == "eager" or (shape.family == "gemma2" and run.attn_implementation is None)


def _feed_forward(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token inside the feed-forward part; the product is an adapter's input, and counted there."""
    gated = 3 if shape.build.gated else 1
    gated -= 1 if shape.build.down in kernel_layers(run, shape) else 0  # the activation is computed again
    product = 1 if run.adapter is None else 0
    return _expert_bytes(run, shape, step) * (gated + product) * shape.intermediate


def _experts(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of what is sent to the experts of a token, and comes back from them."""
    per_token = round(shape.active * shape.experts)
    return 2 * per_token * shape.hidden * _expert_bytes(run, shape, step) if shape.experts else 0.0


def _expert_bytes(run: RunConfig, shape: ModelShape, step: Pass) -> int:
    """Return the bytes of a number there: autocast does not reach the products of experts."""
    return FLOAT if shape.experts and run.adapter is None and uses_autocast(run, step) else step.bytes


def _adapters(run: RunConfig, shape: ModelShape, step: Pass) -> float:
    """Return bytes per token of what the adapters keep: their inputs, and what comes out of the first matrix."""
    adapted, one_operator = shape.adapted(run), kernel_layers(run, shape)
    single = [linear for linear in adapted if linear.name not in one_operator]
    autocast, mask = uses_autocast(run, step), 0
    if run.lora_dropout:
        mask = FLOAT if step.device == "cpu" else 1
    if autocast or run.lora_dropout:  # each has its own copy, and the mask of its dropout
        each = (step.bytes if autocast else FLOAT) + mask
        inputs = each * sum(_per_block(linear, shape) * linear.inputs for linear in single)
        sharing = [linear for linear in adapted if linear.name in one_operator]
    else:
        inputs, sharing = 0.0, list(adapted)
    # layers with the same input share it; attention keeps the one of its output layer itself on a GPU
    made_again = {shape.build.down} if shape.build.down in one_operator else set()
    made_again |= set() if step.device == "cpu" else {shape.build.out}
    inputs += step.bytes * sum(
        max((_per_block(linear, shape) * linear.inputs for linear in group), default=0.0)
        for group in _by_input(tuple(linear for linear in sharing if linear.name not in made_again), shape)
    )
    return inputs + step.bytes * run.lora_r * sum(_per_block(linear, shape) for linear in single)


def kernel_layers(run: RunConfig, shape: ModelShape) -> set[str]:
    """Return the names of the adapted layers that `stages.train.lora_kernels` computes in one operator."""
    if run.adapter is None or run.lora_dropout or run.peft_use_dora:
        return set()
    build, names = shape.build, {linear.name for linear in shape.adapted(run) if not linear.expert}
    found = names.intersection(build.qkv) if run.lora_qkv_kernel else set()
    found |= names & {build.out} if run.lora_o_kernel else set()
    feed_forward = {*build.gate, build.down}
    return found | feed_forward if run.lora_mlp_kernel and len(feed_forward) == 3 and feed_forward <= names else found


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
