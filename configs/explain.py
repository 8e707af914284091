"""What pydantic found, and what the rules between keys say, as sentences with place and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails

from configs.document import Document, KeyPath, dotted
from configs.keys import section_model, section_names
from configs.rules import RULES
from configs.schema import RunConfig
from configs.values import Section

_TAGS = ("function-", "literal[", "constrained-", "lax-or-strict", "union[", "list[", "tuple[", "dict[", "nullable[")


def explain(document: Document, error: ValidationError) -> None:
    """Add a problem for each wrong value, and for each rule between keys that the right values break."""
    broken: set[str] = set()
    for details in error.errors(include_url=False):
        if details["loc"]:
            broken.add(str(details["loc"][0]))
            _explain_value(document, details)
    for message in _broken_rules(document.values, broken):
        words = re.findall(r"\w+", message)
        if broken.isdisjoint(words):
            rule, _, remedy = message.partition("; ")
            key = next((word for word in words if word in document.values), None)
            place: KeyPath = (key,) if key else ()
            document.problem(place, document.values[key] if key else None, rule, f"{remedy[:1].upper()}{remedy[1:]}.")


def _broken_rules(values: dict[str, Any], broken: set[str]) -> Iterator[str]:
    """Yield what each rule between keys says, looking at the values that are right by themselves.

    A broken rule hides the others from pydantic, and a wrong value hides them all; so they are asked one by one.
    """
    right = {key: value for key, value in values.items() if key in RunConfig.model_fields and key not in broken}
    given = _fields_alone(set(right)).model_validate(right)
    asked: dict[str, Any] = {key: None for key, info in RunConfig.model_fields.items() if info.is_required()}
    asked |= {"datasets": ()} | {key: getattr(given, key) for key in right}
    run = RunConfig.model_construct(**asked)
    for rule in RULES:
        try:
            rule(run)
        except ValueError as error:
            yield str(error)


def _fields_alone(keys: set[str]) -> type[BaseModel]:
    """Return a model with these fields of the schema, and without the rules between them."""
    fields: dict[str, Any] = {}
    for key in keys:
        info = RunConfig.model_fields[key]
        fields[key] = (Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation, ...)
    return create_model("Fields", __base__=Section, **fields)


def _explain_value(document: Document, details: ErrorDetails) -> None:
    models = {model.__name__ for _, model in section_names()} | {"str", "int", "bool", "float"}
    path = tuple(part for part in details["loc"] if part not in models and not str(part).startswith(_TAGS))
    description = _description(path)
    message = details["msg"].removeprefix("Value error, ")
    if any(f"{problem.key}.".startswith(f"{dotted(path)}.") for problem in document.problems if problem.key):
        return  # one sentence per value: not one per member of a union, none for what only holds a wrong value
    if details["type"] == "value_error":
        rule, _, remedy = message.partition("; ")
        document.problem(path, None, rule, f"{remedy[:1].upper()}{remedy[1:]}." if remedy else description)
    elif details["type"] == "missing" and _stands_for(document, path):
        return  # a sentence about the key that stands in its place says what to do
    elif details["type"] == "missing":
        document.problem(path, None, "this key is required", f"Add it. {description}")
    else:
        document.problem(path, details["input"], _rule(details, message), f"{_hint(details, path)}{description}")


_EXPECTED = {
    "list_type": "it should be a list",
    "tuple_type": "it should be a list",
    "dict_type": "it should be a mapping of keys to values",
    "model_type": "it should be a mapping of keys to values",
    "string_type": "it should be text",
}


def _stands_for(document: Document, path: KeyPath) -> bool:
    return path == ("datasets",) and any(p.key.startswith("pretraining_dataset") for p in document.problems)


def _rule(details: ErrorDetails, message: str) -> str:
    if details["type"] in _EXPECTED:
        return _EXPECTED[details["type"]]
    return re.sub(r"^Input", "it", message).partition(", unable")[0].partition(", got")[0]


def _hint(details: ErrorDetails, path: KeyPath) -> str:
    """Return what is meant, where it can be guessed."""
    given = details["input"]
    if path == ("warmup_steps",) and details["type"] == "int_from_float":
        return f"Did you mean warmup_ratio: {given}? "
    if path == ("tokens",) and isinstance(given, dict):
        return "Did you mean special_tokens? "
    if details["type"] == "string_type" and isinstance(given, int | float):
        return f"Put it in quotes: '{given}'. "
    if details["type"] in ("tuple_type", "list_type") and isinstance(given, dict):
        return "Put `- ` in front of its first line. "
    near = difflib.get_close_matches(
        str(given), re.findall(r"'([^']+)'", details.get("ctx", {}).get("expected", "")), 1
    )
    return f"Did you mean {near[0]}? " if near else ""


def _description(path: KeyPath) -> str:
    model: type[BaseModel] = RunConfig
    description = "Look at `sft schema`."
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        description = f"It is: {model.model_fields[part].description}"
        model = section_model(model, part) or model
    return description
