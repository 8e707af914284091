"""The loss without the logits of a whole batch: only trained positions, a few at a time, gradients made on the way.

The plain way holds (rows, width, vocabulary) logits, their float32 copy and their gradient: at 4,096 tokens and a
vocabulary of 150,000 that is 7 GB, more than most models that train here. Instead, for a few positions at a time

    logits (c, V)  ->  softmax  ->  loss, d loss / d logits (in place)  ->  d loss / d hidden, d loss / d weight

so that nothing has to be kept or computed again, and positions that are not trained (often more than half in SFT) cost
nothing at all. The idea of making the gradient in the forward pass is that of Liger Kernel (Hsu et al. 2024, section
3.2); this works in plain PyTorch, on any device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from stages.tokens import IGNORED
from stages.train.data import Batch
from stages.train.model import computed_in

CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Size of the float32 logits that are held at a time."""

CHECKED_TOKENS = 256
"""So many tokens of a sample show whether a model's own loss is the same."""

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
"""Largest relative difference of the two losses that rounding explains."""


@dataclass(frozen=True)
class LogitForm:
    """What a model does to the product of hidden states and head: `cap * tanh(scale * product / cap)`."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitForm:
        """Read it from a model's configuration, under the names that the families use."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        return cls(scale, getattr(config, "final_logit_softcapping", None))  # Gemma


class LossByChunks:
    """A causal model that computes its loss by chunks when it gets labels, as long as `used`.

    The head computes it, inside its own forward pass: FSDP2 and ZeRO-3 gather a module's weights when it is called,
    and let them go behind it, so here there is a whole head for as long as it is needed and no longer.
    Without labels the model gives its logits as before.
    """

    def __init__(self, causal: PreTrainedModel, decoder: nn.Module, head: nn.Module) -> None:
        self.used = True
        own, multiply = causal.forward, _trained_part(head).forward
        form = LogitForm.of(causal.config)

        def forward(
            model: Any,
            input_ids: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            **inputs: Any,
        ) -> Any:
            if labels is None or not self.used:
                return own(input_ids=input_ids, labels=labels, **inputs)
            tokens = inputs.pop("num_items_in_batch", None)
            total = head(decoder(input_ids=input_ids, **inputs).last_hidden_state, labels)
            return CausalLMOutputWithPast(loss=total / ((labels[:, 1:] != IGNORED).sum() if tokens is None else tokens))

        def multiply_or_sum(layer: Any, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            return multiply(hidden) if labels is None else summed_loss(hidden, layer.weight, labels, form)

        vars(forward)["__signature__"] = inspect.signature(type(causal).forward)  # generation looks what it may pass
        causal.forward = MethodType(forward, causal)
        part = _trained_part(head)
        part.forward = MethodType(multiply_or_sum, part)

    @classmethod
    def of(cls, model: PreTrainedModel) -> LossByChunks | None:
        """Let a model compute its loss by chunks; None if its head is no plain weight.

        Do it before a trainer puts anything around the model, and then see on a batch whether `is_right`.
        """
        causal = model.get_base_model() if isinstance(model, PeftModel) else model
        head, decoder = _plain_head(causal), getattr(causal, causal.base_model_prefix, None)
        return None if head is None or decoder is None or decoder is causal else cls(causal, decoder, head)

    @torch.no_grad()
    def is_right(self, model: PreTrainedModel, batch: Batch) -> bool:
        """Return whether it is the model's own loss, on a small batch of which every token counts; if not, stop.

        A model may have another one: a term for the balance of experts, a loss of its own. Every process of a training
        must call it, with the same batch.
        """
        inputs = {n: value.to(model.device) if isinstance(value, torch.Tensor) else value for n, value in batch.items()}
        inputs["labels"] = inputs["input_ids"]
        was_training = model.training
        model.eval()
        try:
            found = float(model(**inputs, use_cache=False).loss)
            self.used = False
            expected = float(model(**inputs, use_cache=False).loss)
        finally:
            model.train(was_training)
        self.used = abs(found - expected) <= TOLERANCES[computed_in(model)] * max(abs(expected), 1e-3)
        return self.used


def summed_loss(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, form: LogitForm = LogitForm()
) -> torch.Tensor:
    """Return the sum of the cross-entropies of all trained positions.

    Args:
        hidden: (rows, width, size), the last hidden states.
        weight: (vocabulary, size), the output head.
        labels: (rows, width), not shifted: position i predicts label i + 1; -100 where not trained.
        form: what follows the head.
    """
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED).reshape(-1)
    positions = (targets != IGNORED).nonzero().squeeze(1)  # (n,)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    chunk = max(16, CHUNK_BYTES.get(hidden.device.type, 2**26) // (4 * weight.shape[0]))
    flat = hidden.reshape(-1, hidden.shape[-1])
    apply: Callable[..., torch.Tensor] = _SummedLoss.apply
    return apply(flat, weight, positions, targets[positions], form, chunk, torch.is_grad_enabled())


class _SummedLoss(torch.autograd.Function):
    """(tokens, size) hidden, (vocabulary, size) weight, (n,) positions, (n,) targets -> the sum, float32 or better."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        form: LogitForm,
        chunk: int,
        with_gradient: bool,
    ) -> torch.Tensor:
        for_hidden, for_weight = (with_gradient and needed for needed in ctx.needs_input_grad[:2])
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden[positions]) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if for_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(positions), chunk):
                part = slice(begin, begin + chunk)
                states = hidden[positions[part]]  # (c, size)
                losses, slopes = _losses_and_slopes(
                    states @ weight.T, targets[part], form, exact, with_slopes=for_hidden or for_weight
                )
                total += losses.sum()
                if grad_hidden is not None:
                    grad_hidden[part] = slopes.to(weight.dtype) @ weight
                if grad_weight is not None:
                    _add_product(grad_weight, slopes.to(states.dtype), states)
        ctx.save_for_backward(positions, grad_hidden, grad_weight)
        ctx.tokens, ctx.weight_dtype = len(hidden), weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (grad,) = grad_outputs
        positions, grad_hidden, grad_weight = ctx.saved_tensors
        spread = None
        if grad_hidden is not None:
            spread = grad_hidden.new_zeros(ctx.tokens, grad_hidden.shape[1])
            spread[positions] = (grad_hidden * grad).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad).to(ctx.weight_dtype)
        return spread, grad_weight, None, None, None, None, None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)  # without a second tensor of the size of the head
    else:
        total += left.T @ right


def _losses_and_slopes(
    logits: torch.Tensor, targets: torch.Tensor, form: LogitForm, exact: torch.dtype, *, with_slopes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (c,) losses of (c, V) logits and their (c, V) slopes, softmax - onehot, in the place of the logits."""
    values = logits.to(exact)
    if form.scale != 1.0:
        values = values.mul_(form.scale)
    if form.cap is not None:
        values = values.div_(form.cap).tanh_().mul_(form.cap)
    bent = 1 - (values / form.cap) ** 2 if form.cap is not None and with_slopes else None
    rows = torch.arange(len(targets), device=targets.device)
    values = values.sub_(values.amax(1, keepdim=True))
    wanted = values[rows, targets]
    values = values.exp_()
    sums = values.sum(1, keepdim=True)
    losses = sums.squeeze(1).log() - wanted
    if with_slopes:
        values = values.div_(sums)
        values[rows, targets] -= 1
        values = values if bent is None else values.mul_(bent)
        values = values if form.scale == 1.0 else values.mul_(form.scale)
    return losses, values


def _plain_head(causal: PreTrainedModel) -> nn.Module | None:
    """Return the output head if its output is hidden states times a plain weight, trained beside an adapter or not."""
    head = causal.get_output_embeddings()
    inner = _trained_part(head)
    return head if type(inner) is nn.Linear and inner.bias is None else None


def _trained_part(head: nn.Module) -> Any:
    """Return the layer that computes: with `lora_modules_to_save` it is a copy beside the frozen one."""
    return head.modules_to_save[head.active_adapter] if isinstance(head, ModulesToSaveWrapper) else head
