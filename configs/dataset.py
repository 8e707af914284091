"""The sections of the data: where rows are, how a row becomes text and a label mask, and how data sets are mixed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from configs.secrets import redacted
from configs.values import OPTIONS_HELP, Place, Places, Section, StorageOptions, Train


class PromptConfig(Section):
    """A user-defined instruction format: `type:` given as a dictionary."""

    system_prompt: str = Field("", description="Text of the system part when a row has none.")
    field_system: str = Field("system", description="Column of the system prompt.")
    field_instruction: str = Field("instruction", description="Column of the instruction.")
    field_input: str = Field("input", description="Column of the optional input.")
    field_output: str = Field("output", description="Column of the response that is trained.")
    format: str = Field("{instruction} {input} ", description="Prompt when the row has an input.")
    no_input_format: str = Field("{instruction} ", description="Prompt when the row has none.")
    system_format: str = Field("{system}", description="How the system prompt is written in front.")


class DatasetConfig(Section):
    """One data set: where its rows are, and how a row becomes text and a label mask."""

    path: Place = Field(description="Hub id, or a file, folder or pattern: local, s3://, gs://, https://.")
    storage_options: StorageOptions = Field({}, description=OPTIONS_HELP % "path")
    type: str | PromptConfig | None = Field(
        None,
        description="Format of a row: chat_template, alpaca, ..., a module or file of yours; empty: tokenized rows.",
    )
    conversation: Literal["instruct", "chat", "chatml", "phi"] | None = Field(
        None, description="alpaca_chat.load: style of the prompt; default chat."
    )
    split: str | None = Field(None, description="Split to read, with slices (`train[:20%]`); default train.")
    name: str | None = Field(None, description="Configuration name of a Hub data set.")
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub data set; pinned to its commit.")
    data_files: Places = Field((), description="Files to read, relative to `path` when that is a folder or Hub id.")
    max_decompression_ratio: float = Field(
        200.0, gt=0, description="Bytes that a byte of a compressed file may become, beyond the first 64 MiB."
    )
    ds_type: Literal["json", "csv", "parquet", "arrow", "text"] | None = Field(
        None, description="Format of the files; default: by their extension."
    )
    shards: int | None = Field(None, ge=1, description="Read one of this many parts of the shuffled rows.")
    shards_idx: int = Field(0, ge=0, description="Which of the `shards`, from 0.")
    preprocess_shards: int | None = Field(
        None, ge=1, description="Accepted without effect: rows are always prepared in parts, of constant memory."
    )
    weight: float = Field(
        1.0, gt=0, description="Share of the rows that is used, drawn with `seed`; with `mixture`: proportion in it."
    )
    field: str = Field("text", description="completion: column of the text.")
    field_messages: str = Field("messages", description="chat_template: column of the list of messages.")
    field_system: str = Field("system", description="chat_template: column of a system prompt beside the messages.")
    field_tools: str = Field("tools", description="chat_template: column of the tool schemas.")
    field_thinking: str | None = Field(None, description="chat_template: message key of the reasoning text.")
    template_thinking_key: str = Field(
        "reasoning_content", description="chat_template: name under which the template reads the reasoning text."
    )
    message_field_role: str | None = Field(None, description="Old form of message_property_mappings.role.")
    message_field_content: str | None = Field(None, description="Old form of message_property_mappings.content.")
    message_property_mappings: dict[str, str] = Field(
        {}, description="chat_template: template's message property -> key in the data's messages."
    )
    message_field_training: str | None = Field(None, description="chat_template: message key that says: train or not.")
    message_field_training_detail: str | None = Field(
        None, description="chat_template: message key with a list of {begin_offset, end_offset, train} (characters)."
    )
    split_thinking: bool = Field(False, description="chat_template: cut <think>...</think> out into the reasoning.")
    roles: dict[str, tuple[str, ...]] | None = Field(
        None, description="chat_template: role -> names for it in the data; replaces the default map."
    )
    roles_to_train: tuple[str, ...] = Field(("assistant",), description="chat_template: roles whose turns are trained.")
    train_on_eos: Train = Field("turn", description="chat_template: end-of-sequence tokens that are trained.")
    train_on_eot: Train | None = Field(
        None, description="chat_template: end-of-turn tokens that are trained; default as train_on_eos."
    )
    drop_system_message: bool = Field(False, description="chat_template: remove a leading system message.")
    chat_template: str | None = Field(None, description="Chat template of this data set; default: the run's.")
    chat_template_jinja: str | None = Field(None, description="Jinja text, or the path of a file with it.")

    @model_validator(mode="after")
    def _message_field_once(self) -> DatasetConfig:
        for old, prop in (("message_field_role", "role"), ("message_field_content", "content")):
            value, mapped = getattr(self, old), self.message_property_mappings.get(prop)
            if value and mapped and value != mapped:
                raise ValueError(
                    f"{old}: {value!r} contradicts message_property_mappings.{prop}: {mapped!r}; keep the mapping"
                )
        return self

    @property
    def shown(self) -> str:
        """Return `path` as people and files may see it: without the secrets that a URL may hold."""
        return redacted(self.path)

    @property
    def message_properties(self) -> dict[str, str]:
        """Return template property -> key in the data, with role and content always filled in."""
        old = {"role": self.message_field_role or "role", "content": self.message_field_content or "content"}
        thinking = {self.template_thinking_key: self.field_thinking} if self.field_thinking else {}
        return {**old, **thinking, **self.message_property_mappings}

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> DatasetConfig:
        if self.shards_idx >= (self.shards or 1):
            raise ValueError(
                f"shards_idx: {self.shards_idx} is not one of {self.shards or 1} shards, counted from 0; lower it"
            )
        return self


class MixtureConfig(Section):
    """Proportions of the data sets, in place of all their rows."""

    unit: Literal["rows", "trained_tokens"] = Field(description="What `datasets[].weight` is a proportion of.")
    repeat: bool = Field(
        False, description="Repeat scarce data sets until all rows are used; false: leave out what is too much."
    )


def _as_mixture(value: Any) -> Any:
    return {"unit": value} if isinstance(value, str) else value


Mixture = Annotated[
    MixtureConfig | None, BeforeValidator(_as_mixture, json_schema_input_type=str | MixtureConfig | None)
]
