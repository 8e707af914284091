"""Layers with a low-rank adapter that keep less for the backward pass, and compute the same.

    y = x W' + s (x A') B'        W (out, in) frozen, also in 4 or 8 bits; A (r, in) and B (out, r) are trained

PEFT's layers are made of single operators, each of which keeps what its own gradient needs. Here a layer, or a gated
feed-forward part, down(act(gate(x)) * up(x)), is one operator: it keeps what came in, and computes the rest again.

    kept by a block, numbers a token    PEFT, float32       PEFT, autocast       here
    q, k, v                             H + 3 r             3 H + 3 r            H
    o                                   Q + r               Q + r                Q
    gate, up, down                      H + 4 I + 3 r       2 H + 4 I + 3 r      H + 2 I

Frozen weights are read again when gradients are computed, and 4 or 8 bits are widened then: no copy is kept. The
forward passes of layers (not of their classes) are replaced, so that weights keep their names and saved adapters their
form. The idea is Unsloth's, and axolotl's keys lora_mlp_kernel, lora_qkv_kernel and lora_o_kernel stand for it; this is
plain PyTorch, on any device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import once_differentiable

from stages.estimate.families import FAMILIES, UNKNOWN, Family

logger = logging.getLogger(__name__)

CHECKED_TOKENS = 8
"""So many random tokens show whether a feed-forward part is down(act(gate(x)) * up(x))."""


def use_lora_kernels(model: PeftModel, keys: Collection[str]) -> None:
    """Let the adapted layers that keys of a run stand for keep less, as far as they are plain ones."""
    family = FAMILIES.get(model.config.model_type, UNKNOWN)
    wanted: tuple[tuple[str, Callable[[nn.Module, Family], int]], ...] = (
        ("lora_mlp_kernel", _use_for_feed_forward),
        ("lora_qkv_kernel", lambda part, family: _use_for_layers(part, family.qkv)),
        ("lora_o_kernel", lambda part, family: _use_for_layers(part, (family.out,))),
    )
    for key, use in wanted:
        if key in keys and not sum(use(part, family) for part in model.modules()):
            logger.warning(
                "%s: no layer of this %s model is replaced; it is for LoRA without DoRA and dropout on linear layers",
                key,
                model.config.model_type,
            )


@dataclass(frozen=True)
class LowRank:
    """An adapted linear layer as the operators see it: its frozen part, and how wide the adapter's products are."""

    layer: Any

    @classmethod
    def of(cls, layer: Any) -> LowRank | None:
        """Return it for a plain adapter on a linear layer; None for what has more to it."""
        if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1 or layer.lora_variant:
            return None
        name = layer.active_adapters[0]
        if name not in layer.lora_A or not isinstance(layer.lora_dropout[name], nn.Identity):
            return None
        base, bias = layer.get_base_layer(), layer.lora_B[name].bias
        plain = isinstance(base, nn.Linear) and not base.weight.requires_grad and bias is None
        return cls(layer) if plain else None

    @property
    def name(self) -> str:
        """Return the name of the adapter."""
        return str(self.layer.active_adapters[0])

    @property
    def matrices(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A (r, in) and B (out, r)."""
        return self.layer.lora_A[self.name].weight, self.layer.lora_B[self.name].weight

    @property
    def is_off(self) -> bool:
        """Return whether the layer is to be used without its adapter, or with one that is part of the weights."""
        return bool(self.layer.disable_adapters or self.layer.merged)

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        dtype = _product_dtype(x, a)
        out = self.layer.base_layer(x)
        with torch.autocast(x.device.type, enabled=False):
            low = (x.reshape(-1, x.shape[-1]).to(dtype) @ a.to(dtype).T) * self.layer.scaling[self.name]  # (T, r)
            flat = out.reshape(-1, out.shape[-1])
            flat = flat.addmm_(low, b.to(dtype).T) if dtype == out.dtype else flat + (low @ b.to(dtype).T).to(out.dtype)
        found: torch.Tensor = flat.view(out.shape)
        return found

    def backward(
        self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, grad: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of x (T, in), A and B for that of the output, (T, out).

        Args:
            x: (T, in), what came in.
            a: (r, in).
            b: (out, r).
            grad: (T, out).
            dtype: precision of the adapter's products.
        """
        scaling, inputs, narrow_a = self.layer.scaling[self.name], x.to(dtype), a.to(dtype)
        wide = grad.to(dtype)
        low = (wide @ b.to(dtype)) * scaling  # (T, r)
        grad_b = wide.T @ ((inputs @ narrow_a.T) * scaling)
        grad_a = low.T @ inputs
        grad_x = grad @ frozen_weight(self.layer.get_base_layer(), grad.dtype)
        grad_x = grad_x.addmm_(low, narrow_a) if dtype == grad_x.dtype else grad_x + low @ narrow_a
        return grad_x.to(x.dtype), grad_a.to(a.dtype), grad_b.to(b.dtype)


def frozen_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return (out, in) the weights of a linear layer, widened if they are kept in 4 or 8 bits."""
    if hasattr(base, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module

        fix_4bit_weight_quant_state_from_module(base)
        weight: torch.Tensor = dequantize_4bit(base.weight.data.view(-1, 1), base.weight.quant_state)
    elif hasattr(base, "init_8bit_state"):
        weight = base.state.CB.to(dtype).mul_(base.state.SCB.unsqueeze(1) / 127)
    else:
        weight = base.weight.detach()
    return weight.to(dtype)


class _Linear(torch.autograd.Function):
    """(..., in) -> (..., out), with an adapter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, layer: LowRank) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.layer, ctx.dtype = layer, _product_dtype(x, a)
        return layer.forward(x, a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, a, b = ctx.saved_tensors
        found = ctx.layer.backward(_flat(x), a, b, _flat(grad), ctx.dtype)
        return found[0].view(x.shape), *found[1:], None


class _GatedFeedForward(torch.autograd.Function):
    """(..., H) -> (..., H): down(act(gate(x)) * up(x)), each with an adapter; gate(x) and up(x) are kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, part: _Parts, *matrices: torch.Tensor) -> torch.Tensor:
        gate_a, gate_b, up_a, up_b, down_a, down_b = matrices
        gate, up = part.gate.forward(x, gate_a, gate_b), part.up.forward(x, up_a, up_b)  # (..., I)
        ctx.save_for_backward(x, gate, up, *matrices)
        ctx.part, ctx.dtype = part, _product_dtype(x, gate_a)
        return part.down.forward(part.act(gate) * up, down_a, down_b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, gate, up, gate_a, gate_b, up_a, up_b, down_a, down_b = ctx.saved_tensors
        part, dtype, flat = ctx.part, ctx.dtype, _flat(x)
        with torch.enable_grad():
            before = _flat(gate).detach().requires_grad_()
            active = part.act(before)
        inner = active.detach() * _flat(up)  # (T, I)
        grad_inner, *of_down = part.down.backward(inner, down_a, down_b, _flat(grad), dtype)
        del inner
        (grad_gate,) = torch.autograd.grad(active, before, grad_inner * _flat(up))
        grad_up = grad_inner.mul_(active.detach())
        grad_x, *of_up = part.up.backward(flat, up_a, up_b, grad_up, dtype)
        by_gate, *of_gate = part.gate.backward(flat, gate_a, gate_b, grad_gate, dtype)
        return grad_x.add_(by_gate).view(x.shape), None, *of_gate, *of_up, *of_down


@dataclass(frozen=True)
class _Parts:
    """A gated feed-forward part."""

    gate: LowRank
    up: LowRank
    down: LowRank
    act: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, module: nn.Module, family: Family) -> _Parts | None:
        """Return it for a module that has the names of one, with three adapted layers."""
        names, act = (*family.gate, family.down), getattr(module, "act_fn", None)
        if len(names) != 3 or act is None:
            return None
        gate, up, down = (LowRank.of(getattr(module, name, None)) for name in names)
        return None if gate is None or up is None or down is None else cls(gate, up, down, act)

    def layers(self) -> Iterator[LowRank]:
        """Yield gate, up, down."""
        yield from (self.gate, self.up, self.down)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        matrices = [matrix for layer in self.layers() for matrix in layer.matrices]
        apply: Callable[..., torch.Tensor] = _GatedFeedForward.apply
        return apply(x, self, *matrices)


def _use_for_layers(module: nn.Module, names: tuple[str, ...]) -> int:
    """Replace the forward passes of a module's layers of these names; return of how many."""
    found = [low for name in names if (low := LowRank.of(getattr(module, name, None))) is not None]
    for low in found:
        low.layer.forward = MethodType(_linear_forward(low, low.layer.forward), low.layer)
    return len(found)


def _use_for_feed_forward(module: nn.Module, family: Family) -> int:
    """Replace the forward pass of a module if it is a gated feed-forward part; return 1 if it is."""
    parts = _Parts.of(module, family)
    if parts is None or not _is_same(module, parts):
        return 0
    own = module.forward

    def forward(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = own(x) if any(layer.is_off for layer in parts.layers()) else parts(x)
        return found

    module.forward = MethodType(forward, module)  # of this module alone, not of its class
    return 1


def _linear_forward(low: LowRank, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    apply: Callable[..., torch.Tensor] = _Linear.apply

    def forward(_: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if low.is_off or args or kwargs:
            return own(x, *args, **kwargs)
        return apply(x, *low.matrices, low)

    return forward


@torch.no_grad()
def _is_same(module: nn.Module, parts: _Parts) -> bool:
    """Return whether a module computes what its parts do, shown on a few random tokens."""
    base = parts.gate.layer.get_base_layer()
    a, _ = parts.gate.matrices
    dtype = a.dtype if not base.weight.is_floating_point() else base.weight.dtype
    drawn = torch.randn(CHECKED_TOKENS, base.in_features, generator=torch.Generator().manual_seed(0))
    x = drawn.to(a.device, dtype)
    expected, found = module(x), parts(x)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6))


def _product_dtype(x: torch.Tensor, a: torch.Tensor) -> torch.dtype:
    """Return the precision in which the adapter's products are computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else a.dtype


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])
