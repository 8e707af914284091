"""From a row to the messages that the template sees, each with what is trained of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import DatasetConfig
from stages.formats.pieces import Rejected, Span
from stages.formats.rows import parsed, shorten, text_of, type_name, without_nulls

DEFAULT_ROLES = {
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "tool": "tool",
}
THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")
PART_TEXT_KEYS = ("text", "content", "value")


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        seen: what the template sees of it.
        trained: whether the turn is trained.
        content_parts: if not None, only these characters of the content are trained.
        thinking_parts: if not None, only these characters of the reasoning are trained; of the content only its parts.
    """

    seen: dict[str, Any]
    trained: bool
    content_parts: tuple[Span, ...] | None = None
    thinking_parts: tuple[Span, ...] | None = None

    @property
    def content(self) -> str:
        """Return the content, empty if there is none."""
        return str(self.seen.get("content", ""))


class MessageReader:
    """Reads the messages of rows as one data set's configuration says."""

    def __init__(self, dataset: DatasetConfig, train_on_inputs: bool) -> None:
        self._dataset = dataset
        self._train_all = train_on_inputs
        self._properties = dataset.message_properties
        self._roles = _role_map(dataset.roles)
        self._trained_roles = {self._roles.get(role, role) for role in dataset.roles_to_train}

    def role(self, name: str) -> str:
        """Return the role that a name in the data stands for."""
        return self._roles.get(name, name)

    def trains(self, role: str) -> bool:
        """Return whether turns of a role are trained, if their message does not say otherwise."""
        return self._train_all or role in self._trained_roles

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """Return the messages of a row.

        Raises:
            Rejected: a field is missing or of a wrong type, or there is no message.
        """
        name = self._dataset.field_messages
        if name not in row:
            columns = ", ".join(sorted(map(str, row))) or "none"
            raise Rejected("missing_field", f"no column {name!r}, or it is null; the row has: {columns}")
        items = row[name] if isinstance(row[name], list) else without_nulls(parsed(row[name], name))
        if not isinstance(items, list):
            raise Rejected(
                "wrong_type", f"{name} must be a list of messages, found {type_name(items)}: {shorten(items)}"
            )
        if not items:
            raise Rejected("no_messages", f"{name} is empty")
        found = [self._message(item, f"{name}.{number}") for number, item in enumerate(items)]
        found = [*self._system_column(row, found[0]), *found]
        if self._dataset.drop_system_message and found[0].seen["role"] == "system":
            found = found[1:]
        if not found:
            raise Rejected(
                "no_messages", f"{name} holds nothing but a system message, which drop_system_message removes"
            )
        return found

    def tools(self, row: dict[str, Any]) -> list[Any] | None:
        """Return the tool schemas of a row, None if there are none."""
        name = self._dataset.field_tools
        tools = parsed(row.get(name), name)
        if tools is None or tools == []:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise Rejected(
                "wrong_type", f"{name} must be a list of objects, found {type_name(tools)}: {shorten(tools)}"
            )
        return [_with_parsed(tool, "parameters", f"{name}.{number}") for number, tool in enumerate(tools)]

    def _system_column(self, row: dict[str, Any], first: Message) -> list[Message]:
        name = self._dataset.field_system
        if name not in row or first.seen["role"] == "system":
            return []
        seen = {"role": "system", "content": text_of(row[name], name)}
        return [Message(seen, self.trains("system"))]

    def _message(self, item: Any, place: str) -> Message:
        if not isinstance(item, dict):
            raise Rejected("wrong_type", f"{place} must be an object, found {type_name(item)}: {shorten(item)}")
        seen = self._seen(item, place)
        content_parts = self._explicit_parts(item, place)
        if self._dataset.split_thinking and seen["role"] == "assistant" and isinstance(seen.get("content"), str):
            split = _split_thinking(seen, self._thinking)
            seen = {**split, self._thinking: item[self._thinking]} if self._has_own_thinking(item) else split
        if isinstance(seen.get("content"), list):
            seen["content"], flagged = _joined(seen["content"], f"{place}.content")
            content_parts = content_parts if flagged is None else flagged
        if "content" in seen:
            text_of(seen["content"], f"{place}.content")
        thinking_parts = None
        if isinstance(seen.get(self._thinking), list):
            seen[self._thinking], thinking_parts = _joined(seen[self._thinking], f"{place}.{self._thinking}")
        if set(seen) <= {"role", "name"}:
            raise Rejected("missing_field", f"{place} (role {seen['role']}) has no {self._properties['content']!r}")
        trained = self._is_trained(item, place, seen["role"], content_parts, thinking_parts)
        return Message(seen, trained, content_parts, thinking_parts)

    @property
    def _thinking(self) -> str:
        return self._dataset.template_thinking_key

    def _has_own_thinking(self, item: dict[str, Any]) -> bool:
        """Return whether a message has its reasoning under the template's own name, which counts more than a split."""
        return self._thinking in item and self._thinking not in self._properties.values()

    def _seen(self, item: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the mapped properties, and every other key under its own name."""
        seen = {prop: item[key] for prop, key in self._properties.items() if key in item}
        flags = (self._dataset.message_field_training, self._dataset.message_field_training_detail)
        taken = {*seen, *self._properties.values(), *flags}
        seen |= {key: value for key, value in item.items() if key not in taken}
        if "role" not in seen:
            raise Rejected("missing_field", f"{place} has no {self._properties['role']!r}")
        role = text_of(seen["role"], f"{place}.{self._properties['role']}")
        seen["role"] = self.role(role)
        if seen.get("tool_calls"):
            seen["tool_calls"] = _tool_calls(seen["tool_calls"], f"{place}.tool_calls")
        return seen

    def _explicit_parts(self, item: dict[str, Any], place: str) -> tuple[Span, ...] | None:
        name = self._dataset.message_field_training_detail
        if name is None or name not in item:
            return None
        details = parsed(item[name], f"{place}.{name}")
        return None if details == [] else _detail_spans(details, f"{place}.{name}")

    def _is_trained(
        self,
        item: dict[str, Any],
        place: str,
        role: str,
        content_parts: tuple[Span, ...] | None,
        thinking_parts: tuple[Span, ...] | None,
    ) -> bool:
        name = self._dataset.message_field_training
        if name is not None and name in item:
            if item[name] not in (True, False):
                raise Rejected("wrong_type", f"{place}.{name} must be true or false, found {shorten(item[name])}")
            return bool(item[name])
        if content_parts is not None or thinking_parts is not None:
            return True
        if self._dataset.message_field_training_detail in item:
            return False  # an empty list of details
        return self.trains(role)


def _role_map(roles: Mapping[str, tuple[str, ...]] | None) -> dict[str, str]:
    if not roles:
        return DEFAULT_ROLES
    return {name: role for role, names in roles.items() for name in names}


def _joined(parts: list[Any], place: str) -> tuple[str, tuple[Span, ...] | None]:
    """Return the text of a list of parts, and the spans to train if a part says so with `train` or `weight`."""
    texts: list[str] = []
    spans: list[Span] = []
    explicit, position = False, 0
    for number, part in enumerate(parts):
        text, flag = _part(part, f"{place}.{number}")
        explicit = explicit or flag is not None
        if text and flag is not False:
            spans.append(Span(position, position + len(text)))
        texts.append(text)
        position += len(text)
    return "".join(texts), tuple(spans) if explicit else None


def _part(part: Any, place: str) -> tuple[str, bool | None]:
    if isinstance(part, str):
        return text_of(part, place), None
    if not isinstance(part, dict):
        raise Rejected("wrong_type", f"{place} must be text or an object, found {type_name(part)}: {shorten(part)}")
    key = next((key for key in PART_TEXT_KEYS if key in part), None)
    if key is None:
        raise Rejected("unsupported_part", f"{place} holds no text: {shorten(part)}")
    flag = part.get("train", part.get("weight"))
    return text_of(part[key], f"{place}.{key}"), None if flag is None else bool(flag)


def _detail_spans(value: Any, place: str) -> tuple[Span, ...]:
    """Return the spans that a training detail marks as trained; `end_offset` is the last character of a span."""
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{place} must be a list, found {type_name(value)}: {shorten(value)}")
    spans = []
    for number, detail in enumerate(value):
        try:
            begin, end, train = detail["begin_offset"], detail["end_offset"], detail["train"]
        except (TypeError, KeyError) as error:
            rule = "must have begin_offset, end_offset and train"
            raise Rejected("wrong_type", f"{place}.{number} {rule}: {shorten(detail)}") from error
        if type(begin) is not int or type(end) is not int or type(train) is not bool or begin < 0:
            rule = "begin_offset and end_offset must be characters from 0, train must be true or false"
            raise Rejected("wrong_type", f"{place}.{number}: {rule}: {shorten(detail)}")
        if train and end >= begin:
            spans.append(Span(begin, end + 1))
    return tuple(spans)


def _split_thinking(seen: dict[str, Any], key: str) -> dict[str, Any]:
    """Move what stands between the first pair of thinking tags out of the content."""
    content = str(seen.get("content", ""))
    for opening, closing in THINKING_TAGS:
        begin, end = content.find(opening), content.find(closing)
        if 0 <= begin < end:
            thinking = content[begin + len(opening) : end].strip()
            rest = content[end + len(closing) :].lstrip()
            first, last = rest.find(SOLUTION_TAGS[0]), rest.find(SOLUTION_TAGS[1])
            if 0 <= first < last:
                rest = rest[first + len(SOLUTION_TAGS[0]) : last].strip()
            return {**seen, key: thinking, "content": rest}
    return seen


def _tool_calls(calls: Any, place: str) -> list[Any]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Rejected("wrong_type", f"{place} must be a list of objects, found {type_name(calls)}: {shorten(calls)}")
    return [_with_parsed(call, "arguments", f"{place}.{number}") for number, call in enumerate(calls)]


def _with_parsed(outer: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    """Return a tool or a tool call whose `function.<name>`, if it is JSON in a string, is parsed."""
    function = outer.get("function")
    if not isinstance(function, dict) or name not in function:
        return outer
    return {**outer, "function": {**function, name: parsed(function[name], f"{place}.function.{name}")}}
