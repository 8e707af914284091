"""`type: messages`: conversations in ChatML or in Llama 3's form, whose keys are found in the first message.

A message has a role (`role`, `from`), a content (`value`, `text`, `content`) that is text or a list of parts, and
perhaps a weight (`train`, `weight`) that says whether it is trained. The end of a trained message is trained with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema import DatasetConfig
from stages.formats.pieces import NO_ENDS, EndRule, Piece, Rejected, Span, Turn
from stages.formats.rows import parsed, shorten, text_of, type_name

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "ipython": "ipython",
}
KEYS = {"role": ("role", "from"), "content": ("value", "text", "content"), "weight": ("train", "weight")}
TAGS = ("tool_call", "tool_response")

Said = tuple[str, bool]
"""A text, and whether it is trained."""


@dataclass(frozen=True)
class WeightedFormat:
    """Rows of conversations.

    Attributes:
        form: how a message is written, chatml or llama3.
        field: the column of the messages.
        keys: property of a message -> its key in the data, where the configuration says it.
    """

    form: str
    field: str
    keys: dict[str, str]
    train_on_inputs: bool
    ends: EndRule = NO_ENDS
    chunk: int | None = None

    @classmethod
    def of(cls, dataset: DatasetConfig, form: str, train_on_inputs: bool) -> WeightedFormat:
        """Return the format of a data set."""
        mapped = dataset.message_property_mappings
        named = {
            "role": mapped.get("role") or dataset.message_field_role,
            "content": mapped.get("content") or dataset.message_field_content,
            "weight": dataset.message_field_training,
        }
        keys = {name: key for name, key in named.items() if key}
        return cls(form, dataset.field_messages, keys, train_on_inputs)

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return a piece for each message. Raises as `RowFormat.pieces`."""
        messages = parsed(row.get(self.field), self.field)
        if not isinstance(messages, list):
            columns = ", ".join(sorted(map(str, row))) or "none"
            raise Rejected("missing_field", f"{self.field} must be a list of messages; the row has: {columns}")
        if not messages:
            raise Rejected("no_messages", f"{self.field} is empty")
        keys = self._keys(messages[0], f"{self.field}.0")
        return [self._piece(message, keys, n, f"{self.field}.{n}") for n, message in enumerate(messages)]

    def _keys(self, first: Any, place: str) -> dict[str, str]:
        if not isinstance(first, dict):
            raise Rejected("wrong_type", f"{place} must be an object, found {type_name(first)}: {shorten(first)}")
        found = {name: next((key for key in keys if key in first), None) for name, keys in KEYS.items()}
        keys = {**{name: key for name, key in found.items() if key}, **self.keys}
        if missing := [name for name in ("role", "content") if name not in keys]:
            raise Rejected("missing_field", f"{place} has none of {', '.join(KEYS[missing[0]])}: {shorten(first)}")
        return keys

    def _piece(self, message: Any, keys: dict[str, str], number: int, place: str) -> Piece:
        if not isinstance(message, dict) or keys["role"] not in message or keys["content"] not in message:
            raise Rejected(
                "missing_field", f"{place} must have {keys['role']} and {keys['content']}: {shorten(message)}"
            )
        name = text_of(message[keys["role"]], f"{place}.{keys['role']}")
        if name not in ROLES:
            raise Rejected("unknown_role", f"{place}: role {name!r} is not known; known: {', '.join(ROLES)}")
        role = ROLES[name]
        trained = self._is_trained(message, keys, role, place)
        before, after = self._around(role, number)
        parts = [(before, False), *_parts(message[keys["content"]], trained, f"{place}.content"), (after, trained)]
        if self.form == "chatml":
            parts.append(("\n", False))
        return _joined(parts)

    def _is_trained(self, message: dict[str, Any], keys: dict[str, str], role: str, place: str) -> bool:
        if "weight" not in keys:
            return self.train_on_inputs or role == "assistant"
        weight = message.get(keys["weight"])
        if weight not in (0, 1):
            raise Rejected("wrong_type", f"{place}.{keys['weight']} must be 0, 1, true or false: {shorten(weight)}")
        return bool(weight)

    def _around(self, role: str, number: int) -> tuple[str, str]:
        if self.form == "chatml":
            return f"<|im_start|>{role}\n", "<|im_end|>"
        shown = "ipython" if role == "tool" else role
        first = "<|begin_of_text|>" if number == 0 else ""
        return f"{first}<|start_header_id|>{shown}<|end_header_id|>\n\n", "<|eot_id|>"


def _parts(content: Any, trained: bool, place: str) -> Iterator[Said]:
    """Yield the texts of a content; a part with weight 0 is not trained."""
    if isinstance(content, str):
        yield text_of(content, place), trained
        return
    if not isinstance(content, list):
        raise Rejected("wrong_type", f"{place} must be text or a list of parts, found {type_name(content)}")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", *TAGS) or "value" not in part:
            raise Rejected("unsupported_part", f"{place}.{number} must have type and value: {shorten(part)}")
        own = trained and part.get("weight") != 0
        if kind == "text":
            yield text_of(part["value"], f"{place}.{number}.value"), own
        else:
            value = part["value"]
            yield f"<{kind}>\n", trained
            yield (value if isinstance(value, str) else json.dumps(value)) + "\n", own
            yield f"</{kind}>\n", trained


def _joined(parts: list[Said]) -> Piece:
    text, turns = "", list[Turn]()
    for said, trained in parts:
        if said and trained:
            turns.append(Turn(Span(len(text), len(text) + len(said)), trained=True))
        text += said
    return Piece(text, turns=tuple(turns))
