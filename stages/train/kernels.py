"""Liger's kernels (Hsu et al. 2024) in place of a model's own operators: the same results in less time and memory.

The loss stays ours, which never holds the logits of all positions either.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from configs.schema import RunConfig

KEYS: dict[str, tuple[str, ...]] = {
    # our key -> what Liger calls it; the gated activation has a name for each function
    "liger_rope": ("rope",),
    "liger_rms_norm": ("rms_norm",),
    "liger_layer_norm": ("layer_norm",),
    "liger_glu_activation": ("swiglu", "geglu"),
}

logger = logging.getLogger(__name__)


def use_liger(model: PreTrainedModel, run: RunConfig) -> None:
    """Put the kernels that a run asks for into a model on GPUs, as far as there are any for its family."""
    asked = [key for key in KEYS if getattr(run, key)]
    if not asked:
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # an optional package

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model.config.model_type)
    known = set(inspect.signature(apply).parameters) if apply is not None else set()
    if apply is not None:
        apply(model=model, **switches(known, asked))
    lacking = [key for key in asked if known.isdisjoint(KEYS[key])]
    if lacking:
        logger.warning("Liger has no kernels for %s of %s models", ", ".join(lacking), model.config.model_type)


def switches(known: Collection[str], asked: Collection[str]) -> dict[str, Any]:
    """Return which of the known kernels are used; Liger's own choice is to use nearly all.

    >>> switches({"model", "rope", "rms_norm", "geglu", "fused_linear_cross_entropy"}, ["liger_glu_activation"])
    {'fused_linear_cross_entropy': False, 'geglu': True, 'rms_norm': False, 'rope': False}
    """
    wanted = {name for key in asked for name in KEYS[key]}
    return {name: name in wanted for name in sorted(known) if name not in ("model", "kwargs")}
