"""Settings that change how a model trains, and those that must not change what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.errors import ConfigError
from stages.train.job import Job
from stages.train.metrics import read_metrics
from tests.ranks import run_on_ranks
from tests.train_data import Bench

LENGTHS = [30, 12, 45, 20, 9, 33, 18, 27]
SEQUENCES = [[0, 1], [2], [3, 4], [5], [6, 7], [1, 4], [0], [3]]
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_target_linear": True, "lora_dropout": 0.3}


pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning"
)  # PEFT asks it of transformers


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("options"), LENGTHS, SEQUENCES)


def make_job(bench: Bench, work: Path, precision: str = "fp32", **keys: Any) -> Job:
    work.mkdir(parents=True)
    return Job(
        key="k",
        run=bench.run(val_set_size=0.1, num_epochs=2, **keys),
        tokens=bench.upstream["tokenize"].folder,
        packs=bench.upstream["pack"].folder,
        model=bench.model,
        model_name="the/base",
        model_commit="abc",
        work=work,
        precision=precision,  # type: ignore[arg-type]
        tf32=False,
        world_size=1,
    )


def train_jobs(texts: list[str]) -> list[str | None]:
    """Train each job; return its error, or None. One whose key says so is stopped after its first step, and resumed."""
    from stages.errors import SftError
    from stages.train.stopping import StopFlag
    from stages.train.worker import train

    ends: list[str | None] = []
    for text in texts:
        job, stop = Job.model_validate_json(text), StopFlag()
        stop.is_set = job.key == "stopped"
        try:
            if stop.is_set:
                assert train(job, stop) == 143
                assert [path.name for path in job.work.glob("checkpoint-*")] == ["checkpoint-1"]
            assert train(job, StopFlag()) == 0
            ends.append(None)
        except SftError as error:
            ends.append(f"{type(error).__name__}: {error}")
    return ends


def losses(work: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(work / "metrics.jsonl") if "loss" in record]


def test_options(bench: Bench, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "full": {},
        "eager": {"attn_implementation": "eager"},
        "padded": {"pad_to_sequence_len": True, "sequence_len": 64},
        "recomputed": {"gradient_checkpointing": True},
        "workers": {"dataloader_num_workers": 2},
        "bf16": {"bf16": True, "precision": "bf16"},
        "pure bf16": {"bf16": "full", "precision": "bf16"},
        "lora": LORA,
        "lora, evaluated and saved often": {**LORA, "eval_steps": 1, "save_steps": 2, "logging_steps": 1},
        "lora, recomputed": {**LORA, "gradient_checkpointing": True},
        "lora, saved modules": {**LORA, "lora_modules_to_save": ["embed_tokens"]},
        "lora, bf16": {**LORA, "bf16": True, "precision": "bf16"},
        "neftune": {"neftune_noise_alpha": 5.0},
        "too fast": {"learning_rate": 1e30, "optimizer": "sgd", "max_grad_norm": 0.0},
        "unknown attention": {"attn_implementation": "flash_attention_2"},
        "unknown module": {**LORA, "lora_target_modules": ["q_prj"]},
    }
    jobs = {name: make_job(bench, tmp_path / name, **keys) for name, keys in options.items()}
    for name in ("full", "lora"):
        work = tmp_path / f"{name}, stopped"
        jobs[f"{name}, stopped"] = make_job(bench, work, **options[name]).model_copy(update={"key": "stopped"})
    jobs["on their own"] = make_job(bench, tmp_path / "on their own").model_copy(update={"world_size": 2})
    ends = dict(
        zip(jobs, run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs.values()])[0], strict=True)
    )

    failed = {name: end for name, end in ends.items() if end is not None}
    assert set(failed) == {"too fast", "unknown attention", "unknown module", "on their own"}
    assert "2 training processes were started, but they form groups of 1" in failed["on their own"]
    assert failed["too fast"].startswith("StageError: step ")
    assert "learning_rate (now 1e+30)" in failed["too fast"]
    assert "attn_implementation = flash_attention_2" in failed["unknown attention"]
    assert "lora_target_modules = q_prj" in failed["unknown module"]
    assert "its linear layers are down_proj, gate_proj, " in failed["unknown module"]

    full = losses(tmp_path / "full")
    assert len(full) == 6
    for same in ("eager", "padded", "recomputed", "workers"):
        assert losses(tmp_path / same) == pytest.approx(full, rel=1e-4), same
    assert losses(tmp_path / "bf16") == pytest.approx(full, rel=0.02)
    assert losses(tmp_path / "pure bf16") == pytest.approx(full, rel=0.05)
    assert losses(tmp_path / "lora, recomputed") == pytest.approx(losses(tmp_path / "lora"), rel=1e-4)
    assert losses(tmp_path / "neftune") != pytest.approx(full, rel=1e-4)

    # evaluations and checkpoints draw no random number
    often, seldom = tmp_path / "lora, evaluated and saved often", tmp_path / "lora"
    assert losses(often) == losses(seldom)
    name = "final/model/adapter_model.safetensors"
    assert (often / name).read_bytes() == (seldom / name).read_bytes()

    # SIGTERM costs nothing but time
    for kind, weights in (("full", "final/model/model.safetensors"), ("lora", name)):
        stopped, whole = tmp_path / f"{kind}, stopped", tmp_path / kind
        assert losses(stopped) == losses(whole)
        assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()

    assert {t.dtype for t in load_file(tmp_path / "bf16/final/model/model.safetensors").values()} == {torch.bfloat16}
    assert_adapter_is_plain(bench, seldom / "final/model")
    saved = load_file(tmp_path / "lora, saved modules" / name)
    assert any("embed_tokens" in key for key in saved)


def assert_adapter_is_plain(bench: Bench, folder: Path) -> None:
    """Plain PEFT loads it, and it does something; every reader may read it; nothing in it tells where it was made."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("the/base", "abc")
    assert "lm_head" not in config["target_modules"]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {p.name for p in folder.iterdir()}
    base = AutoModelForCausalLM.from_pretrained(bench.model).eval()
    ids = torch.tensor([bench.rows[0][0]])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, folder).eval()(ids).logits
    assert (before - after).abs().max() > 0.01


def test_a_vocabulary_that_grew_needs_its_embeddings_trained(bench: Bench, tmp_path: Path) -> None:
    from stages.train.model import load_model

    with pytest.raises(ConfigError, match=r"lora_modules_to_save: \[embed_tokens, lm_head\]"):
        load_model(make_job(bench, tmp_path / "lora", **LORA), 1000)
    assert load_model(make_job(bench, tmp_path / "full"), 1000).get_input_embeddings().num_embeddings == 1000


def test_weights_that_are_not_safetensors_are_refused(bench: Bench, tmp_path: Path) -> None:
    from stages.train.model import load_model

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((bench.model / "config.json").read_text())
    torch.save({}, folder / "pytorch_model.bin")
    job = make_job(bench, tmp_path / "work").model_copy(update={"model": folder})
    with pytest.raises(ConfigError, match="weights in safetensors"):
        load_model(job, 10)


def test_an_expression_as_target(bench: Bench, tmp_path: Path) -> None:
    from stages.train.model import load_model

    keys = {"adapter": "lora", "lora_target_modules": r".*layers\.1\..*\.[qv]_proj"}
    model = load_model(make_job(bench, tmp_path / "work", **keys), 10)
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.removeprefix("base_model.model.model.") for name in adapted} == {
        "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj",
    }
    keys["lora_target_modules"] = r"no\.such\..*"
    with pytest.raises(ConfigError, match="no such module"):
        load_model(make_job(bench, tmp_path / "none", **keys), 10)
