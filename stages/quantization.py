"""How a frozen base model is quantised: the same for training, which rounds it, and merging, which undoes that."""

from __future__ import annotations

from typing import Any

from configs.schema import RunConfig

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def quantization(run: RunConfig, precision: str) -> dict[str, Any] | None:
    """Return the arguments of transformers' BitsAndBytesConfig, JSON-ready; None for a base that is not quantised.

    Four bits are NF4 with quantised scales (Dettmers et al. 2023, QLoRA), computed with in `precision`. FSDP shards
    only what it takes for ordinary numbers, so there the packed bits are stored as the other weights are.
    """
    if run.load_in_8bit:
        return {"load_in_8bit": True, **run.bnb_config_kwargs}
    if not run.load_in_4bit:
        return None
    computed_in = TORCH_NAMES[precision]
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": computed_in,
        "bnb_4bit_quant_storage": "uint8" if run.sharding == "none" else computed_in,
        **run.bnb_config_kwargs,
    }
