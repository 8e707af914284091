"""Attention over packed samples that computes each sample's own triangle and nothing else.

Given packed rows, SDPA builds a (width, width) mask and computes every pair of tokens, those of different samples too:
with eight samples in a row, eight times too much. Here each sample is a call of its own, causal and without a mask:

    positions  0 1 2 0 1 0 1 2 3     ->  three calls, of 3, 2 and 4 tokens; results side by side

On a GPU torch's variable-length attention does the same in one call.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_sample"
HALF = (torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


def attend_by_sample(model: PreTrainedModel, *, varlen: bool = False) -> None:
    """Let a model that would use SDPA attend sample by sample: on a CPU, or with `varlen` on a GPU that can do it.

    Elsewhere it keeps SDPA, with a mask over the whole row.
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return
    if varlen and not (torch.cuda.is_available() and _has_varlen(model.config.get_text_config())):
        logger.warning("this GPU or model cannot use torch's variable-length attention; SDPA with a mask is used")
    elif varlen or (model.device.type == "cpu" and not torch.cuda.is_available()):
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, _mask)
        model.set_attn_implementation(NAME)


def _has_varlen(config: Any, device: str = "cuda") -> bool:
    """Return whether a device has variable-length attention, with its gradient, for a model's heads."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    try:
        states = torch.zeros(16, heads, size, device=device, dtype=torch.bfloat16, requires_grad=True)
        ends = torch.tensor([0, 4, 16], device=device, dtype=torch.int32)
        torch.autograd.backward(_varlen(states, states, states, ends, 12, None).sum())
    except torch.OutOfMemoryError:
        raise  # a full GPU says nothing of what it can do
    except RuntimeError as error:  # the kernel is not built, or refuses this GPU or this size of heads
        logger.warning("torch's variable-length attention: %s", (str(error).splitlines() or ["?"])[0])
        return False
    return True


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
    ends = kwargs.get("cu_seq_lens_q")
    if ends is not None and query.is_cuda and query.dtype in HALF and not dropout:
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (tokens, heads, size)
        return _varlen(q, k, v, ends, int(kwargs["max_length_q"]), scaling).reshape(rows, width, heads, -1), None
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


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """Return (tokens, heads, size) for (tokens, heads, size) queries and (tokens, groups, size) keys and values."""
    from torch.nn.attention.varlen import varlen_attn  # it registers operators, which takes time where none is used

    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
    lengths = (ends, ends, longest, longest)
    output = varlen_attn(query, key, value, *lengths, scale=scale, window_size=(-1, 0))
    return output[0] if isinstance(output, tuple) else output


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
