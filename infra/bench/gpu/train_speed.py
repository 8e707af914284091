"""Speed of training on a GPU: tokens/s, peak memory and the share of the card's peak, LoRA and full.

python infra/bench/gpu/train_speed.py [--size 1b|3b|8b] [--kind lora|full] [--width 4096] [--micro 2] [--steps 12]

A Llama of 1, 3 or 8 billion parameters is built from its configuration with random weights, and trained by the product
itself (`stages.train.worker`) on packed rows of random tokens: bf16, fused AdamW, checkpointing of activations. The
first steps are left out. Needs no network and no data. Prints one JSON document and a sentence.

Share of the peak: 6 floating-point operations per trained parameter and token, 4 per frozen one (LoRA needs no weight
gradients), and for attention 12 * layers * size * half of the mean sample length per token; recomputed ones do not
count. A full training of 8b in float32 weights needs more memory than one card has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

SIZES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "heads": 32},
    "3b": {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "heads": 24},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "heads": 32},
}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Part of a card's name -> its dense bfloat16 operations a second, as the maker states them."""
SAMPLES = (0.4, 0.3, 0.2, 0.1)
"""Lengths of a row's samples, in parts of it."""
TRAINED = 0.5
VOCABULARY = 32_000


def main() -> None:
    """Train a few steps and say how fast they were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--kind", choices=("lora", "full"), default="lora")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=2, help="rows of a forward pass")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attention", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(json.dumps({"options": vars(options), **found}, indent=2))
    share = f", {found['share_of_peak']:.0%} of its peak" if found["share_of_peak"] else ""
    print(
        f"{options.size}, {options.kind}: {found['tokens_per_second']:,.0f} tokens/s and "
        f"{found['peak_gib']:.1f} GiB on {found['card']}{share}"
    )


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the median speed of the later steps, the peak of memory, and the share of the card's peak."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29512")
    import torch

    from stages.train.job import Job
    from stages.train.machine import attention, this_machine
    from stages.train.metrics import read_metrics
    from stages.train.stopping import StopFlag
    from stages.train.worker import train

    run, upstream = settings(options, folder), artifacts(options, folder)
    parameters = build(options, folder / "base")
    job = Job(
        key="bench",
        run=run,
        tokens=upstream["tokenize"],
        packs=upstream["pack"],
        model=folder / "base",
        model_name="random",
        model_commit=None,
        work=folder / "work",
        precision="bf16",
        attention=attention(run, this_machine()),
        tf32=True,
        world_size=1,
    )
    job.work.mkdir()
    assert train(job, StopFlag()) == 0
    records = [record for record in read_metrics(job.work / "metrics.jsonl") if "loss" in record][3:]
    speed = median(record["tokens_per_second"] for record in records)
    card = torch.cuda.get_device_name()
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    operations = speed * operations_per_token(options, parameters)
    return {
        "card": card,
        "torch": torch.__version__,
        "attention": job.attention,
        "parameters": parameters,
        "tokens_per_second": speed,
        "peak_gib": max(record["memory_bytes"] for record in records) / 2**30,
        "operations_per_second": operations,
        "share_of_peak": operations / peak if peak else None,
    }


def operations_per_token(options: argparse.Namespace, parameters: int) -> float:
    """Return the floating-point operations that a token needs, without those that checkpointing repeats."""
    size = SIZES[options.size]
    matrices = parameters - VOCABULARY * size["hidden_size"]  # looking an embedding up costs nothing
    mean_context = options.width * sum(part * part for part in SAMPLES) / 2
    attention = 12 * size["num_hidden_layers"] * size["hidden_size"] * mean_context
    return (6 if options.kind == "full" else 4) * matrices + attention


def build(options: argparse.Namespace, folder: Path) -> int:
    """Write a model with random weights, and return the number of its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = dict(SIZES[options.size])
    heads = size.pop("heads")
    config = LlamaConfig(
        **size,
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=options.width,
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model
    torch.cuda.empty_cache()
    return parameters


def settings(options: argparse.Namespace, folder: Path) -> Any:
    """Return the configuration of the run."""
    from configs.schema import RunConfig

    lora = {"adapter": "lora", "lora_r": 16, "lora_target_linear": True} if options.kind == "lora" else {}
    return RunConfig.model_validate(
        {
            "base_model": str(folder / "base"),
            "datasets": [{"path": "random", "type": "completion"}],
            "micro_batch_size": options.micro,
            "gradient_accumulation_steps": 1,
            "max_steps": options.steps,
            "learning_rate": 1e-5,
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "gradient_checkpointing": True,
            "sequence_len": options.width,
            "attn_implementation": None if options.attention == "auto" else options.attention,
            **lora,
        }
    )


def artifacts(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Write tokenized and packed rows of random tokens, and return their folders."""
    import numpy as np

    from stages.artifacts import FileDigests, Store
    from tests.tiny import build_tokenizer
    from tests.train_data import packs_of, write_packs, write_tokens

    random = np.random.default_rng(0)
    lengths = [int(part * options.width) for part in SAMPLES]
    rows, sequences = [], []
    for _ in range(options.micro * options.steps):
        sequences.append(list(range(len(rows), len(rows) + len(lengths))))
        for length in lengths:
            ids = random.integers(5, VOCABULARY, length).tolist()
            rows.append((ids, [place >= length * (1 - TRAINED) for place in range(length)]))
    store = Store(folder / "store", FileDigests(folder / "digests.sqlite"))
    tokens = write_tokens(store, rows, build_tokenizer(folder / "tokenizer"))
    packs = write_packs(store, packs_of(sequences, rows), packs_of(sequences[:0], rows))
    return {"tokenize": tokens.folder, "pack": packs.folder}


if __name__ == "__main__":
    main()
