"""The formats of data set rows: which there are, what of the configuration each reads, and making one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from configs.schema import DatasetConfig, PromptConfig, RunConfig
from stages.errors import ConfigError, Problem
from stages.formats.chat import OPTIONS as CHAT_OPTIONS
from stages.formats.chat import ChatFormat
from stages.formats.custom import CustomFormat, find_custom
from stages.formats.custom_rows import (
    MessagesFormat,
    SpansFormat,
    StrategyFormat,
    dataset_settings,
    imported,
    run_settings,
)
from stages.formats.dialogues import REFLECTIONS, Llama2ChatFormat, PygmalionFormat, ReflectionFormat
from stages.formats.instruction import user_defined
from stages.formats.known import KINDS, instruction_format
from stages.formats.pieces import FILTERED, EndRule, Piece, Rejected, RowFormat, Span, Turn
from stages.formats.plain import PlainChats, plain_chats
from stages.formats.raw import CompletionFormat, SegmentsFormat
from stages.formats.tokenized import GivenTokens, TokenizedFormat
from stages.formats.weighted import WeightedFormat
from stages.templates.choice import ChatTemplate

__all__ = [
    "FILTERED",
    "KNOWN",
    "ChatFormat",
    "EndRule",
    "GivenTokens",
    "Piece",
    "PlainChats",
    "Rejected",
    "RowFormat",
    "Span",
    "TokenFormat",
    "Turn",
    "check_format",
    "format_inputs",
    "is_chat",
    "is_verbatim",
    "make_format",
    "make_plain",
    "make_token_format",
]

CHAT = "chat_template"
REFLECTION = tuple(f"reflection:{style}" if style else "reflection" for style in REFLECTIONS)
OTHERS = (CHAT, "completion", "input_output", "llama2_chat", "messages", "pygmalion", *REFLECTION)
KNOWN = (*OTHERS, *KINDS)
PREFERENCES = (
    "bradley_terry",
    "stepwise_supervised",
    "chat_template.",
    "chatml.",
    "llama3.",
    "zephyr.",
    "user_defined.",
)


@runtime_checkable
class TokenFormat(Protocol):
    """How the rows of a data set that need no encoding become tokens."""

    def tokens(self, raw: bytes) -> list[GivenTokens]:
        """Return the tokens of a row; several where it is cut. Raises Rejected."""


def is_chat(dataset: DatasetConfig) -> bool:
    """Return whether rows of this data set are rendered by a chat template."""
    if _name(dataset) == CHAT:
        return True
    custom = _custom(dataset)
    return custom is not None and custom.gives == "messages"


def is_verbatim(dataset: DatasetConfig) -> bool:
    """Return whether rows bring their own control tokens: there is no template that would write them."""
    return dataset.type == "input_output"


def check_format(run: RunConfig, number: int) -> None:
    """Check the type of one data set.

    Raises:
        ConfigError: it is not known, or a part of a user-defined one is wrong.
    """
    dataset, key = run.sources[number], f"{run.source_key(number)}.type"
    if isinstance(dataset.type, PromptConfig):
        user_defined(dataset.type, run.train_on_inputs, key)
    elif dataset.type is not None and _name(dataset) not in KNOWN and find_custom(dataset.type, key) is None:
        raise ConfigError([_unknown_type(dataset.type, key)])
    elif _name(dataset) == "messages":
        _form_of_messages(run, number)


def format_inputs(run: RunConfig, number: int) -> dict[str, Any]:
    """Return what of the configuration determines the tokens of one data set, besides template and tokenizer."""
    dataset = run.sources[number]
    inputs: dict[str, Any] = {"type": _name(dataset), "train_on_inputs": run.train_on_inputs}
    if isinstance(dataset.type, PromptConfig):
        return {**inputs, "type": dataset.type.model_dump(mode="json")}
    custom = _custom(dataset)
    if custom is not None:
        return {**inputs, "type": _custom_inputs(run, dataset, custom)}
    if dataset.type is None:
        return {"type": None}
    match inputs["type"]:
        case "chat_template":
            return {**inputs, **_chat_options(dataset)}
        case "completion":
            return {"type": "completion", "field": dataset.field, "sequence_len": run.sequence_len}
        case "messages":
            form = WeightedFormat.of(dataset, _form_of_messages(run, number), run.train_on_inputs)
            return {**inputs, "form": form.form, "field": form.field, "keys": form.keys}
        case "alpaca_chat" if dataset.conversation:
            return {**inputs, "conversation": dataset.conversation}
    return inputs


def make_format(run: RunConfig, number: int, template: ChatTemplate | None) -> RowFormat:
    """Return the format of one data set, whose type is known; `template` is that of a chat data set.

    Raises:
        ConfigError: a module of the user cannot be imported.
    """
    dataset, key = run.sources[number], f"{run.source_key(number)}.type"
    if isinstance(dataset.type, PromptConfig):
        return user_defined(dataset.type, run.train_on_inputs, key)
    chat = None if template is None else ChatFormat(dataset, template, run.train_on_inputs)
    custom = _custom(dataset)
    if custom is not None:
        function = imported(custom, key)
        if chat is not None:
            return MessagesFormat(custom, function, dataset.field_messages, chat)
        return SpansFormat(custom, function, run.train_on_inputs)
    name = _name(dataset)
    if name in KINDS:
        return instruction_format(name, run.train_on_inputs, dataset.conversation)
    if name in REFLECTION:
        return ReflectionFormat(name.partition(":")[2], run.train_on_inputs)
    makers: dict[str, Callable[[], RowFormat]] = {
        "input_output": lambda: SegmentsFormat(run.train_on_inputs),
        "completion": lambda: CompletionFormat(dataset.field, run.sequence_len),
        "messages": lambda: WeightedFormat.of(dataset, _form_of_messages(run, number), run.train_on_inputs),
        "pygmalion": PygmalionFormat,
        "llama2_chat": Llama2ChatFormat,
    }
    return chat if chat is not None else makers[name]()


def make_token_format(run: RunConfig, number: int, folder: Path, vocabulary: int) -> TokenFormat | None:
    """Return the format of a data set whose rows need no encoding, None if they do.

    The resolved tokenizer is in `folder`, and has `vocabulary` tokens.

    Raises:
        ConfigError: a module of the user cannot be imported.
    """
    dataset = run.sources[number]
    if dataset.type is None:
        return TokenizedFormat(vocabulary)
    custom = _custom(dataset)
    if custom is None or custom.gives != "strategy":
        return None
    return StrategyFormat(custom, run, number, folder, vocabulary)


def make_plain(run: RunConfig, number: int, template: ChatTemplate | None) -> PlainChats | None:
    """Return the fast way for the plain rows of one data set, None if it has none."""
    dataset = run.sources[number]
    if template is None or _name(dataset) != CHAT:
        return None
    return plain_chats(dataset, template, run.train_on_inputs)


def _name(dataset: DatasetConfig) -> str:
    """Return the name of a format as `KNOWN` has it: `alpaca_chat.load` is `alpaca_chat`."""
    name = dataset.type if isinstance(dataset.type, str) else ""
    short = name.removesuffix(".load")
    return short if short in KNOWN else name


def _custom(dataset: DatasetConfig) -> CustomFormat | None:
    if not isinstance(dataset.type, str) or _name(dataset) in KNOWN:
        return None
    return find_custom(dataset.type, "datasets.type")


def _custom_inputs(run: RunConfig, dataset: DatasetConfig, custom: CustomFormat) -> dict[str, Any]:
    """Return what of a user's module, and of the configuration that it sees, determines its tokens."""
    inputs = {
        "module": custom.name,
        "function": custom.function,
        "sources": {name: sha256(file.read_bytes()).hexdigest() for name, file in custom.sources().items()},
    }
    if custom.gives == "messages":
        return {**inputs, **_chat_options(dataset)}
    if custom.gives == "strategy":
        return {**inputs, "cfg": run_settings(run), "ds_cfg": dataset_settings(dataset)}
    return inputs


def _chat_options(dataset: DatasetConfig) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in CHAT_OPTIONS}


def _form_of_messages(run: RunConfig, number: int) -> str:
    """Return how `type: messages` writes a message. Raises ConfigError."""
    name = run.sources[number].chat_template or run.chat_template or "chatml"
    if name == "chatml" or name.startswith("llama3"):
        return "chatml" if name == "chatml" else "llama3"
    rule, remedy = "type: messages knows chatml and llama3 only", "Use `type: chat_template`, which takes any template."
    raise ConfigError([Problem("configuration", f"{run.source_key(number)}.chat_template", name, rule, remedy)])


def _unknown_type(name: str, key: str) -> Problem:
    if name.startswith("sharegpt"):
        remedy = (
            "Use `type: chat_template` with `field_messages: conversations` and "
            "`message_property_mappings: {role: from, content: value}`."
        )
        return Problem("configuration", key, name, "was replaced by chat_template", remedy)
    if name.startswith(PREFERENCES):
        remedy = "Use `type: chat_template` on rows whose messages end with the answer to learn."
        return Problem("configuration", key, name, "is for learning from preferences, which is not done here", remedy)
    if "." in name and not name.endswith(".load"):
        remedy = "A module is looked up here and where Python looks; or give a file: `type: ./my_format.py`."
        return Problem("configuration", key, name, "is neither a known format nor a module that is there", remedy)
    close = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    common = "chat_template, alpaca, completion, input_output"
    remedy = f"{hint}Known: {common} and those of infra/docs/formats.md, a dictionary with `format`, a module of yours."
    return Problem("configuration", key, name, "is not a known format", remedy)
