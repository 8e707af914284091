"""Learning rates against formulae written down here, and parameter groups against PEFT's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import RunConfig
from stages.errors import ConfigError
from stages.train.optimizers import ELSEWHERE, NEEDED_PACKAGE, SCHEDULES
from stages.train.rules import problems
from tests.test_train_schedule import plan, run_config

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
STEPS, WARMUP = 40, 8


def rates(**keys: Any) -> list[float]:
    """Return the learning rate of each step, in parts of the peak, as the trainer would set it."""
    from transformers import Trainer, TrainingArguments

    from stages.train.learning_rate import own_schedule

    run = run_config(**keys, warmup_steps=WARMUP, learning_rate=1.0)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    schedule = own_schedule(optimizer, run, plan(4 * STEPS, warmup_steps=WARMUP, **keys))
    if schedule is None:
        arguments = TrainingArguments(use_cpu=True, lr_scheduler_type=run.lr_scheduler, warmup_steps=WARMUP)
        trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments, optimizers=(optimizer, None))
        schedule = trainer.create_scheduler(STEPS, optimizer)
    found = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def cosine(s: int, end: int = STEPS) -> float:
    return (1 + math.cos(math.pi * min(1, (s - WARMUP) / (end - WARMUP)))) / 2


def rex(s: int) -> float:
    left = 1 - (s - WARMUP) / (STEPS - WARMUP)
    return left / (0.1 + 0.9 * left)


@pytest.mark.parametrize(
    ("keys", "after_warmup"),
    [
        ({}, cosine),
        ({"lr_scheduler": "linear"}, lambda s: (STEPS - s) / (STEPS - WARMUP)),
        ({"lr_scheduler": "constant_with_warmup"}, lambda s: 1.0),
        ({"cosine_min_lr_ratio": 0.2}, lambda s: 0.2 + 0.8 * cosine(s)),
        ({"cosine_min_lr_ratio": 1.0, "cosine_constant_lr_ratio": 0.0}, lambda s: 1.0),
        ({"cosine_min_lr_ratio": 0.2, "cosine_constant_lr_ratio": 0.8}, lambda s: 0.2 + 0.8 * cosine(s, 32)),
        ({"lr_scheduler": "rex"}, rex),
        ({"lr_scheduler": "rex", "cosine_min_lr_ratio": 0.1}, lambda s: 0.1 + 0.9 * rex(s)),
    ],
)
def test_schedules(keys: dict[str, Any], after_warmup: Callable[[int], float]) -> None:
    expected = [s / WARMUP if s < WARMUP else after_warmup(s) for s in range(STEPS)]
    assert rates(**keys) == pytest.approx(expected, abs=1e-12)


def test_a_quadratic_warmup() -> None:
    expected = [(s / WARMUP) ** 2 if s < WARMUP else cosine(s) for s in range(STEPS)]
    assert rates(lr_quadratic_warmup=True) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_rises_to_its_peak_at_the_end_of_the_warmup_and_falls_below_its_start() -> None:
    found = rates(lr_scheduler="one_cycle", lr_scheduler_kwargs={"div_factor": 10})
    assert found[0] == pytest.approx(0.1)
    assert max(found) == found[WARMUP - 1] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(0.1 / 1e4)


def test_names_are_those_of_the_libraries() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert NEEDED_PACKAGE.keys() | ELSEWHERE.keys() == {name.value for name in OptimizerNames}
    theirs = {name.value for name in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}
    assert set(SCHEDULES) == theirs | {"one_cycle", "rex"}


@pytest.mark.parametrize(
    ("keys", "key", "remedy"),
    [
        ({"optimizer": "adamx"}, "optimizer", "Use one of them."),
        ({"optimizer": "adamw_anyprecision"}, "optimizer", "Set optimizer: adamw_torch_fused."),
        ({"optimizer": "galore_adamw"}, "optim_target_modules", "Set optim_target_modules: all_linear."),
        ({"optimizer": "grokadamw"}, "optimizer", "Install it: pip install grokadamw."),
        ({"optimizer": "stable_adamw"}, "optimizer", "Install it: pip install torch-optimi."),
        ({"lr_scheduler": "cosin"}, "lr_scheduler", "Use one of them."),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "lr_scheduler", "Use cosine"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(keys: dict[str, Any], key: str, remedy: str) -> None:
    assert any(problem.key == key and problem.remedy.startswith(remedy) for problem in problems(run_config(**keys)))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tests.tiny import build_model

    model = AutoModelForCausalLM.from_pretrained(build_model(tmp_path_factory.mktemp("rates") / "base"))
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], use_dora=False))


def by_rate(groups: Any, model: Any) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def groups_of(model: Any, run: RunConfig) -> dict[str, tuple[float, float]]:
    from stages.train.learning_rate import parameter_groups

    decayed = {name for name, _ in model.named_parameters() if "norm" not in name and "bias" not in name}
    return by_rate(parameter_groups(model.named_parameters(), decayed, run), model)


def test_loraplus_is_that_of_peft(adapted: Any) -> None:
    from peft.optimizers import create_loraplus_optimizer

    keys = {"adapter": "lora", "lora_target_linear": True, "weight_decay": 0.1, "learning_rate": 1e-3}
    run = run_config(**keys, loraplus_lr_ratio=16, loraplus_lr_embedding=2e-5)
    options = {"loraplus_lr_embedding": 2e-5, "loraplus_weight_decay": 0.1}
    theirs = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, **options)
    assert groups_of(adapted, run) == by_rate(theirs.param_groups, adapted)


def test_embeddings_and_groups_have_their_own_rates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.tiny import build_model

    model = AutoModelForCausalLM.from_pretrained(build_model(tmp_path))
    groups = [{"name": "late", "modules": ["layers.1."], "lr": 3e-5}, {"name": "q", "modules": "q_proj", "lr": 5e-5}]
    found = groups_of(model, run_config(weight_decay=0.1, embedding_lr_scale=0.5, lr_groups=groups))
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == (0.5e-4, 0.0)
    assert found["model.layers.1.self_attn.q_proj.weight"] == (3e-5, 0.1)  # the first group that names it
    assert found["model.layers.0.self_attn.q_proj.weight"] == (5e-5, 0.1)
    assert found["model.layers.0.mlp.up_proj.weight"] == (1e-4, 0.1)
    assert found["model.layers.1.input_layernorm.weight"] == (1e-4, 0.0)
    assert len(found) == len(list(model.parameters()))
    with pytest.raises(ConfigError, match="lr_groups = k_prj"):
        groups_of(model, run_config(lr_groups=[{"name": "k", "modules": "k_prj", "lr": 1e-5}]))
