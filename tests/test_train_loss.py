"""One training step against a plain loop in float64: each sample alone, the mean over all trained tokens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.train.data import Batch, Batches, BatchForm
from stages.train.job import Job
from stages.train.metrics import read_metrics
from tests.matrix import train_jobs as train_forked
from tests.ranks import run_on_ranks
from tests.tiny import build_model
from tests.train_data import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LENGTHS = [3, 60, 5, 17, 4, 33, 2, 50, 8, 21, 6, 12]
SEQUENCES = [[0, 1], [2, 3, 4], [5], [6, 7], [8], [9, 10, 11], [1], [0, 4, 6, 2], [3, 8], [7]]
Starts = dict[str, tuple[Path, Path | None]]
ONE_STEP: dict[str, Any] = {
    "optimizer": "sgd",  # at learning rate 1 the change of a weight is its gradient
    "learning_rate": 1.0,
    "lr_scheduler": "constant",
    "max_grad_norm": 0.0,
    "num_epochs": 1,
    "save_steps": 1000,
    "val_set_size": 0.2,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("loss"), LENGTHS, SEQUENCES)


def reference(
    bench: Bench, sequences: list[list[int]], model_folder: Path, adapter: Path | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the samples in `sequences`, each run alone through a model in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True).double()
    loss, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in (row for sequence in sequences for row in sequence):
        ids, trained = bench.rows[row]
        predictions = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        for position in range(1, len(ids)):
            if trained[position]:
                loss = loss - predictions[position - 1, ids[position]]
                tokens += 1
    loss = loss / tokens
    loss.backward()
    return float(loss.detach()), {
        name.replace(".default.", "."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def make_job(bench: Bench, work: Path, world_size: int, **keys: Any) -> str:
    run = bench.run(**{**ONE_STEP, **keys})
    work.mkdir(parents=True)
    folders = {"tokens": bench.upstream["tokenize"].folder, "packs": bench.upstream["pack"].folder}
    base = {"model": bench.model, "model_name": "base", "model_commit": None}
    settings = {"precision": "fp32", "tf32": False, "world_size": world_size}
    return Job(key="k", run=run, work=work, **folders, **base, **settings).model_dump_json()  # type: ignore[arg-type]


def train_job(text: str) -> None:
    from stages.train.stopping import StopFlag
    from stages.train.worker import train

    assert train(Job.model_validate_json(text), StopFlag()) == 0


def train_jobs(texts: list[str]) -> None:
    for text in texts:
        train_job(text)


def assert_step_is(
    bench: Bench, work: Path, loss: float, gradients: dict[str, torch.Tensor], start: Path | None = None
) -> None:
    records = read_metrics(work / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1]
    assert records[0]["loss"] == pytest.approx(loss, rel=1e-6)
    file = next((work / "final/model").glob("*.safetensors")).name
    before, after = load_file((start or bench.model) / file), load_file(work / "final/model" / file)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        step = before[name].double() - after[name].double()
        assert float((step - gradient).abs().max()) < 1e-5 * largest, name


def test_every_split_of_a_step_gives_the_mean_over_its_trained_tokens(bench: Bench, tmp_path: Path) -> None:
    loss, gradients = reference(bench, SEQUENCES[:8], bench.model)
    splits = [(8, 1), (4, 2), (2, 4)]
    works = [tmp_path / f"one-{micro}x{passes}" for micro, passes in splits]
    texts = [
        make_job(bench, work, 1, micro_batch_size=micro, gradient_accumulation_steps=passes)
        for work, (micro, passes) in zip(works, splits, strict=True)
    ]
    run_on_ranks(train_jobs, 1, texts)
    two = tmp_path / "two-2x2"
    run_on_ranks(train_job, 2, make_job(bench, two, 2, micro_batch_size=2, gradient_accumulation_steps=2))
    for work in [*works, two]:
        assert_step_is(bench, work, loss, gradients)
        eval_loss, _ = reference(bench, SEQUENCES[8:], work / "final/model")
        assert read_metrics(work / "metrics.jsonl")[-1]["eval_loss"] == pytest.approx(eval_loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "micro", "passes"), [(1, 1, 8), (2, 4, 1), (2, 1, 4), (4, 2, 1), (4, 1, 2)])
def test_more_splits_of_a_step(bench: Bench, tmp_path: Path, processes: int, micro: int, passes: int) -> None:
    keys = {"micro_batch_size": micro, "gradient_accumulation_steps": passes}
    run_on_ranks(train_job, processes, make_job(bench, tmp_path / "work", processes, **keys))
    assert_step_is(bench, tmp_path / "work", *reference(bench, SEQUENCES[:8], bench.model))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    """(base model, adapter to start from) by kind; both of the adapter's matrices get a gradient."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("starts")
    base = build_model(root / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(root / "adapter")
    tied = build_model(root / "tied", tie_word_embeddings=True)
    return {"full": (base, None), "tied": (tied, None), "lora": (base, root / "adapter")}


def assert_sharded_steps(
    bench: Bench, root: Path, starts: Starts, sharding: dict[str, Any], processes: int, micro: int, passes: int
) -> None:
    """One step of each kind, with weights in shards, is the one of float64, and takes no logits of whole batches."""
    jobs = []
    for kind, (model, adapter) in starts.items():
        keys = {"micro_batch_size": micro, "gradient_accumulation_steps": passes, **sharding}
        keys |= {"adapter": "lora", "lora_model_dir": str(adapter)} if adapter else {}
        job = Job.model_validate_json(make_job(bench, root / kind, processes, **keys))
        jobs.append(job.model_copy(update={"model": model, "adapter": adapter}).model_dump_json())
    ends = run_on_ranks(train_in_chunks, processes, jobs)
    assert ends == [[None] * len(jobs)] * processes
    for kind, (model, adapter) in starts.items():
        loss, gradients = reference(bench, SEQUENCES[:8], model, adapter)
        assert_step_is(bench, root / kind, loss, gradients, start=adapter or model)


def train_in_chunks(texts: list[str]) -> list[str | None]:
    """Train; that a model computes its own loss is a failure."""

    class Refused(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise AssertionError(record.getMessage())

    logging.getLogger("stages.train.worker").addHandler(Refused(logging.WARNING))
    return train_forked(texts)


def test_weights_in_shards_give_the_same_step(bench: Bench, tmp_path: Path, starts: Starts) -> None:
    assert_sharded_steps(bench, tmp_path, starts, {"fsdp_config": {}}, 2, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "micro", "passes"), [(1, 8, 1), (1, 4, 2), (2, 4, 1), (2, 1, 4), (4, 1, 2), (4, 2, 1)]
)
@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_more_splits_of_a_step_with_weights_in_shards(
    bench: Bench, tmp_path: Path, starts: Starts, sharding: str, processes: int, micro: int, passes: int
) -> None:
    if sharding == "zero3":
        pytest.importorskip("deepspeed")
    keys = {"fsdp2": {"fsdp_config": {}}, "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}}}}[sharding]
    assert_sharded_steps(bench, tmp_path, starts, keys, processes, micro, passes)


def test_a_last_step_with_fewer_sequences_than_processes_is_trained(bench: Bench, tmp_path: Path) -> None:
    keys = {"micro_batch_size": 3, "gradient_accumulation_steps": 2, "num_epochs": 1}
    run_on_ranks(train_job, 2, make_job(bench, tmp_path / "work", 2, **keys))  # 8 sequences in a step of 12
    assert_step_is(bench, tmp_path / "work", *reference(bench, SEQUENCES[:8], bench.model))


def test_a_leak_between_packed_samples_is_seen(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    from stages.errors import StageError
    from stages.tokens import TokenRows
    from stages.train.attention import check_isolation

    class Leaking(Batches):
        """Adds an attention mask: enough for the samples to see each other, without any warning."""

        def collate(self, sequences: Any) -> Batch:
            batch = super().collate(sequences)
            return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    model = AutoModelForCausalLM.from_pretrained(bench.model)
    rows, form = TokenRows(bench.upstream["tokenize"]), BatchForm(pad_id=3)
    worst = check_isolation(model, Batches(rows, bench.train_packs, form))
    assert worst is not None
    assert worst < 1e-5
    with pytest.raises(StageError, match="see each other"):
        check_isolation(model, Leaking(rows, bench.train_packs, form))


def test_packed_and_padded_rows_have_the_same_logits(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    from stages.tokens import TokenRows

    model = AutoModelForCausalLM.from_pretrained(bench.model).eval()
    batch = Batches(TokenRows(bench.upstream["tokenize"]), bench.train_packs, BatchForm(pad_id=3)).__getitems__([1, 0])
    packed = model(**{**batch, "labels": None}, use_cache=False).logits.detach().numpy()
    for row, sequence in enumerate([SEQUENCES[1], SEQUENCES[0]]):
        begin = 0
        for sample in sequence:
            ids = bench.rows[sample][0]
            alone = model(torch.tensor([ids])).logits[0].detach().numpy()
            np.testing.assert_allclose(packed[row, begin : begin + len(ids)], alone, atol=2e-6)
            begin += len(ids)
