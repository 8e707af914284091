"""Speed and memory of a training step: packed rows as we train them, against plain ways with the same model and rows.

python infra/bench/train_step.py [--vocabulary 49152] [--layers 6] [--size 576] [--width 1024] [--steps 3] [--lora]

    ours             packed rows, attention by sample, loss by chunks of trained positions
    packed_plain     the same rows, the model's own attention (SDPA with a block mask) and loss
    kernels          with --lora: ours, and the adapted layers as one operator each (lora_mlp_kernel and the like)
    padded_plain     one sample a row, padded to the longest: what a trainer without packing does (TRL's default)

Every case does forward, backward and an AdamW step, each in a process of its own, one thread. Prints one JSON document;
`tokens_per_second` counts the samples' tokens, not padding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CASES = ("padded_plain", "packed_plain", "ours", "kernels")
LENGTHS = (0.35, 0.3, 0.2, 0.15)  # of a row's samples: SFT rows are short and uneven
TRAINED = 0.45


def main() -> None:
    """Measure every case, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024, help="tokens of a packed row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options)))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--case"]
    cases = CASES if options.lora else CASES[:-1]
    found = {case: json.loads(subprocess.check_output([*command, case], cwd=ROOT)) for case in cases}
    for case in cases:
        speed = found["ours"]["tokens_per_second"] / found[case]["tokens_per_second"]
        found[case]["ours_is_faster_by"] = round(speed, 2)
    print(json.dumps({"options": vars(options), **found}, indent=2))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the speed of the fastest step after the first, the peak of memory, and the first loss."""
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    batch = _batch(options)
    model = _model(options, batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    before, seconds, losses = _peak_mib(forget=True), [], []
    for _ in range(options.steps + 1):
        started = time.perf_counter()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    tokens = sum(_lengths(options.width))
    return {
        "tokens_per_second": round(tokens / min(seconds[1:]), 1),
        "seconds_per_step": round(min(seconds[1:]), 2),
        "peak_mib": round(_peak_mib() - before),
        "first_loss": losses[0],
    }


def _lengths(width: int) -> list[int]:
    return [int(share * width) for share in LENGTHS]


def _batch(options: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from stages.tokens import IGNORED
    from stages.train.data import Sample, _lay_out

    random, samples = np.random.default_rng(0), []
    for length in _lengths(options.width):
        ids = random.integers(10, options.vocabulary, length).astype(np.int32)
        labels = np.where(np.arange(length) >= (1 - TRAINED) * length, ids, IGNORED).astype(np.int32)
        samples.append(Sample(ids, labels))
    rows = [[sample] for sample in samples] if options.case == "padded_plain" else [samples]
    return _lay_out(rows, 0, None)


def _model(options: argparse.Namespace, batch: dict[str, Any]) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from stages.train.lora_kernels import use_lora_kernels
    from stages.train.loss import LossByChunks
    from stages.train.segments import attend_by_sample

    torch.manual_seed(0)
    heads = options.size // 64
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.size,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 or heads,
        intermediate_size=options.size * 8 // 3,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    if options.lora:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    if options.case == "kernels":
        use_lora_kernels(model, ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"))
    if options.case in ("ours", "kernels"):
        attend_by_sample(model)
        chunks = LossByChunks.of(model)
        assert chunks is not None
        assert chunks.is_right(model, batch)
    return model.train()


def _peak_mib(*, forget: bool = False) -> float:
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
