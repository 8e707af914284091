"""Attention sample by sample against each sample run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.tokens import TokenRows
from stages.train import segments
from stages.train.attention import check_isolation
from stages.train.data import Batches, BatchForm
from stages.train.segments import attend_by_sample
from tests.train_data import Bench


def build(kind: str) -> Any:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    if kind == "window":  # narrower than the samples: these layers need their mask
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=5))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=8))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def packed(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    return torch.randint(0, 97, positions.shape), positions


@pytest.mark.parametrize("kind", ["llama", "qwen3", "window"])
def test_packed_rows_have_logits_and_gradients_of_samples_alone(kind: str) -> None:
    rows = [[7, 9, 1, 3], [20], [1, 19]]
    ids, positions = packed(rows)
    model = build(kind)
    attend_by_sample(model)
    assert model.config._attn_implementation == "sdpa_by_sample"
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    reference = build(kind)
    total = torch.zeros(())
    for row, lengths in enumerate(rows):
        begin = 0
        for length in lengths:
            alone = reference(input_ids=ids[row : row + 1, begin : begin + length]).logits[0]
            torch.testing.assert_close(logits[row, begin : begin + length], alone, atol=2e-6, rtol=1e-4)
            total = total + alone.square().sum()
            begin += length
    total.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_padded_prompts_generate_as_with_sdpa() -> None:
    model, reference = build("llama").eval(), build("llama").eval()
    attend_by_sample(model)
    ids, mask = torch.randint(5, 97, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    mask[1, :4] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **arguments), reference.generate(ids, **arguments))


def test_nothing_of_it_is_saved_with_the_model() -> None:
    model = build("llama")
    attend_by_sample(model)
    assert "by_sample" not in model.config.to_json_string()


def test_an_implementation_that_was_asked_for_is_kept() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    attend_by_sample(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_that_keeps_positions_to_itself_falls_back_to_sdpa(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface, AutoModelForCausalLM

    bench = Bench(tmp_path_factory.mktemp("bench"), [9, 12, 7, 30], [[0, 1], [2, 3]], held_out=1)
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    attend_by_sample(model)

    def without_positions(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return segments.attend(*args, **kwargs)

    try:
        AttentionInterface.register(segments.NAME, without_positions)
        batches = Batches(TokenRows(bench.upstream["tokenize"]), bench.train_packs, BatchForm(pad_id=3))
        worst = check_isolation(model, batches)
    finally:
        AttentionInterface.register(segments.NAME, segments.attend)
    assert worst is not None
    assert worst < 1e-5
    assert model.config._attn_implementation == "sdpa"


def test_a_flat_batch_is_isolated_too(tmp_path: Path) -> None:
    """What FlashAttention and torch's variable-length attention get, here computed on a CPU."""
    from transformers import AutoModelForCausalLM

    bench = Bench(tmp_path, [7, 9, 20, 5], [[0, 1], [2, 3]], held_out=0)
    model = AutoModelForCausalLM.from_pretrained(bench.model)
    attend_by_sample(model)
    batches = Batches(TokenRows(bench.upstream["tokenize"]), bench.train_packs, BatchForm(pad_id=3, flat=True))
    worst = check_isolation(model, batches)
    assert worst is not None
    assert worst < 1e-5
    assert model.config._attn_implementation == "sdpa_by_sample"


def test_only_a_kernel_that_refuses_means_that_there_is_no_variable_length_attention(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = build("qwen3").config
    assert not segments._has_varlen(config, "cpu")
    assert "_flash_attention_forward" in caplog.text, "torch's own words, for who wonders why it is slow"
    for error in (torch.OutOfMemoryError("a full GPU"), ValueError("a mistake of ours"), AssertionError("another")):

        def attention(*args: Any, error: Exception = error) -> torch.Tensor:
            raise error

        monkeypatch.setattr(segments, "_varlen", attention)
        with pytest.raises(type(error), match=str(error)):
            segments._has_varlen(config, "cpu")
