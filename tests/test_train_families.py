"""Packed rows of many families of models, each against its samples run alone; those that cannot keep them apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.errors import StageError
from stages.tokens import TokenRows
from stages.train.attention import check_isolation
from stages.train.data import Batches, BatchForm
from stages.train.loss import LossByChunks
from stages.train.segments import attend_by_sample
from tests.train_data import Bench

pytestmark = pytest.mark.slow
SIZES: dict[str, Any] = {
    "vocab_size": 408,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 3,
    "max_position_embeddings": 256,
}
WINDOW = {"sliding_window": 6}  # narrower than the samples
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
KEPT_APART: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 0.5, **WINDOW},
    "gemma3_text": {"head_dim": 16, **WINDOW},
    "phi": {},
    "phi3": WINDOW,
    "gpt_neox": {},
    "gpt2": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "gptj": {"rotary_dim": 8, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "olmo2": {},
    "olmo3": WINDOW,
    "granite": {"logits_scaling": 8.0},
    "cohere": {},
    "cohere2": WINDOW,
    "starcoder2": WINDOW,
    "smollm3": {},
    "glm4": {"head_dim": 16},
    "exaone4": WINDOW,
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
}
ONLY_BY_SAMPLE = ("opt",)
"""Its masks do not know positions."""

BIASED_HEAD = ("phi", "gptj")
"""These compute their own loss."""

REFUSED: dict[str, dict[str, Any]] = {
    # a state or a convolution goes over the boundary
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False},
    "bamba": {"attn_layer_indices": [1], **STATE},
    "falcon_h1": {"mamba_d_ssm": 128, **STATE},
    "granitemoehybrid": {"num_local_experts": 0, "layer_types": ["mamba", "attention"] * 2, **STATE},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "recurrent_gemma": {"head_dim": 16, "attention_window_size": 8, "lru_width": 64},
    # positions do not reach the mask
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, **WINDOW},
}


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    """Three rows of four, one and three samples; most are longer than the window."""
    sequences = [[0, 1, 2, 3], [4], [5, 6, 7]]
    bench = Bench(tmp_path_factory.mktemp("families"), [7, 9, 2, 23, 40, 2, 30, 9], sequences, held_out=0)
    return Batches(TokenRows(bench.upstream["tokenize"]), bench.train_packs, BatchForm(pad_id=3))


def build(family: str, settings: dict[str, Any], attention: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", KEPT_APART)
def test_packed_rows_are_their_samples_alone(batches: Batches, family: str) -> None:
    settings = KEPT_APART[family]
    alone, loss = build(family, settings, "eager"), 0.0
    rows = []
    for sequence in range(3):
        parts = []
        for sample in batches.samples(sequence):
            ids, labels = (torch.from_numpy(array[None].astype("int64")) for array in (sample.input_ids, sample.labels))
            parts.append(alone(input_ids=ids, use_cache=False).logits[0])
            targets = labels[0, 1:]
            loss += float(torch.nn.functional.cross_entropy(parts[-1][:-1], targets, reduction="sum"))
        rows.append(torch.cat(parts))
    batch = batches.__getitems__([0, 1, 2])
    for attention in (None,) if family in ONLY_BY_SAMPLE else ("eager", None):  # None: what training takes on a CPU
        model = build(family, settings, attention)
        if attention is None:
            attend_by_sample(model)
        worst = check_isolation(model, batches)
        assert worst is not None
        assert worst < 1e-5
        chunks = LossByChunks.of(model)
        assert (chunks is None) == (family in BIASED_HEAD)
        if chunks is not None:
            assert chunks.is_right(model, batches.collate([batches.beginning(0, samples=1, tokens=64)]))
        assert float(model(**batch, use_cache=False, num_items_in_batch=1).loss) == pytest.approx(loss, rel=1e-5)
        logits = model(**{**batch, "labels": None}, use_cache=False).logits
        for row, expected in enumerate(rows):
            found = logits[row, : len(expected)]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_cannot_keep_samples_apart_is_refused(batches: Batches, family: str) -> None:
    model = build(family, REFUSED[family], None)
    attend_by_sample(model)
    with pytest.raises(StageError, match=r"see each other.* Set sample_packing: false"):
        check_isolation(model, batches)
