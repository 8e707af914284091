"""Does a merged model hold and compute what base + adapter hold and compute?

Two looks, because each is blind where the other sees. The product of every adapted weight with a fixed vector knows
rounding exactly, so that a layer whose adapter got lost is seen even when that hardly moves the logits. The logits of
the model as it was loaded back see everything else: names, tying, files, configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from stages.errors import StageError

WEIGHT_BOUNDS = {"float32": 1e-5, "bfloat16": 2.0**-8}
"""Greatest difference of a weight's product with a vector, as RMS over RMS: rounding once to bfloat16 gives 2^-9."""
LOGIT_BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
"""The same of the logits. In bfloat16 the reference itself is rounded at every product; 0.02 is usual at 30 layers."""
PROBE_SHAPE = (4, 16)  # rows, tokens: enough to touch every layer at many positions, and cheap on a CPU
WRAPPER = "base_model.model."  # what peft puts in front of the base model's names

Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Fingerprint:
    """What base + adapter are for one probe.

    Attributes:
        shapes: the base's tensors by name.
        products: module -> W' v, (rows of W,) float32, W' = W + scale * B A, with DoRA's row lengths if any.
        sizes: module -> RMS that such a product has over all v, the unit of its error.
        change: RMS of (W' - W) v over all modules.
        rows: (rows, tokens) int64 token ids.
        logits: (rows, tokens, vocabulary) float32 of these ids.
    """

    shapes: Shapes
    products: dict[str, torch.Tensor]
    sizes: dict[str, float]
    change: float
    rows: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Difference:
    """How far a merged model is from base + adapter, each as RMS over RMS.

    Attributes:
        weights: of the worst adapted weight.
        logits: of all logits.
        rounding: error of all adapted weights over what the adapter changed in them. Noise, not a bias: a bfloat16
            weight has 8 bits, and an adapter often changes it by less than one.
    """

    weights: float
    logits: float
    rounding: float


@torch.inference_mode()
def fingerprint(adapted: PeftModel, shapes: Shapes, rows: torch.Tensor) -> Fingerprint:
    """Take the fingerprint of base + adapter, before they are merged."""
    products, sizes, changes = {}, {}, []
    for name, module in adapted.named_modules():
        weight = getattr(module.get_base_layer(), "weight", None) if isinstance(module, LoraLayer) else None
        if weight is not None and weight.ndim == 2:
            weight, delta = weight.float(), _delta(module, weight.float())
            changes.append(delta @ _probe(delta))
            name = name.removeprefix(WRAPPER)
            products[name] = weight @ _probe(weight) + changes[-1]
            sizes[name] = _rms(weight + delta) * weight.shape[1] ** 0.5
    change = _rms(torch.cat(changes)) if changes else 0.0
    return Fingerprint(shapes, products, sizes, change, rows, logits_of(adapted, rows))


@torch.inference_mode()
def compare_layers(adapted: PeftModel, base: Read, merged: Read, dtype: str) -> tuple[float, float]:
    """Return `weights` and `rounding` of `Difference`, reading a tensor of the base and of the merged model at a time.

    Raises:
        StageError: a difference beyond what rounding explains.
    """
    errors, changes, worst = [], [], 0.0
    for name, module in adapted.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        name = name.removeprefix(WRAPPER)
        weight = base(f"{name}.weight").float()
        delta, found = _delta(module, weight), merged(f"{name}.weight").float()
        probe = _probe(weight)
        changes.append(delta @ probe)
        errors.append(found @ probe - (weight @ probe + changes[-1]))
        size = _rms(weight + delta) * weight.shape[1] ** 0.5
        ratio = _rms(errors[-1]) / max(size, torch.finfo(torch.float32).tiny)
        worst = max(worst, _bounded(ratio, WEIGHT_BOUNDS[dtype], dtype, f"the weight of {name} differs"))
    change = _rms(torch.cat(changes)) if changes else 0.0
    return worst, _rms(torch.cat(errors)) / change if change else 0.0


def compare_logits(found: torch.Tensor, expected: torch.Tensor, dtype: str) -> float:
    """Return the difference of logits, RMS over RMS.

    Raises:
        StageError: it is more than rounding explains.
    """
    return _bounded(_rms(found - expected) / _rms(expected), LOGIT_BOUNDS[dtype], dtype, "logits differ")


def _delta(module: LoraLayer, weight: torch.Tensor) -> torch.Tensor:
    """Return what an adapter adds to a (rows, columns) weight.

    DoRA (Liu et al. 2024, eq. 5) gives each row of W + scale * B A a learned length, each column of an (in, out) one.
    """
    delta: torch.Tensor = module.get_delta_weight("default").float()
    if "default" not in module.lora_magnitude_vector:
        return delta
    lengths = module.lora_magnitude_vector["default"].weight.detach().float().flatten()
    transposed = bool(getattr(module, "fan_in_fan_out", False)) or len(lengths) != len(weight)
    rows = (weight + delta).T if transposed else weight + delta
    rows = rows * (lengths / rows.norm(dim=1))[:, None]
    scaled: torch.Tensor = rows.T if transposed else rows
    return scaled - weight


@torch.inference_mode()
def compare(merged: PreTrainedModel, expected: Fingerprint, dtype: str) -> Difference:
    """Return how far a merged model, loaded back, is from the fingerprint.

    Raises:
        StageError: other tensors than the base's, or a difference beyond what rounding explains.
    """
    _compare_shapes(shapes_of(merged), expected.shapes)
    errors, worst = [], 0.0
    for name, product in expected.products.items():
        weight = merged.get_submodule(name).weight.float()
        errors.append(weight @ _probe(weight) - product)
        ratio = _rms(errors[-1]) / max(expected.sizes[name], torch.finfo(torch.float32).tiny)
        worst = max(worst, _bounded(ratio, WEIGHT_BOUNDS[dtype], dtype, f"the weight of {name} differs"))
    logits = compare_logits(logits_of(merged, expected.rows), expected.logits, dtype)
    rounding = _rms(torch.cat(errors)) / expected.change if errors and expected.change else 0.0
    return Difference(worst, logits, rounding)


def probe_rows(vocabulary: int) -> torch.Tensor:
    """Return the (rows, tokens) ids on which models are compared."""
    return torch.randint(vocabulary, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


def compare_quantised(logits: torch.Tensor, quantised: torch.Tensor, quantization: dict[str, Any]) -> None:
    """Check that a base that is not quantised any more computes what it computed in training.

    Raises:
        StageError: it does not: a merge into it would lose what the adapter learned.
    """
    bits, bound = (4, 0.05) if quantization.get("load_in_4bit") else (8, 0.2)  # 8 bits round the inputs of a layer too
    ratio = _rms(logits - quantised) / _rms(quantised)
    if not ratio <= bound:
        raise StageError(
            f"the base model taken out of its {bits} bits computes something else than in training: logits differ by "
            f"{ratio:.3g} (RMS over RMS), at most {bound:.3g} is rounding. Nothing was kept; please report it."
        )


def logits_of(model: PreTrainedModel | PeftModel, rows: torch.Tensor) -> torch.Tensor:
    """Return (rows, tokens, vocabulary) float32."""
    logits: torch.Tensor = model(input_ids=rows, use_cache=False).logits
    return logits.float()


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Return the shape of every tensor of the model's state by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare_shapes(found: Shapes, expected: Shapes) -> None:
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise StageError(f"the merged model has other tensors than the base: {', '.join(odd[:3])}. Nothing was kept.")


def _bounded(ratio: float, bound: float, dtype: str, what: str) -> float:
    if not ratio <= bound:  # also when it is not a number
        raise StageError(
            f"the merged model is not base + adapter: {what} by {ratio:.3g} (RMS over RMS), rounding to {dtype} "
            f"explains at most {bound:.3g}. Nothing was kept; please report it with the base model's name."
        )
    return ratio


def _probe(weight: torch.Tensor) -> torch.Tensor:
    """Return a fixed random vector (columns of the weight,) float32."""
    return torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())
