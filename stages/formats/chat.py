"""`type: chat_template`: a conversation rendered by a chat template, of which some turns are trained."""

from __future__ import annotations

from functools import partial
from typing import Any

from configs.schema import DatasetConfig
from stages.formats.messages import Message, MessageReader
from stages.formats.pieces import EndRule, Part, Piece, Rejected, Span, Turn
from stages.formats.spans import Conversation
from stages.templates.choice import ChatTemplate

OPTIONS = (
    "field_messages",
    "field_system",
    "field_tools",
    "template_thinking_key",
    "message_properties",
    "message_field_training",
    "message_field_training_detail",
    "split_thinking",
    "roles",
    "roles_to_train",
    "train_on_eos",
    "train_on_eot",
    "drop_system_message",
)
"""What of a data set's configuration determines its tokens; the template is resolved apart."""


class ChatFormat:
    """Rows of conversations."""

    chunk: int | None = None

    def __init__(self, dataset: DatasetConfig, template: ChatTemplate, train_on_inputs: bool) -> None:
        self._reader = MessageReader(dataset, train_on_inputs)
        self._template = template
        self._thinking = dataset.template_thinking_key
        self.ends = EndRule(dataset.train_on_eos, dataset.train_on_eot or dataset.train_on_eos)

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return the conversation as one piece. Raises as `RowFormat.pieces`."""
        messages, tools = self.conversation(row)
        render = partial(self._template.render, tools=tools)
        conversation = Conversation([message.seen for message in messages], render)
        every = "all" in (self.ends.eos, self.ends.eot)
        numbers = [number for number, message in enumerate(messages) if every or message.trained]
        detailed = [number for number in numbers if _has_parts(messages[number])]
        spans = conversation.turns([number for number in numbers if number not in detailed])
        turns = {number: Turn(span, messages[number].trained) for number, span in spans.items()}
        for number in detailed:
            turn = self._turn_of_parts(conversation, number, messages[number])
            if turn is not None:
                turns[number] = turn
        return [Piece(conversation.text, turns=tuple(turns[number] for number in sorted(turns)))]

    def conversation(self, row: dict[str, Any]) -> tuple[list[Message], list[Any] | None]:
        """Return the messages of a row and the schemas of its tools. Raises as `RowFormat.pieces`."""
        return self._reader.messages(row), self._reader.tools(row)

    def _turn_of_parts(self, conversation: Conversation, number: int, message: Message) -> Turn | None:
        """Return a turn of which only marked parts are trained."""
        text = conversation.text
        span = conversation.property_span(number, "content") if message.content else None
        parts = _parts_in_text(text, span, message.content, message.content_parts or (), number)
        if message.thinking_parts:
            thinking = conversation.property_span(number, self._thinking)
            parts += _parts_in_text(text, thinking, message.seen[self._thinking], message.thinking_parts, number)
            span = span or thinking
        return None if span is None else Turn(span, message.trained, parts if message.trained else ())


def _has_parts(message: Message) -> bool:
    return message.content_parts is not None or message.thinking_parts is not None


def _parts_in_text(
    text: str, words_span: Span | None, words: str, parts: tuple[Span, ...], number: int
) -> tuple[Part, ...]:
    """Return parts of some words as parts of the text in which those words, perhaps trimmed, are at `words_span`."""
    if words_span is None or not parts:
        return ()
    shown = text[words_span.start : words_span.end]
    trimmed = words.find(shown)
    if trimmed < 0 or words.strip() not in shown:
        raise Rejected("mask_not_proven", f"message {number}: the template rewrites text of which parts are trained")
    shift = words_span.start - trimmed
    moved = (Span(max(part.start + shift, words_span.start), min(part.end + shift, words_span.end)) for part in parts)
    return tuple(Part(span, words_span) for span in moved if span.start < span.end)
