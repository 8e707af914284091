"""The formats of data set rows: which there are, what of the configuration each reads, and making one."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from configs.schema import DatasetConfig, PromptConfig, RunConfig
from stages.errors import ConfigError, Problem
from stages.formats.chat import OPTIONS as CHAT_OPTIONS
from stages.formats.chat import ChatFormat
from stages.formats.instruction import STYLES, alpaca, user_defined
from stages.formats.pieces import EndRule, Piece, Rejected, RowFormat, Span, Turn
from stages.formats.plain import PlainChats, plain_chats
from stages.formats.raw import CompletionFormat, SegmentsFormat
from stages.templates import ChatTemplate

__all__ = [
    "EndRule",
    "Piece",
    "PlainChats",
    "Rejected",
    "RowFormat",
    "Span",
    "Turn",
    "check_format",
    "format_inputs",
    "is_chat",
    "is_verbatim",
    "make_format",
    "make_plain",
]

CHAT = "chat_template"
ALPACA = ("alpaca", *(f"alpaca:{style}" for style in STYLES))
PREFERENCES = (
    "bradley_terry",
    "stepwise_supervised",
    "chat_template.",
    "chatml.",
    "llama3.",
    "zephyr.",
    "user_defined.",
)
KNOWN = (CHAT, *ALPACA, "input_output", "completion")


def is_chat(dataset: DatasetConfig) -> bool:
    """Return whether rows of this data set are rendered by a chat template."""
    return dataset.type == CHAT


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
    elif dataset.type not in KNOWN:
        raise ConfigError([_unknown_type(dataset.type, key)])


def format_inputs(run: RunConfig, number: int) -> dict[str, Any]:
    """Return what of the configuration determines the tokens of one data set, besides template and tokenizer."""
    dataset = run.sources[number]
    if isinstance(dataset.type, PromptConfig):
        return {"type": dataset.type.model_dump(mode="json"), "train_on_inputs": run.train_on_inputs}
    if dataset.type == CHAT:
        options = {name: getattr(dataset, name) for name in CHAT_OPTIONS}
        return {"type": CHAT, "train_on_inputs": run.train_on_inputs, **options}
    if dataset.type == "completion":
        return {"type": "completion", "field": dataset.field, "sequence_len": run.sequence_len}
    return {"type": dataset.type, "train_on_inputs": run.train_on_inputs}


def make_format(run: RunConfig, number: int, template: ChatTemplate | None) -> RowFormat:
    """Return the format of one data set, whose type is known; `template` is that of a chat data set."""
    dataset = run.sources[number]
    if isinstance(dataset.type, PromptConfig):
        return user_defined(dataset.type, run.train_on_inputs, f"{run.source_key(number)}.type")
    makers: dict[str, Callable[[], RowFormat]] = {
        "input_output": lambda: SegmentsFormat(run.train_on_inputs),
        "completion": lambda: CompletionFormat(dataset.field, run.sequence_len),
    }
    if template is not None:
        return ChatFormat(dataset, template, run.train_on_inputs)
    if dataset.type in makers:
        return makers[dataset.type]()
    return alpaca(dataset.type.partition(":")[2] or "instruct", run.train_on_inputs)


def make_plain(run: RunConfig, number: int, template: ChatTemplate | None) -> PlainChats | None:
    """Return the fast way for the plain rows of one data set, None if it has none."""
    return None if template is None else plain_chats(run.sources[number], template, run.train_on_inputs)


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
    close = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    remedy = f"{hint}Known: {', '.join(KNOWN)}, or a dictionary with `format`."
    return Problem("configuration", key, name, "is not a known format", remedy)
