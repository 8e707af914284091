"""Adapted layers that keep less for the backward pass: the numbers of PEFT's own layers, in less memory."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from stages.train.lora_kernels import LowRank, use_lora_kernels
from stages.train.rules import LORA_KERNEL_KEYS, problems
from tests.matrix import LENGTHS, LORA, LORA8, QLORA, SEQUENCES, losses, matrix_job, train_jobs
from tests.ranks import run_on_ranks
from tests.train_data import Bench

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

KERNELS: dict[str, Any] = dict.fromkeys(LORA_KERNEL_KEYS, True)
HIDDEN, INNER, TOKENS, BLOCKS, RANK = 64, 160, 48, 2, 4


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kernels"), LENGTHS, SEQUENCES)


def adapted(family: str, dtype: torch.dtype, seed: int = 0, **lora: Any) -> PeftModel:
    sizes = {"vocab_size": 97, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "pad_token_id": 0}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads)).to(dtype)
    config = LoraConfig(
        r=RANK, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **lora
    )  # B is no zero: else A would have no gradient
    return get_peft_model(model, config)  # type: ignore[return-value]


def loss_and_gradients(model: PeftModel, *, autocast: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(1, 97, (2, TOKENS // 2), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    grads = {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.item(), grads


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - grad).norm() / grad.norm()) for name, grad in expected.items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt_neox", "phi3"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_gradients_are_those_of_peft(family: str, dtype: torch.dtype, close: float) -> None:
    loss, grads = loss_and_gradients(adapted(family, dtype))
    model = adapted(family, dtype)
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    found, found_grads = loss_and_gradients(model)
    assert found == pytest.approx(loss, rel=close)
    assert furthest(found_grads, grads) < close


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16_they_round_no_more_than_peft(autocast: bool) -> None:
    plain, ours = [], []
    for seed in range(4):
        _, exact = loss_and_gradients(adapted("llama", torch.bfloat16, seed).double())
        model = adapted("llama", torch.bfloat16, seed)
        use_lora_kernels(model, LORA_KERNEL_KEYS)
        for errors, other in ((plain, adapted("llama", torch.bfloat16, seed)), (ours, model)):
            _, grads = loss_and_gradients(other, autocast=autocast)
            errors += [float((grads[name] - grad).norm() / grad.norm()) for name, grad in exact.items()]
    assert statistics.mean(ours) < 1.25 * statistics.mean(plain)


def test_the_gradients_are_the_slopes_of_the_forward_pass() -> None:
    model = adapted("llama", torch.float64)
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    block = model.get_base_model().model.layers[0]
    for part in (block.mlp, block.self_attn.q_proj, block.self_attn.o_proj):
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        x = torch.randn(2, 3, HIDDEN, dtype=torch.float64, requires_grad=True)

        def through(x: torch.Tensor, *_: torch.Tensor, part: Any = part) -> torch.Tensor:
            found: torch.Tensor = part(x)
            return found

        assert torch.autograd.gradcheck(through, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_feed_forward_part_keeps_its_input_and_two_tensors_of_the_width_inside(
    autocast: bool,
) -> None:
    def kept(model: PeftModel) -> int:
        held: dict[int, int] = {}

        def hold(tensor: torch.Tensor) -> torch.Tensor:
            if TOKENS in tensor.shape or TOKENS // 2 in tensor.shape:
                held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16 if autocast else torch.float32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = model.get_base_model().model.layers[0].mlp(x)
            numbers = sum(held.values()) // x.element_size() // TOKENS
        out.sum().backward()
        return numbers

    dtype = torch.bfloat16 if autocast else torch.float32
    plain, model = adapted("llama", dtype), adapted("llama", dtype)
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    assert kept(model) == HIDDEN + 2 * INNER
    assert kept(plain) >= HIDDEN + 4 * INNER + 3 * RANK


def test_weights_keep_their_names_and_an_adapter_can_be_switched_off() -> None:
    plain, model = adapted("llama", torch.float32), adapted("llama", torch.float32)
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    assert list(model.state_dict()) == list(plain.state_dict())
    ids = torch.arange(1, 9)[None]
    with torch.no_grad(), model.disable_adapter(), plain.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("more", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=str)
def test_other_adapters_stay_what_they_are(caplog: pytest.LogCaptureFixture, more: dict[str, Any]) -> None:
    model = adapted("llama", torch.float32, **more)
    forward = model.get_base_model().model.layers[0].mlp.forward
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    assert model.get_base_model().model.layers[0].mlp.forward == forward
    assert all(f"{key}: no layer" in caplog.text for key in LORA_KERNEL_KEYS)


def test_a_feed_forward_part_that_does_more_is_left_alone() -> None:
    """Its layers have the names, and its result is scaled: nothing but the result tells."""
    model = adapted("llama", torch.float32)
    mlp = model.get_base_model().model.layers[0].mlp

    def scaled(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)) * 1.5
        return found

    mlp.forward = scaled
    use_lora_kernels(model, LORA_KERNEL_KEYS)
    assert mlp.forward is scaled
    assert LowRank.of(mlp.down_proj) is not None


def assert_same_trainings(bench: Bench, root: Path, kinds: dict[str, dict[str, Any]], world_size: int) -> None:
    """Train each kind with and without the kernels: with them on so many processes, without on one."""
    pytest.importorskip("bitsandbytes")
    plain_keys = {
        name: {key: value for key, value in keys.items() if key != "fsdp_config"} for name, keys in kinds.items()
    }
    plain = [matrix_job(bench, root / name / "plain", **keys) for name, keys in plain_keys.items()]
    ours = [
        matrix_job(bench, root / name / "ours", world_size=world_size, **keys, **KERNELS)
        for name, keys in kinds.items()
    ]
    for jobs, processes in ((plain, 1), (ours, world_size)):
        ends = run_on_ranks(train_jobs, processes, [job.model_dump_json() for job in jobs])
        assert ends == [[None] * len(jobs)] * processes
    for job, reference in zip(ours, plain, strict=True):
        assert losses(job.work) == pytest.approx(losses(reference.work), rel=1e-5), job.work
        file = "final/model/adapter_model.safetensors"
        found, expected = load_file(job.work / file), load_file(reference.work / file)
        assert {key: part.shape for key, part in found.items()} == {key: part.shape for key, part in expected.items()}


def test_trainings_are_those_without_them(bench: Bench, tmp_path: Path) -> None:
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert_same_trainings(bench, tmp_path, {"reentrant": {**LORA, **reentrant}, "nf4": QLORA}, 1)


@pytest.mark.slow
def test_more_trainings_are_those_without_them(bench: Bench, tmp_path: Path) -> None:
    offload = {**LORA, "gradient_checkpointing": "offload"}
    assert_same_trainings(bench, tmp_path / "1", {"lora": LORA, "offload": offload, "int8": LORA8}, 1)
    sharded = {"fsdp2": {**LORA, "fsdp_config": {}}, "fsdp2, nf4": {**QLORA, "fsdp_config": {}}}
    assert_same_trainings(bench, tmp_path / "2", {"ddp": LORA, **sharded}, 2)


def test_weights_in_shards_that_a_kernel_could_not_read_are_refused(bench: Bench) -> None:
    by_size = {"fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 10}}
    for sharding in (by_size, {"deepspeed": {"zero_optimization": {"stage": 3}}}):
        found = [problem for problem in problems(bench.run(**LORA, **KERNELS, **sharding)) if "kernel" in problem.key]
        assert [problem.key for problem in found] == list(LORA_KERNEL_KEYS)
        assert not [problem for problem in problems(bench.run(**LORA, **sharding)) if "kernel" in problem.key]
