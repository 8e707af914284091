"""Each way to adapt a model, or a part of it: trained as asked for, and merged into what plain PEFT computes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.errors import ConfigError
from stages.merge.worker import Job as MergeJob
from stages.merge.worker import merge
from stages.train.stage import key_inputs
from stages.train.start import started_from
from tests.matrix import LENGTHS, LORA, SEQUENCES, eval_loss, losses, matrix_job
from tests.matrix import train_jobs as train_forked
from tests.ranks import run_on_ranks
from tests.test_train_options import train_jobs
from tests.test_train_stage import CPU
from tests.train_data import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

KINDS: dict[str, dict[str, Any]] = {
    "plain": LORA,
    "dora": {**LORA, "peft_use_dora": True},
    "rslora": {**LORA, "peft_use_rslora": True},
    "patterns": {**LORA, "lora_rank_pattern": {"q_proj": 2}, "lora_alpha_pattern": {r"layers\.1\..*v_proj": 64}},
    "layers": {**LORA, "peft_layers_to_transform": [1], "peft_init_lora_weights": "gaussian"},
    "saved": {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"], "embedding_lr": 1e-4},
    "list": {"adapter": "lora", "lora_r": 4, "lora_target_modules": ["q_proj", r".*layers\.0\..*up_proj"]},
    "loraplus": {**LORA, "loraplus_lr_ratio": 4},
}
UNFROZEN: dict[str, dict[str, Any]] = {
    "unfrozen": {"unfrozen_parameters": ["^lm_head.weight$", r"model.layers.[1-1]\..*proj"]},
    "unfrozen, recomputed": {"unfrozen_parameters": ["^lm_head.weight$"], "gradient_checkpointing": True},
}
COURSES: dict[str, dict[str, Any]] = {
    "8 bits": {"optimizer": "adamw_bnb_8bit"},
    "paged": {"optimizer": "paged_adamw_8bit", **LORA},
    "adafactor": {"optimizer": "adafactor"},
    "rex": {"lr_scheduler": "rex", "warmup_steps": 2},
    "one cycle": {"lr_scheduler": "one_cycle", "warmup_steps": 2},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("adapters"), LENGTHS, SEQUENCES)


@pytest.fixture(scope="module")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind, trained for six steps; `continued` starts from what `plain` became."""
    root = tmp_path_factory.mktemp("trained")
    jobs = [matrix_job(bench, root / name, **keys) for name, keys in {**KINDS, **UNFROZEN}.items()]
    start = root / "plain/final/model"
    continued = matrix_job(bench, root / "continued", adapter="lora", lora_model_dir=str(start))
    jobs.append(continued.model_copy(update={"adapter": start}))
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None] * len(jobs)]
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_train_each_kind_as_one_does(bench: Bench, trained: Path, tmp_path: Path, sharding: str) -> None:
    keys: dict[str, Any] = {"fsdp_config": {}} if sharding == "fsdp2" else {}
    kinds = {**KINDS, **UNFROZEN}
    jobs = [matrix_job(bench, tmp_path / name, world_size=2, **kind, **keys) for name, kind in kinds.items()]
    noisy = matrix_job(bench, tmp_path / "neftune", world_size=2, neftune_noise_alpha=5, **keys)
    texts = [job.model_dump_json() for job in [*jobs, noisy]]
    ends = run_on_ranks(train_forked, 2, texts)
    assert ends == [[None] * len(texts)] * 2
    for name in kinds:
        assert losses(tmp_path / name) == pytest.approx(losses(trained / name), rel=1e-5), name
        assert eval_loss(tmp_path / name) == pytest.approx(eval_loss(trained / name), rel=1e-5), name
        file = next((trained / name / "final/model").glob("*.safetensors")).name
        found, expected = (load_file(work / name / "final/model" / file) for work in (tmp_path, trained))
        assert found.keys() == expected.keys()
        for tensor, weight in expected.items():
            torch.testing.assert_close(found[tensor], weight, rtol=0, atol=1e-4, msg=f"{name}: {tensor}")
    assert losses(noisy.work)[-1] < losses(noisy.work)[0]


def parts(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final/model/adapter_model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_and_merges_into_what_peft_computes(bench: Bench, trained: Path, kind: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    work = trained / kind
    assert losses(work)[-1] < losses(work)[0]
    folder = work / "merged"
    merge(MergeJob(bench.model, work / "final/model", folder, work / "result", "float32", "float32", None, False))
    ids = torch.tensor([bench.rows[2][0]])
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.model), work / "final/model").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=2e-4, rtol=0)


def test_shapes_are_those_asked_for(trained: Path) -> None:
    assert any("lora_magnitude_vector" in name for name in parts(trained / "dora"))
    config = json.loads((trained / "rslora/final/model/adapter_config.json").read_text())
    assert config["use_rslora"]
    ranks = {name: len(weight) for name, weight in parts(trained / "patterns").items() if "lora_A" in name}
    assert {name: rank for name, rank in ranks.items() if rank != 4}.keys() == {n for n in ranks if "q_proj" in n}
    assert all("layers.1." in name for name in parts(trained / "layers"))
    assert {re.sub(r".*layers\.|\.lora_.*", "", name) for name in parts(trained / "list")} == {
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "0.mlp.up_proj",
    }


def test_only_unfrozen_parameters_change(bench: Bench, trained: Path) -> None:
    before = load_file(bench.model / "model.safetensors")
    for kind, expected in (("unfrozen", 8), ("unfrozen, recomputed", 1)):
        after = load_file(trained / kind / "final/model/model.safetensors")
        changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
        assert all(re.match(r"lm_head\.weight$|model\.layers\.1\..*proj", name) for name in changed)
        assert len(changed) == expected


def test_an_adapter_is_trained_further(trained: Path) -> None:
    first, second = trained / "plain", trained / "continued"
    assert losses(second)[0] < losses(first)[0] - 0.1  # it begins where the first one ended
    assert parts(second).keys() == parts(first).keys()


@pytest.mark.slow
def test_optimizers_and_schedules_train(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    jobs = [matrix_job(bench, tmp_path / name, **keys) for name, keys in COURSES.items()]
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None] * len(jobs)]
    for job in jobs:
        assert losses(job.work)[-1] < losses(job.work)[0], job.work.name


@pytest.mark.slow
def test_schedule_free_weights_do_not_depend_on_an_evaluation_at_the_end(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    keys = {**LORA, "optimizer": "schedule_free_adamw", "lr_scheduler": "constant"}
    unseen = Bench(tmp_path / "unseen", LENGTHS, SEQUENCES[:-2], held_out=0)
    jobs = [matrix_job(bench, tmp_path / "evaluated", **keys), matrix_job(unseen, tmp_path / "never", **keys)]
    assert run_on_ranks(train_jobs, 1, [job.model_dump_json() for job in jobs]) == [[None] * 2]
    assert losses(jobs[0].work) == losses(jobs[1].work)
    evaluated, never = (load_file(job.work / "final/model/adapter_model.safetensors") for job in jobs)
    assert all(torch.equal(evaluated[name], never[name]) for name in evaluated)


def test_the_key_of_a_continued_training_knows_the_adapter(bench: Bench, trained: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(trained / "plain/final/model", tmp_path / "copy")
    keys = {"adapter": "lora", "lora_model_dir": str(folder)}
    context = bench.context(bench.run(**keys))
    before = key_inputs(context, CPU)
    (folder / "adapter_model.safetensors").write_bytes(b"others")
    assert key_inputs(context, CPU)["adapter_to_start_from"] != before["adapter_to_start_from"]
    with pytest.raises(ConfigError, match=r"lora_r = 16: the adapter in lora_model_dir has 4. Set lora_r: 4"):
        started_from(bench.context(bench.run(**keys, lora_r=16)))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"no readable adapter_config\.json"):
        started_from(context)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({**LORA, "lora_modules_to_save": ["embed_token"]}, "lora_modules_to_save = embed_token"),
        ({**LORA, "lora_rank_pattern": {"q_prj": 2}}, "lora_rank_pattern = q_prj"),
        ({**LORA, "lora_target_modules": ["q_proj", "k_prj.*"]}, "lora_target_modules = k_prj"),
        ({**LORA, "lora_target_parameters": ["experts.up"]}, "lora_target_parameters = experts.up"),
        ({"unfrozen_parameters": ["lm_head", "no_such"]}, "unfrozen_parameters = no_such"),
    ],
)
def test_what_matches_nothing_is_refused(bench: Bench, tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    from stages.train.model import load_model

    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_model(matrix_job(bench, tmp_path / "work", **keys), 10)
