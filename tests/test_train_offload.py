"""Activations kept on the CPU: the same gradients, and what is moved is the input of each block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.errors import ConfigError
from configs.load import load_run
from stages.train.offload import OnHost
from tests.test_config import GOOD
from tests.tiny import build_model

LAYERS, ROWS, WIDTH, HIDDEN = 2, 4, 1024, 64


def gradients(model: PreTrainedModel, *, reentrant: bool, offload: bool) -> tuple[list[torch.Tensor], int]:
    torch.manual_seed(0)
    ids = torch.randint(4, 200, (ROWS, WIDTH))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.zero_grad()
    hook = OnHost("cpu")  # on this machine what is saved is there already; it is copied all the same
    if offload:
        with hook:
            loss = model(input_ids=ids, labels=ids).loss
    else:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None], hook.moved


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_gradients_are_the_same_and_the_inputs_of_blocks_are_moved(tmp_path: Path, reentrant: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(build_model(tmp_path / "base"))
    here, nothing = gradients(model, reentrant=reentrant, offload=False)
    there, moved = gradients(model, reentrant=reentrant, offload=True)
    assert nothing == 0
    assert moved >= LAYERS * ROWS * WIDTH * HIDDEN * 4
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize(
    "keys", ["gradient_checkpointing: offload", "gradient_checkpointing: true\nactivation_offloading: true"]
)
def test_both_ways_to_ask_for_it(tmp_path: Path, keys: str) -> None:
    (tmp_path / "run.yaml").write_text(f"{GOOD}{keys}\n")
    run = load_run(tmp_path / "run.yaml").run
    assert run.offloads_activations
    assert run.recomputes_activations


def test_it_needs_recomputation(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"{GOOD}activation_offloading: true\n")
    with pytest.raises(ConfigError, match="Set gradient_checkpointing: true"):
        load_run(tmp_path / "run.yaml")
