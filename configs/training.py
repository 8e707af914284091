"""The sections of the training: special tokens, learning rates of their own, sharding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from configs.values import Section, Strings


class SpecialTokensConfig(Section):
    """Special tokens to set on the tokenizer; new ones are added to its vocabulary."""

    bos_token: str | None = Field(None, description="Beginning of sequence.")
    eos_token: str | None = Field(None, description="End of sequence.")
    pad_token: str | None = Field(None, description="Padding; default: the tokenizer's, else its end of sequence.")
    unk_token: str | None = Field(None, description="Unknown.")
    additional_special_tokens: tuple[str, ...] = Field((), description="Further special tokens.")

    def only_pads(self, new_tokens: Collection[str]) -> bool:
        """Return whether the one token that is new to a vocabulary is padding, which is never seen or predicted."""
        return list(new_tokens) == [self.pad_token]


class LrGroup(Section):
    """Parameters with a learning rate of their own."""

    name: str = Field(description="Name of the group.")
    modules: Strings = Field(min_length=1, description="Parts of parameter names; any of them puts it into the group.")
    lr: float = Field(gt=0, description="Peak learning rate of the group.")


StateDictType = Literal["FULL_STATE_DICT", "SHARDED_STATE_DICT"]


class FsdpConfig(Section):
    """Sharding by FSDP2: every process holds a part of each weight, gradient and optimizer state."""

    reshard_after_forward: bool = Field(True, description="Give the gathered weights up after the forward pass.")
    offload_params: bool = Field(False, description="Keep the shards in CPU memory, and step the optimizer there.")
    cpu_offload_pin_memory: bool = Field(
        True, description="Accepted without effect: the CPU memory of offloaded shards is always pinned."
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations: as gradient_checkpointing.")
    state_dict_type: StateDictType = Field(
        "FULL_STATE_DICT", description="Form of checkpoints: gathered by the first process, or a part by each."
    )
    final_state_dict_type: StateDictType | None = Field(
        None, description="Accepted without effect: the final model is always complete."
    )
    auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP"] = Field(
        "TRANSFORMER_BASED_WRAP", description="What is gathered at once: a layer, or modules of min_num_params."
    )
    transformer_layer_cls_to_wrap: Strings = Field((), description="Layer classes; default: the model's own.")
    min_num_params: int | None = Field(None, ge=1, description="SIZE_BASED_WRAP: parameters of a wrapped module.")
    cpu_ram_efficient_loading: bool = Field(
        False, description="Accepted without effect: each process maps the base model's files into memory."
    )
    mixed_precision_policy: str | None = Field(None, description="Accepted without effect: as bf16 and fp16 say.")

    @model_validator(mode="after")
    def _size_needs_a_number(self) -> FsdpConfig:
        if self.auto_wrap_policy == "SIZE_BASED_WRAP" and self.min_num_params is None:
            raise ValueError("SIZE_BASED_WRAP needs min_num_params; set fsdp_config.min_num_params: 100000000")
        return self
