"""The estimate of memory: sizes against the models of transformers, parts against sums by hand, verdicts by example."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from configs.schema import RunConfig
from stages.errors import ConfigError
from stages.estimate.activations import Pass
from stages.estimate.families import FAMILIES
from stages.estimate.fit import fit
from stages.estimate.gpus import GPUS, gpus_named
from stages.estimate.memory import CHUNK_BYTES, estimate
from stages.estimate.shapes import shape_of
from stages.train.loss import CHUNK_BYTES as OF_THE_LOSS

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}


def run(**keys: Any) -> RunConfig:
    settings = {
        "base_model": "base",
        "datasets": [{"path": "data.jsonl", "type": "chat_template"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-5,
        "sequence_len": 2048,
        "gradient_checkpointing": True,
    }
    return RunConfig.model_validate(settings | keys)


LORA = {"adapter": "lora", "lora_r": 16, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
ON_GPU = Pass("bf16", "cuda", rows=1, width=2048)
ON_CPU = Pass("fp32", "cpu", rows=1, width=2048)


def model_of(family: str) -> Any:
    """The family's default model, without memory for its weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model(family: str) -> None:
    model = model_of(family)
    shape = shape_of(model.config.to_dict())
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-4)
    head, there = model.get_output_embeddings(), Counter[str]()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            there[name.rpartition(".")[2]] += module.weight.numel()
    found = Counter[str]()
    for linear in shape.linears:
        if not linear.expert:
            found[linear.name] += linear.weights
    assert found == there
    names = {re.sub(r"\.\d+\.", ".0.", name) for name, _ in model.named_modules()}
    assert all(f"{shape.build.blocks}.0.{linear.path}" in names for linear in shape.linears if not linear.expert)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT about transformers
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "qwen2_moe", "gemma2"])
@pytest.mark.parametrize("keys", [LORA, {**LORA, "lora_target_linear": False, "lora_target_modules": ["o_proj"]}])
def test_an_adapter_has_the_weights_that_peft_gives_it(family: str, keys: dict[str, Any]) -> None:
    model = model_of(family)
    shape = shape_of(model.config.to_dict())
    targets = sorted({linear.name for linear in shape.adapted(run(**keys))})
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=targets))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.adapter_weights(run(**keys)) == trained


def test_a_family_that_is_not_known_is_called_rough() -> None:
    shape = shape_of({**LLAMA_8B, "model_type": "brand_new"})
    assert shape.is_rough
    assert shape.sized
    assert shape.parameters == pytest.approx(8.03e9, rel=0.01)
    assert not shape_of({"model_type": "mamba", "d_model": 768}).sized


def test_the_text_part_of_a_model_for_images_counts() -> None:
    inner = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10_240}
    shape = shape_of({"model_type": "gemma3", "text_config": inner})
    assert shape.family == "gemma3_text"
    assert shape.parameters == pytest.approx(3.88e9, rel=0.01)  # as published, without the images' part


def test_the_parts_of_a_full_training_by_hand() -> None:
    """8.03 billion weights: 4 bytes of weight, 8 of state and 4 of gradient each, in float32."""
    shape = shape_of(LLAMA_8B)
    parts = estimate(run(gradient_accumulation_steps=4), shape, ON_CPU, 1).parts
    assert parts["weights"] == 4 * shape.parameters
    assert parts["optimizer"] == 8 * shape.parameters
    assert parts["gradients"] == 4 * shape.parameters
    low = estimate(run(bf16="full", gradient_accumulation_steps=4), shape, ON_GPU, 1).parts
    assert [low[name] for name in ("weights", "optimizer", "gradients")] == [
        2 * shape.parameters,
        4 * shape.parameters,
        2 * shape.parameters,
    ]


@pytest.mark.parametrize(
    ("keys", "weights", "gradients", "optimizer"),
    [
        ({}, 1, 1, 1),
        ({"fsdp_config": {}}, 8, 8, 8),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, 1, 1, 8),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, 1, 8, 8),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, 8, 8, 8),
    ],
)
def test_what_is_cut_into_shards(keys: dict[str, Any], weights: int, gradients: int, optimizer: int) -> None:
    shape = shape_of(LLAMA_8B)
    accumulated = run(gradient_accumulation_steps=2, **keys)
    alone, shared = (estimate(accumulated, shape, ON_CPU, processes).parts for processes in (1, 8))
    cuts = {name: round(alone[name] / shared[name]) for name in ("weights", "gradients", "optimizer")}
    assert cuts == {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def test_four_bits_are_four_bits_of_the_linear_layers() -> None:
    shape = shape_of(LLAMA_8B)
    parts = estimate(run(**QLORA), shape, ON_GPU, 1).parts
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    assert parts["quantised weights"] / linear == pytest.approx(0.516, abs=0.001)
    assert parts["weights"] == 2 * (shape.parameters - linear)
    assert parts["adapter"] == 4 * 41_943_040
    assert estimate(run(**LORA), shape, ON_GPU, 1).parts["weights"] == 2 * shape.parameters


def test_less_is_never_more() -> None:
    """Recomputing, shorter and fewer rows, 8-bit states, adapters and bits each take less."""
    shape, base = shape_of(LLAMA_8B), run(gradient_checkpointing=False, gradient_accumulation_steps=2)

    def needed(step: Pass = ON_GPU, **update: Any) -> int:
        return estimate(base.model_copy(update=update), shape, step, 1).total

    whole = needed()
    assert needed(gradient_checkpointing=True) < whole
    assert needed(Pass("bf16", "cuda", rows=1, width=1024)) < whole
    assert needed(Pass("bf16", "cuda", rows=2, width=2048)) > whole
    assert needed(optimizer="adamw_8bit") < whole
    lora = needed(adapter="lora", lora_target_linear=True)
    assert needed(adapter="qlora", lora_target_linear=True, load_in_4bit=True) < lora < whole


def test_the_loss_by_chunks_is_the_one_that_trains() -> None:
    assert CHUNK_BYTES == OF_THE_LOSS


@pytest.mark.parametrize(
    ("keys", "gpu", "fits"),
    [
        (QLORA, "rtx4090", True),
        (LORA, "t4", False),
        (LORA, "rtx4090", True),
        (LORA, "a100-80gb", True),
        ({}, "h100", False),
        ({"optimizer": "adamw_8bit", "bf16": "full"}, "h100", True),
    ],
)
def test_an_8b_model_on_known_cards(keys: dict[str, Any], gpu: str, fits: bool) -> None:
    """QLoRA of 8 B fits a 24 GB card, LoRA nearly fills one, full fine-tuning takes several of 80 GB."""
    config = run(**keys)
    step = Pass("bf16", "cuda", rows=1, width=config.sequence_len)
    assert fit(config, shape_of(LLAMA_8B), step, 1, GPUS[gpu].bytes).fits is fits


def test_what_to_change_is_told_in_order_until_it_fits() -> None:
    config = run(gradient_checkpointing=False, micro_batch_size=4, gradient_accumulation_steps=2)
    found = fit(config, shape_of(LLAMA_8B), Pass("bf16", "cuda", rows=4, width=2048), 1, GPUS["rtx4090"].bytes)
    assert [change.keys.partition(":")[0] for change in found.changes] == [
        "gradient_checkpointing",
        "micro_batch_size",
        "optimizer",
        "adapter",
    ]
    smaller = run(**QLORA, micro_batch_size=4, gradient_accumulation_steps=2)
    [first, *_] = fit(smaller, shape_of(LLAMA_8B), Pass("bf16", "cuda", rows=4, width=2048), 1, 8 * 2**30).changes
    assert first.keys == "micro_batch_size: 1, gradient_accumulation_steps: 8"
    totals = [found.memory.total, *(change.total for change in found.changes)]
    assert totals == sorted(totals, reverse=True)
    assert found.enough
    shared = fit(config, shape_of(LLAMA_8B), Pass("bf16", "cuda", rows=4, width=2048), 8, GPUS["h100"].bytes)
    assert "fsdp_config" in " ".join(change.keys for change in shared.changes)


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100", "h100", None),
        ("8xH100", "h100", 8),
        ("4 x A100", "a100-80gb", 4),
        ("NVIDIA H100 80GB HBM3", "h100", None),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090", None),
        ("Tesla T4", "t4", None),
        ("Tesla V100-SXM2-32GB", "v100-32gb", None),
        ("NVIDIA L40S", "l40s", None),
    ],
)
def test_gpus_are_known_by_their_names(text: str, name: str, count: int | None) -> None:
    gpu, found = gpus_named(text)
    assert (gpu.name, found) == (name, count)


@pytest.mark.parametrize("text", ["", "h1000", "0xh100", "banana", "xh100"])
def test_a_gpu_that_is_not_in_the_table_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="not in the table: t4"):
        gpus_named(text)
