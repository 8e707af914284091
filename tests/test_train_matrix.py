"""Adapters on quantised bases: they train as LoRA on the base taken out of its bits, and merge without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.merge.worker import Job as MergeJob
from stages.merge.worker import merge
from stages.quantization import quantization
from tests.matrix import LENGTHS, LORA, LORA8, QLORA, SEQUENCES, eval_loss, losses, matrix_job, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

OFTEN: dict[str, Any] = {"eval_steps": 1, "save_steps": 2, "logging_steps": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("quantised"), LENGTHS, SEQUENCES)


def dequantised(base: Path, bits: dict[str, Any], folder: Path) -> Path:
    """Write the base with each linear layer rounded to its bits and back, by bitsandbytes' own functions."""
    from bitsandbytes import functional
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            if "load_in_4bit" in bits:
                packed, state = functional.quantize_4bit(module.weight.data, compress_statistics=True, quant_type="nf4")
                module.weight.data = functional.dequantize_4bit(packed, state)
            else:
                packed, scale, _ = functional.int8_vectorwise_quant(module.weight.data.half())
                module.weight.data = packed.float() * scale[:, None] / 127
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", [QLORA, LORA8], ids=["nf4", "int8"])
def test_a_quantised_base(bench: Bench, tmp_path: Path, adapter: dict[str, Any]) -> None:
    quantised = matrix_job(bench, tmp_path / "quantised", **adapter, **OFTEN)
    bits = quantization(quantised.run, "fp32")
    assert bits is not None
    rounded = dequantised(bench.model, bits, tmp_path / "rounded")
    reference = matrix_job(bench, tmp_path / "reference", **LORA).model_copy(update={"model": rounded})
    again = matrix_job(bench, tmp_path / "again", **adapter, gradient_checkpointing=True)
    ends = run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in (quantised, reference, again)])
    assert ends == [[None, None, None]]

    close = 1e-5 if adapter is QLORA else 2e-3  # 8-bit layers round their inputs, too
    assert losses(quantised.work) == pytest.approx(losses(reference.work), rel=close)
    assert losses(quantised.work)[-1] < losses(quantised.work)[0]
    assert losses(again.work) == pytest.approx(losses(quantised.work), rel=1e-5)

    folder = tmp_path / "merged"
    adapter_folder = quantised.work / "final/model"
    merge(MergeJob(bench.model, adapter_folder, folder, tmp_path / "result", "float32", "float32", bits, False))
    weights, base = load_file(folder / "model.safetensors"), load_file(rounded / "model.safetensors")
    parts = load_file(adapter_folder / "adapter_model.safetensors")
    assert weights.keys() == base.keys()
    for name, weight in weights.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if f"{stem}.lora_A.weight" in parts:
            expected = expected + 32 / 4 * parts[f"{stem}.lora_B.weight"] @ parts[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)
    assert mean_loss(bench, folder) == pytest.approx(eval_loss(quantised.work), rel=1e-5 if adapter is QLORA else 2e-3)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(bench: Bench, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"lora": LORA, "qlora": QLORA, "lora8": LORA8}
    for processes in (1, 2):
        jobs = [matrix_job(bench, tmp_path / f"{processes}/{n}", world_size=processes, **k) for n, k in kinds.items()]
        texts = [job.model_dump_json() for job in jobs]
        assert run_on_ranks(train_jobs, processes, texts) == [[None] * len(kinds)] * processes
    for name in kinds:
        one, two = tmp_path / "1" / name, tmp_path / "2" / name
        close = 2e-3 if name == "lora8" else 1e-5  # 8-bit layers round their inputs by the rows of a pass
        assert losses(two) == pytest.approx(losses(one), rel=close), name
        assert eval_loss(two) == pytest.approx(eval_loss(one), rel=close), name


def mean_loss(bench: Bench, folder: Path) -> float:
    """Loss of the held-out samples in plain transformers, which reads nothing of ours."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    total, tokens = 0.0, 0
    for row in (row for sequence in SEQUENCES[-2:] for row in sequence):
        ids, trained = bench.rows[row]
        with torch.no_grad():
            predictions = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        for position in range(1, len(ids)):
            if trained[position]:
                total -= float(predictions[position - 1, ids[position]])
                tokens += 1
    return total / tokens
