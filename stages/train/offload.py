"""Activations kept in the memory of the CPU between the forward and the backward pass."""

from __future__ import annotations

import torch
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 2**20
"""Bytes below which a tensor stays where it is: the copies would cost more than the memory is worth."""

Packed = torch.Tensor | tuple[torch.device, torch.Tensor]


class OnHost(saved_tensors_hooks):
    """Inside this block the hidden states that autograd saves go to the CPU, and come back when they are needed.

    With recomputation that is the input of each block, (rows, width, hidden); weights and their gradients stay. Copies
    are exact, so the gradients are the same to the last bit, and queued behind the computation that they belong to.

    Attributes:
        moved: bytes that were taken off the device so far.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        self.moved = 0
        self._device_type = device_type
        super().__init__(self._pack, _unpack)

    def _pack(self, tensor: torch.Tensor) -> Packed:
        size = tensor.numel() * tensor.element_size()
        hidden_states = tensor.dim() == 3 and tensor.is_floating_point()
        if not hidden_states or size < SMALLEST or tensor.device.type != self._device_type:
            return tensor
        pinned = self._device_type == "cuda"
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=pinned)
        copy.copy_(tensor, non_blocking=pinned)
        self.moved += size
        return tensor.device, copy


def _unpack(packed: Packed) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    device, copy = packed
    return copy.to(device, non_blocking=True)
