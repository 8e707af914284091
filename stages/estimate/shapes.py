"""What a model is made of, from its `config.json` alone: sizes, linear layers, numbers of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem
from stages.estimate.families import FAMILIES, LEARNED_POSITIONS, UNKNOWN, Family

TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Linear:
    """A matrix of a block.

    Attributes:
        path: where it stands in a block, `self_attn.q_proj`.
        inputs: width of what comes in.
        outputs: width of what goes out.
        copies: how often the whole model has it.
        bias: whether it has one.
        expert: whether it belongs to one expert of many: these are one parameter together, which neither an adapter
            nor quantisation reaches.
    """

    path: str
    inputs: int
    outputs: int
    copies: int
    bias: bool = False
    expert: bool = False

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def weights(self) -> int:
        """Return the number of weights of all copies, without biases."""
        return self.inputs * self.outputs * self.copies


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder model.

    Attributes:
        family: `model_type`.
        build: how the family builds its layers.
        sized: whether the configuration says the sizes; without them there is no estimate.
        hidden: width of the hidden states.
        layers: number of blocks.
        heads: heads of the queries.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        intermediate: width inside the feed-forward part that one token goes through.
        vocabulary: rows of the embedding table.
        tied: whether embeddings and head are one table.
        max_positions: positions that the model was trained on; None if it does not say.
        linears: the matrices of the blocks.
        experts: number of experts of a layer; 0 without.
        active: share of the experts' weights that one token meets; 1 without experts.
        quantised: method of a base model that comes quantised, `gptq`; empty otherwise.
        classes: `architectures`, the classes of transformers that it was saved from.
    """

    family: str
    build: Family
    sized: bool
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    max_positions: int | None
    linears: tuple[Linear, ...]
    experts: int
    active: float
    quantised: str
    classes: tuple[str, ...] = ()

    @cached_property
    def linear_weights(self) -> int:
        """Return the weights in the linear layers of all blocks: what quantisation makes smaller."""
        return sum(linear.weights for linear in self.linears if not linear.expert)

    @cached_property
    def expert_weights(self) -> int:
        """Return the weights of all experts."""
        return sum(linear.weights for linear in self.linears if linear.expert)

    @cached_property
    def table_weights(self) -> int:
        """Return the weights of the embeddings and the head."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @cached_property
    def small_weights(self) -> int:
        """Return the weights of norms and biases."""
        norms = self.build.norms * self.hidden + (2 * self.head_dim if self.build.head_norms else 0)
        biases = sum(linear.outputs * linear.copies for linear in self.linears if linear.bias)
        return self.layers * norms + biases + self.hidden

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return self.linear_weights + self.expert_weights + self.table_weights + self.small_weights

    @property
    def active_parameters(self) -> int:
        """Return the weights that one token is multiplied with, the head among them."""
        return round(self.linear_weights + self.active * self.expert_weights) + self.vocabulary * self.hidden

    @property
    def is_rough(self) -> bool:
        """Return whether the family is not known, so that figures are those of a model like Llama."""
        return not self.build.known

    def adapted(self, run: RunConfig) -> tuple[Linear, ...]:
        """Return the linear layers that the adapter of a run is put on; of one that is trained further, all of them."""
        if run.adapter is None:
            return ()
        plain = [linear for linear in self.linears if not linear.expert]
        if run.lora_target_linear or not (run.lora_target_modules or run.lora_target_parameters):
            return tuple(plain)
        return tuple(linear for linear in plain if any(_means(t, self._path(linear)) for t in run.lora_target_modules))

    def adapter_weights(self, run: RunConfig) -> int:
        """Return the number of weights that an adapter adds, without copies of whole modules."""
        chosen = len(set(run.peft_layers_to_transform)) or self.layers
        modules = sum(
            (self._rank(linear, run) * (linear.inputs + linear.outputs) + run.peft_use_dora * linear.outputs)
            * (linear.copies * chosen // max(1, self.layers))
            for linear in self.adapted(run)
        )
        return modules + self._expert_adapters(run)

    def _rank(self, linear: Linear, run: RunConfig) -> int:
        found = (
            rank
            for pattern, rank in run.lora_rank_pattern.items()
            if re.match(rf"(.*\.)?({pattern})$", self._path(linear))
        )
        return next(found, run.lora_r)

    def _expert_adapters(self, run: RunConfig) -> int:
        """Return the weights that `lora_target_parameters` adds; gate and up are one parameter of all experts."""
        targets = run.lora_target_parameters if run.adapter else ()
        names = [name for target in targets for name in ("gate_up_proj", "down_proj") if target.endswith(name)]
        experts = {linear.name: linear for linear in self.linears if linear.expert}
        if "down_proj" not in experts:
            return 0
        down = experts["down_proj"]
        wide = {"gate_up_proj": down.outputs + 2 * down.inputs, "down_proj": down.outputs + down.inputs}
        return sum(run.lora_r * wide[name] * down.copies for name in names)

    def saved_weights(self, run: RunConfig) -> int:
        """Return the weights of modules that are trained in full beside the adapter."""
        tables = sum(name in TABLES for name in run.lora_modules_to_save)
        return tables * self.vocabulary * self.hidden if run.adapter else 0

    def trained_weights(self, run: RunConfig) -> int:
        """Return the number of weights that a run trains."""
        if run.adapter:
            return self.adapter_weights(run) + self.saved_weights(run)
        return self._unfrozen(run) if run.unfrozen_parameters else self.parameters

    def _unfrozen(self, run: RunConfig) -> int:
        """Return the weights of the parameters that `unfrozen_parameters` names; norms and biases are not counted."""

        def is_named(name: str) -> bool:
            return any(re.match(pattern, name) for pattern in run.unfrozen_parameters)

        tables = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if is_named(name)]
        blocks = sum(
            linear.weights // self.layers * is_named(f"{self.build.blocks}.{layer}.{linear.path}.weight")
            for linear in self.linears
            for layer in range(self.layers)
        )
        return blocks + len(tables) * self.vocabulary * self.hidden

    def matches(self, target: str) -> bool:
        """Return whether a name of `lora_target_modules`, or a regular expression, means a layer of this model."""
        if target.rpartition(".")[2] in TABLES:
            return True
        return any(_means(target, self._path(linear)) for linear in self.linears if not linear.expert)

    def _path(self, linear: Linear) -> str:
        return f"{self.build.blocks}.0.{linear.path}"


def _means(target: str, path: str) -> bool:
    if path == target or path.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, path) is not None
    except re.error:
        return False


def model_shape(folder: Path) -> ModelShape:
    """Return the sizes of the model in a folder.

    Raises:
        ConfigError: there is no readable `config.json`.
    """
    try:
        config = orjson.loads((folder / "config.json").read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        rule = f"the folder has no readable config.json ({error})"
        raise ConfigError([Problem("configuration", "base_model", str(folder), rule, "Check the folder.")]) from error
    return shape_of(config)


def shape_of(config: dict[str, Any]) -> ModelShape:
    """Return the sizes that a model's configuration states; of several models in one the text part."""
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
    family = str(text.get("model_type", ""))
    build = FAMILIES.get(family, UNKNOWN)
    text = {**dict(build.defaults), **text}
    hidden = _size(text, "hidden_size", "n_embd", "d_model")
    layers = _size(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = _size(text, "num_attention_heads", "n_head", "n_heads")
    vocabulary = _size(text, "vocab_size")
    head_dim = _size(text, "head_dim") or hidden // max(heads, 1)
    kv_heads = _size(text, "num_key_value_heads", "num_kv_heads") or heads
    attention = _attention(text, build, hidden, heads * head_dim, kv_heads * head_dim, layers)
    mlp, active = _mlp(text, build, hidden, layers)
    per_token = sum(linear.outputs for linear in mlp if linear.path.endswith(build.gate[-1]) and not linear.expert)
    experts = _per_token(text)
    if any(linear.expert for linear in mlp):
        per_token += experts * next(linear.outputs for linear in mlp if linear.expert)
    fused = 2 if build.gated and len(build.gate) == 1 else 1
    return ModelShape(
        family=family,
        build=build,
        sized=all((hidden, layers, heads, vocabulary)),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=per_token // fused,
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", build.tied))),
        max_positions=_size(text, "max_position_embeddings", "n_positions", "max_seq_len") or None,
        linears=(*attention, *mlp),
        experts=_size(text, "num_experts", "num_local_experts", "n_routed_experts"),
        active=active,
        quantised=_quantised(config),
        classes=tuple(map(str, config.get("architectures") or ())),
    )


def _attention(
    text: dict[str, Any], build: Family, hidden: int, queries: int, keys: int, layers: int
) -> tuple[Linear, ...]:
    says = bool(text.get("attention_bias") or text.get("use_bias"))
    widths = (queries, keys, keys) if len(build.qkv) == 3 else (queries + 2 * keys,)
    into = [
        Linear(f"{build.attention}.{name}", hidden, width, layers, bias=says or build.qkv_bias or build.bias)
        for name, width in zip(build.qkv, widths, strict=True)
    ]
    out_says = says and not build.qkv_bias
    return (*into, Linear(f"{build.attention}.{build.out}", queries, hidden, layers, bias=out_says or build.bias))


def _mlp(text: dict[str, Any], build: Family, hidden: int, layers: int) -> tuple[tuple[Linear, ...], float]:
    """Return the matrices of the feed-forward parts, and the share of the experts that one token meets."""
    inner = _size(text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    experts = _size(text, "num_experts", "num_local_experts", "n_routed_experts")
    if not experts:
        return _feed_forward(text, build, hidden, inner, layers), 1.0
    width = _size(text, "moe_intermediate_size") or inner
    dense = _dense_layers(text, layers)
    found = list(_feed_forward(text, build, hidden, inner, dense)) if dense else []
    shared = _size(text, "shared_expert_intermediate_size") or width * _size(text, "n_shared_experts")
    if shared:
        place = f"{build.mlp}.{build.shared}"
        found += _feed_forward(text, replace(build, mlp=place), hidden, shared, layers - dense)
    if build.shared_gate:
        found.append(Linear(f"{build.mlp}.{build.shared_gate}", hidden, 1, layers - dense))
    copies = experts * (layers - dense)
    found += [
        Linear(f"{build.mlp}.experts.{name}", hidden, width, copies, bias=build.bias, expert=True)
        for name in ("gate_proj", "up_proj")
    ]
    found.append(Linear(f"{build.mlp}.experts.down_proj", width, hidden, copies, bias=build.bias, expert=True))
    found.append(Linear(f"{build.mlp}.gate", hidden, experts, layers - dense, bias=build.bias, expert=True))  # router
    return tuple(found), _per_token(text) / experts


def _feed_forward(text: dict[str, Any], build: Family, hidden: int, inner: int, copies: int) -> tuple[Linear, ...]:
    bias = build.bias or bool(text.get("mlp_bias") or text.get("use_bias"))
    width = 2 * inner if build.gated and len(build.gate) == 1 else inner
    into = [Linear(f"{build.mlp}.{name}", hidden, width, copies, bias=bias) for name in build.gate]
    return (*into, Linear(f"{build.mlp}.{build.down}", inner, hidden, copies, bias=bias))


def _dense_layers(text: dict[str, Any], layers: int) -> int:
    """Return the number of layers of a model with experts that have none."""
    only = text.get("mlp_only_layers")
    step = _size(text, "decoder_sparse_step") or 1
    sparse = [layer for layer in range(layers) if (layer + 1) % step == 0 and layer not in (only or ())]
    return max(layers - len(sparse), _size(text, "first_k_dense_replace"))


def _per_token(text: dict[str, Any]) -> int:
    return _size(text, "num_experts_per_tok", "num_experts_per_token", "experts_per_token") or 1


def _quantised(config: dict[str, Any]) -> str:
    found = config.get("quantization_config")
    return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else ""


def _size(config: dict[str, Any], *names: str) -> int:
    """Return the first of the named sizes that is a number, else 0."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), 0)


def has_learned_positions(shape: ModelShape) -> bool:
    """Return whether nothing can be computed beyond the model's last position."""
    return shape.family in LEARNED_POSITIONS
