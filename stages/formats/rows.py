"""Reading a raw row: JSON to a dictionary without nulls, and its fields with their types checked."""

from __future__ import annotations

import json
from typing import Any

import orjson

from stages.formats.pieces import Rejected

ONE_DIGIT = bytes.maketrans(b"123456789", b"000000000")
LONG_NUMBER = b"0" * 19  # beyond 64 bits orjson would give a rounded float


def read_row(raw: bytes) -> dict[str, Any]:
    """Return a row without its null values, at any depth: an absent key and a null are the same thing.

    Raises:
        Rejected: not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(raw.decode()) if LONG_NUMBER in raw.translate(ONE_DIGIT) else orjson.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_json", f"{error}: {raw[:80]!r}") from error
    if not isinstance(row, dict):
        raise Rejected("bad_json", f"an object {{...}} is expected, found {type_name(row)}: {raw[:80]!r}")
    return dict(without_nulls(row)) if b"null" in raw else row


def without_nulls(value: Any) -> Any:
    """Return `value` without the null values of its objects; list elements stay where they are.

    >>> without_nulls({"a": None, "b": [{"c": None}, 1]})
    {'b': [{}, 1]}
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def text_field(row: dict[str, Any], name: str) -> str:
    """Return a column that must be there and be text.

    Raises:
        Rejected: it is missing, null, or something else.
    """
    if name not in row:
        columns = ", ".join(sorted(map(str, row))) or "none"
        raise Rejected("missing_field", f"no column {name!r}, or it is null; the row has: {columns}")
    return text_of(row[name], name)


def text_of(value: Any, name: str) -> str:
    """Return `value`, which must be text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name} must be text, found {type_name(value)}: {shorten(value)}")
    try:
        if not value.isascii():  # which Python knows without looking
            value.encode()
    except UnicodeEncodeError as error:
        raise Rejected("bad_text", f"{name} holds half a surrogate pair, which is no character") from error
    return value


def parsed(value: Any, name: str) -> Any:
    """Return `value`, parsed if it is JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_json", f"{name} is text, but not JSON: {error}: {shorten(value)}") from error


def type_name(value: Any) -> str:
    """Return the JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def shorten(value: Any, limit: int = 60) -> str:
    """Return the start of a value's text, for a message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
