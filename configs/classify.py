"""What becomes of the keys of a document: those that our schema does not have are replaced, taken out or refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from configs.axolotl import ALIASES, GIVES_WAY, NEUTRAL
from configs.document import Document, KeyPath
from configs.errors import KeyUse
from configs.keys import key_class, known_keys, section_model
from configs.other_names import OTHER_NAMES
from configs.schema import RunConfig

MOST_UNKNOWN = 30


def key_uses(values: dict[str, Any], model: type[BaseModel] = RunConfig, section: str = "") -> Iterator[KeyUse]:
    """Yield what becomes of each key that is used, at any depth."""
    for key, value in values.items():
        name = f"{section}.{key}".lstrip(".")
        found = key_class(section, key.removeprefix("fsdp_") if section == "fsdp_config" else key)
        if found is not None and not (found.kind == "refused" and _asks_nothing(section, key, value)):
            yield KeyUse(name, found.kind, found.text)
        inner = section_model(model, key)
        if inner is not None:
            for _, item in _mappings(value, ()):
                yield from key_uses(item, inner, name)


def classify_top(document: Document) -> None:
    """Take out the keys of axolotl that our schema does not have: aliases, without effect, refused."""
    for key in [key for key in document.values if key in ALIASES and key not in RunConfig.model_fields]:
        value = document.values.pop(key)
        if not _asks_for_nothing(value):
            _replace_alias(document, key, value)
    _take_out(document, document.values, RunConfig, "", ())


def classify_sections(document: Document, *, lenient: bool) -> None:
    """Do the same inside sections, and find the keys that nobody knows, at any depth."""
    todo: list[tuple[dict[str, Any], type[BaseModel], str, KeyPath]] = [(document.values, RunConfig, "", ())]
    while todo:
        values, model, section, path = todo.pop(0)
        if section:
            _take_out(document, values, model, section, path)
        unknown = [key for key in values if key not in model.model_fields]
        for key in unknown[:MOST_UNKNOWN]:
            _unknown(document, values, key, section, path, lenient=lenient)
        if unknown[MOST_UNKNOWN:]:
            rule = f"{len(unknown) - MOST_UNKNOWN:,} more keys are not known"
            document.problem(path, None, rule, "Is this the file of a run?")
            for key in unknown[MOST_UNKNOWN:]:
                del values[key]
        for key, value in values.items():
            inner = section_model(model, key)
            if inner is not None:
                name = f"{section}.{key}".lstrip(".")
                todo += [(item, inner, name, place) for place, item in _mappings(value, (*path, key))]


def _take_out(document: Document, values: dict[str, Any], model: type[BaseModel], section: str, path: KeyPath) -> None:
    for key in [key for key in values if key not in model.model_fields]:
        found = key_class(section, key)
        if found is None or found.kind == "replaced by":
            continue
        value = values.pop(key)
        if _asks_nothing(section, key, value):
            continue
        if found.kind == "refused":
            document.problem((*path, key), value, "this is not done here", f"Instead: {found.text}.")
        else:
            document.notice((*path, key), value, "has no effect here", f"Reason: {found.text}.")


def _asks_nothing(section: str, key: str, value: Any) -> bool:
    """Return whether a value leaves a key as if it were not there, whatever its class."""
    return _asks_for_nothing(value) or (not section and value == NEUTRAL.get(key, ...))


def _asks_for_nothing(value: Any) -> bool:
    return value is False or value in ("", [], {})


def _unknown(
    document: Document, values: dict[str, Any], key: str, section: str, path: KeyPath, *, lenient: bool
) -> None:
    value = values.pop(key)
    near = _near(key, section)
    if lenient:
        document.notice((*path, key), value, "this key is not known and has no effect", _did_you_mean(near))
    else:
        document.problem((*path, key), value, "this key is not known", _did_you_mean(near))


def notice_empty(document: Document) -> None:
    """Say so where a key that nobody knows has no value, which takes its effect but not its typo away."""
    for path in document.nulls:
        section = ".".join(str(part) for part in path[:-1] if not isinstance(part, int))
        if key_class(section, str(path[-1])) is None:
            near = _near(str(path[-1]), section)
            document.notice(path, None, "this key is not known; without a value it has no effect", _did_you_mean(near))


def _near(key: str, section: str) -> list[str]:
    if not section and key in OTHER_NAMES:
        return [OTHER_NAMES[key]]
    return difflib.get_close_matches(key.lower().replace("-", "_"), known_keys(section), n=2, cutoff=0.6)


def _did_you_mean(near: list[str]) -> str:
    return f"Did you mean {' or '.join(near)}?" if near else "Remove it; `sft schema` lists every key."


def _replace_alias(document: Document, old: str, value: Any) -> None:
    new, stands_for = ALIASES[old]
    replacement = value if stands_for is None else stands_for
    if new in document.values and old in GIVES_WAY:
        document.notice((old,), value, f"has no effect beside {new}", "Remove it.")
        return
    if new in document.values and document.values[new] != replacement:
        document.problem((old,), value, f"{old} is an old name for {new}, and both are given", f"Remove {old}.")
        return
    if new not in document.values:
        document.places[(new,)] = document.place((old,))
    document.values[new] = replacement
    document.notice((old,), value, f"is read as {new}: {replacement}", "Use the new name.")


def _mappings(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
    elif isinstance(value, list):
        for position, item in enumerate(value):
            if isinstance(item, dict):
                yield (*path, position), item
