"""Liger's kernels: which of them a run asks for, and what they replace in a model of the families that have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.train.kernels import KEYS, switches, use_liger
from stages.train.machine import Machine
from stages.train.rules import LIGER_KEYS, needed_packages
from stages.train.stage import key_inputs
from tests.train_data import Bench

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 8,
}


def test_only_what_is_asked_for_is_switched_on() -> None:
    known = {"model", "rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy"}
    on = {
        name
        for name, value in switches(known, ["liger_rope", "liger_glu_activation", "liger_layer_norm"]).items()
        if value
    }
    assert on == {"rope", "swiglu"}
    assert set(KEYS) == set(LIGER_KEYS)


def test_without_a_gpu_they_change_neither_the_model_nor_the_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [9, 9], [[0], [1]], held_out=0)
    plain, asked = bench.run(), bench.run(liger_rope=True, liger_rms_norm=True)
    assert key_inputs(bench.context(asked), Machine(())) == key_inputs(bench.context(plain), Machine(()))
    assert needed_packages(asked) == needed_packages(plain)
    on_gpu = [key_inputs(bench.context(run), Machine(((9, 0),))) for run in (plain, asked)]
    assert {key for key in on_gpu[1] if key not in on_gpu[0]} == {"liger_rope", "liger_rms_norm"}


def test_they_take_the_place_of_a_model_s_operators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("liger_kernel")
    run = Bench(tmp_path, [9, 9], [[0], [1]], held_out=0).run(liger_rms_norm=True, liger_glu_activation=True)
    with torch.device("meta"):
        llama, gemma = LlamaForCausalLM(LlamaConfig(**SIZES)), Gemma2ForCausalLM(Gemma2Config(**SIZES))
    own_loss = type(llama).forward
    for model in (llama, gemma):
        use_liger(model, run)
    assert "Liger" in repr(llama.model.layers[0].input_layernorm.forward)
    assert "Liger" in repr(llama.model.layers[0].mlp.forward)
    assert "Liger" in repr(gemma.model.layers[0].mlp.forward)
    assert llama.forward.__func__ is own_loss
    assert "Liger has no kernels" not in caplog.text
    use_liger(llama, run.model_copy(update={"liger_layer_norm": True}))
    assert "liger_layer_norm of llama models" in caplog.text
