"""A profile is recorded in the window that was asked for, and its summary says where the time went."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from flows.cli import cli
from stages.profile import summary as profile_module
from stages.profile.summary import summarise, summary_of
from tests.ranks import run_on_ranks
from tests.test_train_loss import make_job, train_job
from tests.train_data import Bench


def event(kind: str, name: str, begin: float, length: float, **more: Any) -> dict[str, Any]:
    """An event of a trace; times in milliseconds."""
    return {"ph": "X", "cat": kind, "name": name, "ts": begin * 1e3, "dur": length * 1e3, "pid": 1, "tid": 1, **more}


def shares(summary: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: round(row["share"], 3) for row in summary["classes"]}


def signs(summary: dict[str, Any]) -> set[str]:
    return {finding["sign"] for finding in summary["findings"]}


def test_an_operator_has_the_time_that_its_inner_ones_leave() -> None:
    summary = summary_of(
        [
            event("cpu_op", "aten::linear", 0, 100),
            event("cpu_op", "aten::addmm", 10, 80, args={"Input Dims": [[64, 32], [32, 16]]}),
            event("cpu_op", "aten::copy_", 10, 30),
            event("cpu_op", "aten::mul", 100, 60),
            event("cpu_op", "aten::mul", 180, 20),
        ],
        steps=2,
    )
    assert shares(summary) == {"elementwise": 0.4, "matrix products": 0.35, "copies": 0.15, "outside operators": 0.1}
    assert summary["seconds_per_step"] == pytest.approx(0.1)
    (product,) = [row for row in summary["top"] if row["name"] == "aten::addmm"]
    assert (product["shapes"], product["calls"], round(product["seconds"], 3)) == ("64x32 32x16", 1, 0.05)


def test_a_gpu_that_waits_is_told_with_its_gaps_copies_and_small_kernels() -> None:
    kernels = [event("kernel", "elementwise_kernel", place, 0.005) for place in range(40)]
    summary = summary_of(
        [
            event("cpu_op", "aten::mm", 0, 100),  # asked for by the CPU: not the time of the GPU
            event("kernel", "ampere_sgemm_64x64", 50, 30),
            event("kernel", "ampere_sgemm_64x64", 60, 10, tid=2),  # on another stream at the same time
            event("gpu_memcpy", "Memcpy HtoD", 85, 15),
            *kernels,
        ],
        steps=1,
    )
    assert summary["device"] == "gpu"
    assert shares(summary)["gaps"] == pytest.approx(0.548)  # 100 - 30 - 15 - 40 * 0.005
    assert shares(summary)["copies"] == pytest.approx(0.15)
    assert {"gaps", "copies", "small"} <= signs(summary)


@pytest.mark.parametrize(
    ("sign", "kind", "name"),
    [
        ("attention", "cpu_op", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("loss", "cpu_op", "aten::_log_softmax"),
        ("optimizer", "cpu_op", "aten::_fused_adamw_"),
        ("collectives", "kernel", "ncclDevKernel_AllReduce_Sum_f32"),
        ("elementwise", "cpu_op", "aten::silu"),
    ],
)
def test_each_thing_that_takes_much_has_its_sentence(sign: str, kind: str, name: str) -> None:
    product = "aten::mm" if kind == "cpu_op" else "gemm"
    summary = summary_of([event(kind, product, 0, 50), event(kind, name, 50, 50)], steps=1)
    assert sign in signs(summary)
    assert all(finding["text"].endswith(".") and finding["suggestion"] for finding in summary["findings"])


def test_a_wait_for_data_is_told() -> None:
    waiting = event("user_annotation", "enumerate(DataLoader)#_SingleProcess.__next__", 0, 20)
    summary = summary_of([waiting, event("cpu_op", "aten::mm", 20, 80)], steps=1)
    assert shares(summary) == {"matrix products": 0.8, "data wait": 0.2, "outside operators": 0.0}
    assert "data_wait" in signs(summary)


def test_a_training_records_the_window_and_sft_profile_reads_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [12, 20, 16, 24, 14, 18], [[row] for row in range(6)])
    work = tmp_path / "work"
    keys = {"optimizer": "adamw_torch", "max_steps": 8, "num_epochs": 4, "profiler_steps": 3, "profiler_steps_start": 2}
    run_on_ranks(train_job, 1, make_job(bench, work, 1, **keys))
    summary = summarise(work)
    assert summary["device"] == "cpu"
    assert summary["steps"] == [3, 5]
    assert shares(summary)["matrix products"] > 0.02
    assert sum(row["share"] for row in summary["classes"]) == pytest.approx(1, abs=0.05)
    steps = [
        e
        for e in orjson.loads((work / "profiler_trace.json").read_bytes())["traceEvents"]
        if "Optimizer.step" in str(e.get("name"))
    ]
    assert len({e["ts"] for e in steps}) == 3

    shown = CliRunner().invoke(cli, ["profile", str(work)])
    assert shown.exit_code == 0
    assert "Steps 3 to 5 on a CPU" in shown.output
    assert "Most of the time" in shown.output
    document = orjson.loads(CliRunner().invoke(cli, ["profile", str(work), "--json"]).stdout)
    assert document["steps"] == [3, 5]


def test_a_folder_without_a_profile_says_how_to_record_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["profile", str(tmp_path)])
    assert result.exit_code == 1
    assert "Set profiler_steps: 5" in result.output
    (tmp_path / "profiler_trace.json").write_text('{"traceEvents": 3}')
    assert "not a trace" in CliRunner().invoke(cli, ["profile", str(tmp_path)]).output


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(profile_module).failed == 0
