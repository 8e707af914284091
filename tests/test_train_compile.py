"""Other ways to the same numbers: a compiled model, the products of experts; and the loss that is insisted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from stages.base_model import MODEL_FILES, find_model
from tests.matrix import LENGTHS, SEQUENCES, losses, matrix_job, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("compile"), LENGTHS, SEQUENCES)


@pytest.fixture(scope="module")
def experts(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bench.model).save_pretrained(folder)
    return folder


def test_a_compiled_model_trains_the_same(bench: Bench, tmp_path: Path) -> None:
    """Batches of one width: others are compiled again, which takes a minute on a CPU."""
    short = {"max_steps": 2, "val_set_size": 0, "pad_to_sequence_len": True, "sequence_len": 64}
    kinds = {"plain": {}, "compiled": {"torch_compile": True, "torch_compile_backend": "eager"}}
    jobs = [matrix_job(bench, tmp_path / name, **short, **keys) for name, keys in kinds.items()]
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None, None]]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_experts_are_computed_as_asked_for(bench: Bench, experts: Path, tmp_path: Path) -> None:
    ways = ("eager", "batched_mm", "grouped_mm")
    jobs = [
        matrix_job(bench, tmp_path / way, experts_implementation=way).model_copy(update={"model": experts})
        for way in ways
    ]
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None] * 3]
    for way in ways[1:]:
        assert losses(tmp_path / way) == pytest.approx(losses(tmp_path / "eager"), rel=1e-4), way


def test_another_loss_is_an_error_where_the_one_by_chunks_is_insisted_on(
    bench: Bench, experts: Path, tmp_path: Path
) -> None:
    """A term for the balance of experts, which the model adds to its loss."""
    balanced = {"base_model": str(experts), "overrides_of_model_config": {"output_router_logits": True}}
    kinds: dict[str, dict[str, Any]] = {
        "its own": balanced,
        "insisted on": {**balanced, "chunked_cross_entropy": True},
        "by chunks": {"base_model": str(experts), "chunked_cross_entropy": True},
    }
    jobs = []
    for name, keys in kinds.items():
        job = matrix_job(bench, tmp_path / name, **keys)
        jobs.append(job.model_copy(update={"model": find_model(job.run).folder(MODEL_FILES)}))
    [ends] = run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs])
    assert [end is None for end in ends] == [True, False, True]
    assert "chunked_cross_entropy" in ends[1]
    assert losses(tmp_path / "its own")[0] > losses(tmp_path / "by chunks")[0]


def test_random_weights_are_drawn_from_the_seed(bench: Bench, tmp_path: Path) -> None:
    kinds = {"base": {}, "random": {"reinit_weights": True}, "again": {"reinit_weights": True}}
    jobs = [matrix_job(bench, tmp_path / name, **keys) for name, keys in kinds.items()]
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None] * 3]
    assert losses(tmp_path / "random") == losses(tmp_path / "again") != losses(tmp_path / "base")
