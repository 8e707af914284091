"""The loss by chunks against cross-entropy over all logits, written out in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.train import loss as loss_module
from stages.train.loss import LogitForm, LossByChunks, summed_loss


def plain_sum(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = hidden @ weight.T
    logits = 3.0 * torch.tanh(0.5 * logits / 3.0)
    probabilities = torch.log_softmax(logits, dim=-1)
    total = torch.zeros((), dtype=hidden.dtype)
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            if labels[row, position] != -100:
                total = total - probabilities[row, position - 1, labels[row, position]]
    return total


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(2, 50, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(40, 12, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 40, (2, 50))
    labels[0, :30] = -100
    labels[1, 7:41] = -100
    return hidden, weight, labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("head_is_trained", [True, False])
def test_loss_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, head_is_trained: bool
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 16 * 40 * 4})  # 35 trained positions: three chunks
    hidden, weight, labels = inputs(dtype)
    weight.requires_grad_(head_is_trained)
    total = summed_loss(hidden, weight, labels, LogitForm(scale=0.5, cap=3.0))
    (total * 0.25).backward()

    exact_hidden, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    expected = plain_sum(exact_hidden, exact_weight, labels)
    (expected * 0.25).backward()
    assert int((labels[:, 1:] != -100).sum()) == 35
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    pairs = [(hidden, exact_hidden), (weight, exact_weight)] if head_is_trained else [(hidden, exact_hidden)]
    for found, wanted in pairs:
        assert found.grad is not None
        assert wanted.grad is not None
        assert float((found.grad - wanted.grad).abs().max() / wanted.grad.abs().max()) < tolerance
    assert (weight.grad is None) is not head_is_trained


def test_a_batch_without_trained_tokens_gives_zero_and_zero_gradients() -> None:
    hidden, weight, labels = inputs(torch.float32)
    total = summed_loss(hidden, weight, torch.full_like(labels, -100))
    total.backward()
    assert float(total.detach()) == 0.0
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_logits_exist_for_a_chunk_of_trained_positions_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
            return result

    monkeypatch.setattr(loss_module, "CHUNK_BYTES", {"cpu": 32 * 5000 * 4})
    hidden = torch.randn(1, 4096, 8, requires_grad=True)
    weight, labels = torch.randn(5000, 8), torch.randint(0, 5000, (1, 4096))
    with Largest() as largest:
        summed_loss(hidden, weight, labels).backward()
    assert largest.numbers == 32 * 5000  # not 4096 * 5000


def model_and_batch(**settings: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, "intermediate_size": 32, **settings}))
    ids = torch.randint(0, 97, (2, 24))
    labels = ids.masked_fill(torch.arange(24) < 10, -100)
    return model, {"input_ids": ids, "labels": labels, "position_ids": torch.arange(24).expand(2, -1)}


def by_chunks(model: Any, batch: dict[str, torch.Tensor]) -> bool:
    chunks = LossByChunks.of(model)
    return chunks is not None and chunks.is_right(model, batch)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks for a name that transformers renamed
@pytest.mark.parametrize("kind", ["full", "tied", "lora", "saved_head"])
def test_a_model_trains_with_the_same_gradients(kind: str) -> None:
    import copy

    from peft import LoraConfig, get_peft_model

    own, batch = model_and_batch(tie_word_embeddings=kind == "tied")
    if kind in ("lora", "saved_head"):
        saved = ["lm_head"] if kind == "saved_head" else None
        own = get_peft_model(own, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=saved, lora_dropout=0.0))
    chunked = copy.deepcopy(own)
    assert by_chunks(chunked, batch)
    for model in (own, chunked):
        model(**batch, use_cache=False, num_items_in_batch=torch.tensor(9)).loss.backward()
    trained = [name for name, parameter in own.named_parameters() if parameter.grad is not None]
    assert trained == [name for name, parameter in chunked.named_parameters() if parameter.grad is not None]
    others = dict(chunked.named_parameters())
    for name, parameter in own.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(others[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_model_without_labels_gives_its_logits() -> None:
    model, batch = model_and_batch()
    before = model(input_ids=batch["input_ids"]).logits
    assert by_chunks(model, batch)
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, before)


def test_families_with_bent_logits_keep_their_loss(tmp_path: Path) -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}
    _, batch = model_and_batch()
    for model in (
        Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=0.3)),
        CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.0625)),
    ):
        with torch.no_grad():
            expected = float(model(**batch, use_cache=False).loss)
        assert by_chunks(model, batch), type(model).__name__
        assert float(model(**batch, use_cache=False).loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_a_model_with_another_loss_keeps_it() -> None:
    model, batch = model_and_batch()
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.float().square().mean()
    expected = float(model(**batch, use_cache=False).loss.detach())
    assert not by_chunks(model, batch)
    assert float(model(**batch, use_cache=False).loss.detach()) == expected
