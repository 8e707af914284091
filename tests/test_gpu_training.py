"""On a GPU: attention that keeps packed samples apart, and whole trainings (`pytest -m gpu`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.train.machine import VARLEN, this_machine
from stages.train.machine import attention as attention_of
from tests.matrix import LENGTHS, LORA, LORA8, QLORA, SEQUENCES, eval_loss, losses, matrix_job, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("gpu"), LENGTHS, SEQUENCES)


def test_auto_is_the_fastest_attention_that_is_there(bench: Bench) -> None:
    assert this_machine().gpus, "the driver lists the GPU"
    assert attention_of(bench.run(bf16="auto"), this_machine()) in ("flash_attention_2", VARLEN, "sdpa")


@pytest.mark.parametrize("groups", [1, 2])
def test_variable_length_attention_is_each_sample_alone(groups: int) -> None:
    from torch.nn.functional import scaled_dot_product_attention

    from stages.train.segments import _varlen

    lengths, heads, size = [5, 1, 40, 18], 4, 64
    torch.manual_seed(0)
    shapes = [(64, heads, size), (64, heads // groups, size), (64, heads // groups, size)]
    q, k, v = (torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes)
    ends = torch.tensor([0, 5, 6, 46, 64], device="cuda", dtype=torch.int32)
    found = _varlen(q, k, v, ends, 40, None)
    parts = []
    for query, key, value in zip(*(t.split(lengths) for t in (q, k, v)), strict=True):
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        args = (t.transpose(0, 1)[None].float() for t in (query, key, value))
        parts.append(scaled_dot_product_attention(*args, is_causal=True)[0].transpose(0, 1))
    expected = torch.cat(parts)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)
    ours = torch.autograd.grad(found.float().square().sum(), [q, k, v])
    theirs = torch.autograd.grad(expected.square().sum(), [q, k, v])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=0.1, rtol=0.05)


def test_every_attention_and_adapter_trains_as_sdpa_does(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    bf16: dict[str, Any] = {"precision": "bf16", "bf16": True}
    kinds: dict[str, dict[str, Any]] = {
        "sdpa": {**bf16, "attn_implementation": "sdpa"},
        "varlen": bf16,
        "eager": {**bf16, "attn_implementation": "eager"},
        "fp32": {"attn_implementation": "sdpa"},
        "lora": {**bf16, **LORA},
        "qlora": {**bf16, **QLORA},
        "8 bits": {**bf16, **LORA8},
        "recomputed": {**bf16, "gradient_checkpointing": True},
        "paged": {**bf16, "optimizer": "paged_adamw_8bit"},
    }
    jobs = {name: matrix_job(bench, tmp_path / name, **keys) for name, keys in kinds.items()}
    jobs["varlen"] = jobs["varlen"].model_copy(update={"attention": VARLEN})
    texts = [job.model_dump_json() for job in jobs.values()]
    assert run_on_ranks(train_jobs, 1, texts) == [[None] * len(texts)]
    for name in ("varlen", "eager", "recomputed", "paged"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "sdpa"), rel=0.02), name
    assert losses(tmp_path / "fp32") == pytest.approx(losses(tmp_path / "sdpa"), rel=0.02)
    for name in ("lora", "qlora", "8 bits"):
        assert losses(tmp_path / name)[-1] < losses(tmp_path / name)[0]
        assert eval_loss(tmp_path / name) > 0
        assert load_file(tmp_path / name / "final/model/adapter_model.safetensors")
