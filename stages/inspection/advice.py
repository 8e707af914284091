"""Which type fits a data set of which nothing is known but its rows, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
FLAG_KEYS = ("train", "training", "weight")
TOOL_COLUMNS = ("tools", "functions", "tool_schemas", "available_tools")
DEFAULT_ROLES = {"assistant": ("gpt", "assistant"), "user": ("human", "user"), "system": ("system",), "tool": ("tool",)}
OTHER_ROLES = {
    "assistant": ("model", "bot", "ai", "chatbot", "chatgpt", "bing", "function_call", "tool_call", "output"),
    "user": ("prompter", "customer", "instruction", "input"),
    "tool": ("observation", "function", "ipython", "tool_response", "function_response"),
    "system": ("system_prompt", "context"),
}
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"),
    ("instruction", "response"), ("input", "output"), ("problem", "solution"), ("question", "response"), ("q", "a"),
)  # fmt: skip
TEXT_COLUMNS = ("text", "content", "document", "body", "raw_content", "code")
SPEECH_TAGS = ("<think>", "<reasoning>", "<|begin_of_thought|>")


@dataclass(frozen=True)
class Advice:
    """A way to read a data set.

    Attributes:
        options: what to write under `datasets`, besides `path`.
        reasons: why it fits, one sentence each.
    """

    options: dict[str, Any]
    reasons: list[str] = field(default_factory=list)


def advise(rows: Sequence[dict[str, Any]]) -> list[Advice]:
    """Return the ways to read these rows, the likeliest first."""
    finders = (_tokenized, _segments, _chats, _preferences, _alpaca, _pairs)
    found = [advice for find in finders for advice in find(rows)]
    return found or list(_texts(rows))


def _share(rows: Sequence[dict[str, Any]], fits: Callable[[dict[str, Any]], bool]) -> float:
    return sum(map(fits, rows)) / max(1, len(rows))


def _has(rows: Sequence[dict[str, Any]], name: str, kind: type = str) -> bool:
    """Return whether most rows have a column of a type, and something in it."""
    return _share(rows, lambda row: isinstance(row.get(name), kind) and bool(row[name])) > 0.5


def _tokenized(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    if all(_has(rows, name, list) for name in ("input_ids", "labels")):
        yield Advice({"type": None}, ["rows have input_ids and labels: they are tokenized already"])


def _segments(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    if _share(rows, lambda row: _are_objects(row.get("segments"), {"label", "text"})) > 0.5:
        yield Advice({"type": "input_output"}, ["rows have segments of text with a label: true is trained, as it is"])


def _are_objects(value: Any, keys: set[str]) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and keys <= v.keys() for v in value)


def _chats(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    for column in dict.fromkeys(key for row in rows for key in row):
        if column not in ("chosen", "rejected", "segments"):
            advice = _chat(rows, column)
            if advice is not None:
                yield advice


def _chat(rows: Sequence[dict[str, Any]], column: str) -> Advice | None:
    """Return how a column is read as conversations, None if it holds none."""
    lists = [items for row in rows if (items := _listed(row.get(column))) is not None]
    messages = [item for items in lists for item in items if isinstance(item, dict)]
    if len(lists) <= len(rows) / 2 or not messages:
        return None
    role = _common(messages, ROLE_KEYS)
    content = _common([m for m in messages if not m.get("tool_calls")], CONTENT_KEYS)
    if role is None or content is None:
        return None
    written = "JSON text of lists" if any(isinstance(row.get(column), str) for row in rows) else "lists"
    advice = Advice({"type": "chat_template"}, [f"{column} holds {written} of messages with {role} and {content}"])
    if column != "messages":
        advice.options["field_messages"] = column
    if (role, content) != ("role", "content"):
        advice.options["message_property_mappings"] = {"role": role, "content": content}
    _add_roles(advice, Counter(str(message.get(role)) for message in messages))
    _add_message_keys(advice, messages, content)
    _add_columns(advice, rows)
    return advice


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _common(messages: Sequence[dict[str, Any]], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if _share(messages, lambda message: key in message) > 0.5), None)  # noqa: B023


def _add_roles(advice: Advice, found: Counter[str]) -> None:
    known = {name for names in DEFAULT_ROLES.values() for name in names}
    strange = [name for name in found if name not in known]
    if not strange:
        return
    told = {name: role for role, names in OTHER_ROLES.items() for name in names}
    roles = {role: [name for name in names if name in found or name == role] for role, names in DEFAULT_ROLES.items()}
    for name in strange:
        if told.get(name.lower()):
            roles[told[name.lower()]].append(name)
    advice.options["roles"] = roles
    guessed = ", ".join(f"{name} ({told.get(name.lower(), 'not guessed: it stays as it is')})" for name in strange)
    advice.reasons.append(f"roles besides the usual ones: {guessed}")


def _add_message_keys(advice: Advice, messages: Sequence[dict[str, Any]], content: str) -> None:
    keys = Counter(key for message in messages for key, value in message.items() if value is not None)
    thinking = next((key for key in THINKING_KEYS if keys[key]), None)
    if thinking is not None:
        if thinking != "reasoning_content":
            advice.options["field_thinking"] = thinking
        advice.reasons.append(f"{keys[thinking]:,} messages of the sample have reasoning in {thinking}")
    elif any(tag in str(message.get(content, "")) for message in messages for tag in SPEECH_TAGS):
        advice.options["split_thinking"] = True
        advice.reasons.append("contents hold reasoning between tags; split_thinking gives it to the template apart")
    flag = next((key for key in FLAG_KEYS if keys[key] and all(m.get(key) in (0, 1, None) for m in messages)), None)
    if flag is not None:
        advice.options["message_field_training"] = flag
        advice.reasons.append(f"messages say with {flag} whether they are trained")
    if keys["tool_calls"]:
        advice.reasons.append(f"{keys['tool_calls']:,} messages of the sample call tools")


def _add_columns(advice: Advice, rows: Sequence[dict[str, Any]]) -> None:
    tools = next((name for name in TOOL_COLUMNS if any(row.get(name) for row in rows)), None)
    if tools is not None:
        if tools != "tools":
            advice.options["field_tools"] = tools
        advice.reasons.append(f"{tools} holds the schemas of tools")
    texts = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    system = next((name for name in ("system", "system_prompt") if name in texts), None)
    if system is not None:
        if system != "system":
            advice.options["field_system"] = system
        advice.reasons.append(f"{system} holds a system prompt beside the messages")


def _preferences(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    if not {"chosen", "rejected"} <= {key for row in rows for key in row}:
        return
    advice = _chat(rows, "chosen")
    if advice is not None:
        advice.reasons.append("rejected answers are for learning from preferences, which is not done here: left out")
        yield advice


def _alpaca(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    if _has(rows, "instruction") and _has(rows, "output"):
        with_input = ", and an input where there is one" if any(row.get("input") for row in rows) else ""
        yield Advice({"type": "alpaca"}, [f"rows have instruction and output{with_input}"])


def _pairs(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    for asked, answered in PAIRS:
        if _has(rows, asked) and _has(rows, answered):
            kind = {
                "field_instruction": asked,
                "field_output": answered,
                "format": "{instruction}\n",
                "no_input_format": "{instruction}\n",
            }
            reason = f"rows have {asked} and {answered}; change format to how you will ask"
            yield Advice({"type": kind}, [reason])


def _texts(rows: Sequence[dict[str, Any]]) -> Iterator[Advice]:
    columns = Counter(key for row in rows for key, value in row.items() if isinstance(value, str))
    known = next((name for name in TEXT_COLUMNS if _has(rows, name)), None)
    column = known or max(columns, key=lambda name: sum(len(str(row.get(name, ""))) for row in rows), default=None)
    if column is None:
        return
    options: dict[str, Any] = {"type": "completion"}
    if column != "text":
        options["field"] = column
    yield Advice(options, [f"{column} is plain text; all of it is trained, cut in parts of sequence_len"])
