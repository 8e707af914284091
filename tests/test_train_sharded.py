"""FSDP2 on two gloo processes against one process: same losses, same weights, whole files, resumed at any number."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.matrix import LENGTHS, LORA, QLORA, SEQUENCES, eval_loss, losses, matrix_job, stop_jobs, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench

FSDP: dict[str, Any] = {"fsdp_config": {}}
SHARDED: dict[str, Any] = {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sharded"), LENGTHS, SEQUENCES)


def run_jobs(bench: Bench, root: Path, jobs: dict[str, dict[str, Any]], world_size: int, act: Any = train_jobs) -> None:
    texts = [
        matrix_job(bench, root / name, world_size=world_size, **keys).model_dump_json() for name, keys in jobs.items()
    ]
    assert run_on_ranks(act, world_size, texts) == [[None] * len(jobs)] * world_size


def assert_close(folder: Path, reference: Path, file: str) -> None:
    found, expected = load_file(folder / file), load_file(reference / file)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)  # six steps at 0.01


def test_fsdp_trains_the_same_model_as_one_process(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    kinds: dict[str, dict[str, Any]] = {"full": {}, "lora": LORA, "qlora": QLORA}
    run_jobs(bench, tmp_path / "1", kinds, 1)
    jobs = {name: {**keys, **FSDP} for name, keys in kinds.items()}
    jobs["full, in parts"] = SHARDED
    jobs["lora, bf16"] = {**LORA, **FSDP, "precision": "bf16", "bf16": True, "gradient_checkpointing": True}
    stopped = {"full": jobs["full"], "full, in parts": SHARDED, "lora": jobs["lora"], "qlora": jobs["qlora"]}
    run_jobs(bench, tmp_path / "2", jobs, 2)
    run_jobs(bench, tmp_path / "stopped", stopped, 2, stop_jobs)
    shutil.copytree(tmp_path / "stopped", tmp_path / "elsewhere")
    run_jobs(bench, tmp_path / "stopped", stopped, 2)

    for name in kinds:
        one, two = tmp_path / "1" / name, tmp_path / "2" / name
        assert losses(two) == pytest.approx(losses(one), rel=1e-5), name
        assert eval_loss(two) == pytest.approx(eval_loss(one), rel=1e-5), name
        file = "model.safetensors" if name == "full" else "adapter_model.safetensors"
        assert_close(two / "final/model", one / "final/model", file)
    assert losses(tmp_path / "2/lora, bf16") == pytest.approx(losses(tmp_path / "1/lora"), rel=0.01)

    # interrupted or not, gathered or in parts: the same bits
    for name in stopped:
        assert losses(tmp_path / "stopped" / name) == losses(tmp_path / "2" / name), name
    files = [
        tmp_path / run / "final/model/model.safetensors" for run in ("2/full", "stopped/full", "stopped/full, in parts")
    ]
    assert len({file.read_bytes() for file in files}) == 1
    adapters = [tmp_path / run / "lora/final/model/adapter_model.safetensors" for run in ("2", "stopped")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert list((tmp_path / "stopped/full, in parts").rglob("*.distcp"))

    assert_plain(bench, tmp_path / "2/full/final/model", eval_loss(tmp_path / "2/full"))

    # one process continues what two began
    moved = {name: stopped[name] for name in ("full", "full, in parts", "lora")}
    run_jobs(bench, tmp_path / "elsewhere", moved, 1)
    for name in moved:
        assert losses(tmp_path / "elsewhere" / name) == pytest.approx(losses(tmp_path / "2" / name), rel=1e-5), name


@pytest.mark.slow
def test_four_processes_continue_what_two_began(bench: Bench, tmp_path: Path) -> None:
    jobs = {"full": FSDP, "full, in parts": SHARDED, "lora": {**LORA, **FSDP}}
    run_jobs(bench, tmp_path / "whole", jobs, 2)
    run_jobs(bench, tmp_path / "moved", jobs, 2, stop_jobs)
    run_jobs(bench, tmp_path / "moved", jobs, 4)
    for name in jobs:
        assert losses(tmp_path / "moved" / name) == pytest.approx(losses(tmp_path / "whole" / name), rel=1e-5), name


def assert_plain(bench: Bench, folder: Path, expected: float) -> None:
    """Plain transformers loads it, whole, under its own class name, and finds the loss that was reported."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert next(model.parameters()).dtype == torch.float32
    total, tokens = 0.0, 0
    for row in (row for sequence in SEQUENCES[-2:] for row in sequence):
        ids, trained = bench.rows[row]
        labels = [
            token if mask and position else -100
            for position, (token, mask) in enumerate(zip(ids, trained, strict=True))
        ]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
        tokens += sum(label != -100 for label in labels)
    assert total / tokens == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_copies_in_shards_train_the_same_model_as_one_process(bench: Bench, tmp_path: Path) -> None:
    """Two copies, each in two shards, stopped after the first step and continued."""
    run_jobs(bench, tmp_path / "1", {"full": {}, "lora": LORA}, 1)
    jobs = {"full": {**SHARDED, "dp_replicate_size": 2}, "lora": {**LORA, **FSDP, "dp_shard_size": 2}}
    run_jobs(bench, tmp_path / "4", jobs, 4, stop_jobs)
    run_jobs(bench, tmp_path / "4", jobs, 4)
    for name, file in (("full", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        one, four = tmp_path / "1" / name, tmp_path / "4" / name
        assert losses(four) == pytest.approx(losses(one), rel=1e-5), name
        assert_close(four / "final/model", one / "final/model", file)
