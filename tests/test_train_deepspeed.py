"""DeepSpeed ZeRO on two gloo processes against one process; and what is refused before anything runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.train.rules import problems
from tests.matrix import LENGTHS, LORA, LORA8, QLORA, SEQUENCES, eval_loss, losses, matrix_job, stop_jobs, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench


def zero(stage: int) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage}}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("deepspeed"), LENGTHS, SEQUENCES)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({**LORA8, "fsdp_config": {}}, "load_in_8bit = true: FSDP2 cannot shard 8-bit weights"),
        ({"optimizer": "adamw_8bit", "fsdp_config": {}}, "optimizer = adamw_8bit: FSDP2 cannot shard"),
        ({**QLORA, **zero(3)}, "load_in_4bit = true: ZeRO-3 on quantised weights"),
        ({"deepspeed": {}}, "zero_optimization.stage is 1, 2 or 3"),
        ({"deepspeed": {**zero(1)["deepspeed"], "optimizer": {"type": "Adam"}}}, "the optimizer is that of the run"),
    ],
)
def test_what_cannot_be_sharded_is_refused(bench: Bench, keys: dict[str, Any], complaint: str) -> None:
    assert complaint in "\n".join(map(str, problems(bench.run(**keys))))


def test_what_can_be_sharded_is_not_refused(bench: Bench) -> None:
    for keys in ({"fsdp_config": {}}, {**QLORA, "fsdp_config": {}}, {**QLORA, **zero(2)}, zero(3)):
        assert [p for p in problems(bench.run(**keys)) if p.key != "deepspeed"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install 'sft-flow[deepspeed]'")
def test_zero_trains_the_same_model_as_one_process(bench: Bench, tmp_path: Path) -> None:
    def run_jobs(root: str, jobs: dict[str, dict[str, Any]], processes: int, act: Any = train_jobs) -> None:
        made = [matrix_job(bench, tmp_path / root / name, world_size=processes, **jobs[name]) for name in jobs]
        assert run_on_ranks(act, processes, [job.model_dump_json() for job in made]) == [[None] * len(jobs)] * processes

    kinds = {"full": {}, "lora": LORA, "qlora": QLORA, "lora8": LORA8}
    run_jobs("1", kinds, 1)
    jobs: dict[str, dict[str, Any]] = {f"full {stage}": zero(stage) for stage in (1, 2, 3)}
    jobs |= {"lora 2": {**LORA, **zero(2)}, "lora 3": {**LORA, **zero(3)}, "qlora 2": {**QLORA, **zero(2)}}
    jobs |= {"lora 1": {**LORA, **zero(1)}, "qlora 1": {**QLORA, **zero(1)}}
    jobs |= {"lora8 1": {**LORA8, **zero(1)}, "lora8 2": {**LORA8, **zero(2)}}
    jobs["full 3, recomputed"] = {**zero(3), "gradient_checkpointing": True}
    run_jobs("2", jobs, 2)
    stopped = {name: jobs[name] for name in ("full 2", "full 3", "lora 3")}
    run_jobs("stopped", stopped, 2, stop_jobs)
    run_jobs("stopped", stopped, 2)
    for name in jobs:
        one, two = tmp_path / "1" / name.split()[0], tmp_path / "2" / name
        close = 2e-3 if "lora8" in name else 1e-5  # 8-bit layers round their inputs by the rows of a pass
        assert losses(two) == pytest.approx(losses(one), rel=close), name
        assert eval_loss(two) == pytest.approx(eval_loss(one), rel=close), name
        if "lora8" in name:
            continue
        file = "model.safetensors" if name.startswith("full") else "adapter_model.safetensors"
        found, expected = (load_file(work / "final/model" / file) for work in (two, one))
        assert found.keys() == expected.keys()
        for tensor, weight in expected.items():
            torch.testing.assert_close(found[tensor], weight, rtol=0, atol=1e-4, msg=f"{name}: {tensor}")
    for name in stopped:
        assert losses(tmp_path / "stopped" / name) == losses(tmp_path / "2" / name), name
