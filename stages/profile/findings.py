"""Sentences about a profile: what stands out, and what it suggests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Summary = dict[str, Any]


def findings_of(summary: Summary) -> list[dict[str, str]]:
    """Return `{"sign", "text", "suggestion"}` of everything that stands out; at least where most of the time goes."""
    shares = {row["name"]: row["share"] for row in summary["classes"]}
    found = [
        {"sign": sign, "text": text, "suggestion": suggestion}
        for sign, is_so, text, suggestion in _rules(summary, shares)
        if is_so
    ]
    return [_largest(summary), *found] if summary["classes"] else found


def _rules(summary: Summary, shares: dict[str, float]) -> list[tuple[str, bool, str, str]]:
    """Return (sign, whether it stands out, sentence, suggestion)."""
    share: Callable[[str], float] = lambda name: shares.get(name, 0.0)  # noqa: E731
    small, on_gpu = summary["small"], summary["device"] == "gpu"
    return [
        (
            "data_wait", share("data wait") > 0.05,
            f"{_percent(share('data wait'))} of the time the training waits for its data.",
            "Set dataloader_num_workers: 2, and sample_packing: true so that fewer rows are read per token.",
        ),
        (
            "gaps", share("gaps") > 0.15,
            f"{_percent(share('gaps'))} of the time the GPU has nothing to do: Python asks slower than it "
            "answers.",
            "Raise micro_batch_size (and lower gradient_accumulation_steps), pack samples, use longer sequence_len.",
        ),
        (
            "python", share("outside operators") > 0.15,
            f"{_percent(share('outside operators'))} of the time no operator runs: Python itself, or a wait.",
            "Raise micro_batch_size, so that each call does more; see that other programs leave the cores alone.",
        ),
        (
            "attention", share("attention") > 0.3,
            f"{_percent(share('attention'))} of the time goes to attention.",
            "Use attn_implementation: flash_attention_2 on a GPU; lower sequence_len if rows are short.",
        ),
        (
            "copies", share("copies") > 0.1,
            f"{_percent(share('copies'))} of the time tensors are copied, filled or joined.",
            "Look at the copies below: between host and GPU they want dataloader_num_workers: 2, of a cast bf16: auto.",
        ),
        (
            "collectives", share("collectives") > 0.2,
            f"{_percent(share('collectives'))} of the time the processes exchange gradients or weights.",
            "Raise gradient_accumulation_steps; shard less (DDP or ZeRO-1) if the model fits on one GPU.",
        ),
        (
            "optimizer", share("optimizer") > 0.15,
            f"{_percent(share('optimizer'))} of the time goes to the optimizer.",
            "Raise gradient_accumulation_steps, or train an adapter; adamw_torch_fused is the fastest AdamW.",
        ),
        (
            "loss", share("loss") > 0.2,
            f"{_percent(share('loss'))} of the time goes to the loss.",
            "The vocabulary is large for this model; see with `sft inspect` that no more than the answers is trained.",
        ),
        (
            "elementwise", share("elementwise") > 0.4,
            f"{_percent(share('elementwise'))} of the time goes to operators on single numbers.",
            "They are bound by memory: bf16: auto halves it; gradient_checkpointing: false saves doing them twice.",
        ),
        (
            "small", on_gpu and small["of"] > 0 and small["calls"] > 0.5 * small["of"],
            f"{small['calls']:,} of {small['of']:,} kernels take less than 10 microseconds each.",
            "Small kernels cost more to start than to run: raise micro_batch_size.",
        ),
    ]  # fmt: skip


def _largest(summary: Summary) -> dict[str, str]:
    row = summary["classes"][0]
    text = f"Most of the time, {_percent(row['share'])}, goes to {row['name']}."
    if row["name"] != "matrix products":
        return {"sign": "largest", "text": text, "suggestion": "A training should spend most of it on matrix products."}
    top = next((each for each in summary["top"] if each["class"] == "matrix products"), None)
    if top and top["shapes"]:
        text += f" The largest: {top['name']} of {top['shapes']}, {_percent(top['share'])} in {top['calls']:,} calls."
    return {
        "sign": "largest",
        "text": text,
        "suggestion": "That is as it should be: only fewer tokens or lower precision help.",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
