"""How the families of models call and build their layers: what `config.json` does not say.

A family that is not here is taken for one like Llama, and its figures are called rough.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The layers of one block.

    Attributes:
        blocks: path of the list of blocks.
        attention: path of the attention in a block.
        mlp: path of the feed-forward part in a block.
        qkv: names of the input projections: three, or one for all.
        out: name of the output projection.
        gate: names of the gated input projections, two or one for both; of the plain one without a gate.
        down: name of the output projection of the feed-forward part.
        gated: whether the feed-forward part has a gate.
        qkv_bias: whether the input projections have a bias, whatever the configuration says.
        bias: whether all linear layers have one.
        norms: norms of the model's width in a block.
        head_norms: whether queries and keys have norms of the width of a head.
        tied: whether embeddings and head are one table where the configuration does not say.
        shared: name of the expert that every token meets.
        shared_gate: name of the layer that weighs it.
        defaults: values that the family's configurations leave out.
        known: whether all this is known of the family.
    """

    blocks: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    gate: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    gated: bool = True
    qkv_bias: bool = False
    bias: bool = False
    norms: int = 2
    head_norms: bool = False
    tied: bool = False
    shared: str = "shared_experts"
    shared_gate: str = ""
    defaults: tuple[tuple[str, int], ...] = ()
    known: bool = True


_LLAMA = Family()
_GEMMA = Family(tied=True)
_FOUR_NORMS = Family(norms=4, tied=True)
_FUSED = Family(qkv=("qkv_proj",), gate=("gate_up_proj",))
_FUSED_HEADS = ("query_key_value",)
_NEOX = Family(
    blocks="gpt_neox.layers",
    attention="attention",
    qkv=_FUSED_HEADS,
    out="dense",
    gate=("dense_h_to_4h",),
    down="dense_4h_to_h",
    gated=False,
    bias=True,
    norms=4,
)
_PLAIN = Family(gate=("up_proj",), gated=False)

FAMILIES: dict[str, Family] = {
    "apertus": Family(gate=("up_proj",), gated=False, head_norms=True),
    "arcee": _PLAIN,
    "cohere": Family(norms=1, tied=True),
    "cohere2": Family(norms=1, tied=True),
    "ernie4_5": _LLAMA,
    "exaone4": Family(head_norms=True),
    "gemma": _GEMMA,
    "gemma2": _FOUR_NORMS,
    "gemma3_text": Family(
        norms=4,
        tied=True,
        head_norms=True,
        defaults=(("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256), ("vocab_size", 262_208)),
    ),
    "glm4": Family(norms=4, gate=("gate_up_proj",)),
    "glm": Family(gate=("gate_up_proj",)),
    "gpt_neox": _NEOX,
    "gpt_oss": Family(bias=True),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "olmo": Family(norms=0),
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "olmoe": _LLAMA,
    "phi": Family(out="dense", gate=("fc1",), down="fc2", gated=False, bias=True),
    "phi3": _FUSED,
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias=True, shared="shared_expert", shared_gate="shared_expert_gate"),
    "qwen3": Family(head_norms=True),
    "qwen3_moe": Family(head_norms=True),
    "seed_oss": Family(qkv_bias=True),
    "smollm3": Family(tied=True),
    "stablelm": _LLAMA,
    "starcoder2": Family(gate=("c_fc",), down="c_proj", gated=False, bias=True, norms=4, tied=True),
}

UNKNOWN = Family(known=False)
LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode", "gpt_neo", "opt", "xglm", "biogpt"})
"""Families whose positions are a table: none beyond its end can be computed."""
