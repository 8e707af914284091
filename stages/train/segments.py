"""Attention over packed samples that computes each sample's own triangle and nothing else.

Given packed rows, SDPA builds a (width, width) mask and computes every pair of tokens, those of different samples too:
with eight samples in a row, eight times too much. Here each sample is a call of its own, causal and without a mask:

    positions  0 1 2 0 1 0 1 2 3     ->  three calls, of 3, 2 and 4 tokens; results side by side
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_sample"


def attend_by_sample(model: PreTrainedModel) -> None:
    """Let a model that would use SDPA on a CPU attend sample by sample; on a GPU one large call is faster."""
    if model.device.type == "cpu" and getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, _mask)
        model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return (rows, width, heads, size) for (rows, heads, width, size) arguments, as transformers wants it.

    With a mask, or with keys of an earlier call beside the new ones, it is SDPA.
    """
    positions = kwargs.get("position_ids")
    whole = attention_mask is None and query.shape[2] == key.shape[2]
    if positions is None or not whole or not getattr(module, "is_causal", True) or is_causal is False:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return output, None
    rows, heads, width, _ = query.shape
    lengths = _lengths(positions.expand(rows, width))
    groups = heads // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
    queries, keys, values = (torch.split(_in_one_row(tensor), lengths, dim=2) for tensor in (query, key, value))
    parts = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    joined = torch.cat(parts, dim=2)[0].transpose(0, 1)  # (rows * width, heads, size)
    return joined.reshape(rows, width, heads, joined.shape[-1]), None


def _lengths(positions: torch.Tensor) -> list[int]:
    """Return the tokens of each sample, in order, of (rows, width) positions; none goes over the end of a row.

    >>> _lengths(torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]]))
    [3, 1, 4]
    """
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    places = begins.flatten().nonzero().flatten()
    lengths: list[int] = torch.diff(places, append=places.new_tensor([positions.numel()])).tolist()
    return lengths


def _in_one_row(tensor: torch.Tensor) -> torch.Tensor:
    """Return (rows, heads, width, size) as (1, heads, rows * width, size)."""
    return tensor.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return no mask for packed rows, where `attend` needs none; else the one of SDPA.

    Packed rows are where transformers forbids to leave the causal mask out although every token is there.
    """
    packed = kwargs.get("attention_mask") is None and not kwargs.get("allow_is_causal_skip", True)
    if packed and kwargs.get("local_size") is None and kwargs["q_length"] == kwargs["kv_length"]:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return mask
