"""What becomes of a key: acted on, accepted without effect, replaced by another, or refused."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from configs.axolotl import ALIASES, READ_INTO, REFUSED, WITHOUT_EFFECT
from configs.axolotl_sections import ALIASES_IN, REFUSED_IN, WITHOUT_EFFECT_IN
from configs.schema import RunConfig

Kind = Literal["acted on", "without effect", "replaced by", "refused"]
NO_EFFECT = "Accepted without effect: "
"""How the description of a key of the schema begins that is checked, but changes nothing."""
_TOP_ALIASES = {old: new for old, (new, _) in ALIASES.items()} | READ_INTO


@dataclass(frozen=True)
class KeyClass:
    """What becomes of a key, and the reason, the other key, or what to do instead."""

    kind: Kind
    text: str


def key_class(section: str, key: str) -> KeyClass | None:
    """Return what becomes of a key in a section (`""`: top level, `datasets.type`); None if it is not known."""
    model = _model_of(section)
    if model is not None and key in model.model_fields:
        description = model.model_fields[key].description or ""
        if description.startswith(NO_EFFECT):
            return KeyClass("without effect", description.removeprefix(NO_EFFECT).rstrip("."))
        return KeyClass("acted on", description)
    aliases = _TOP_ALIASES if not section else ALIASES_IN.get(section, {})
    if key in aliases:
        return KeyClass("replaced by", aliases[key])
    refused = REFUSED if not section else REFUSED_IN.get(section, {})
    if key in refused:
        return KeyClass("refused", refused[key])
    without_effect = WITHOUT_EFFECT if not section else WITHOUT_EFFECT_IN.get(section, {})
    if key in without_effect:
        return KeyClass("without effect", without_effect[key])
    if section and model is None:  # what is inside a key shares its fate
        parent, _, name = section.rpartition(".")
        return key_class(parent, name)
    return None


def known_keys(section: str) -> list[str]:
    """Return the keys of a section that have a class, those of our schema first."""
    model = _model_of(section)
    tables: list[Iterable[str]] = [model.model_fields if model is not None else ()]
    tables += [ALIASES_IN.get(section, ()), WITHOUT_EFFECT_IN.get(section, ()), REFUSED_IN.get(section, ())]
    if not section:
        tables += [_TOP_ALIASES, WITHOUT_EFFECT, REFUSED]
    return list(dict.fromkeys(itertools.chain.from_iterable(tables)))


def section_model(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the model of what a key holds, or holds a list of; None if it holds plain values."""
    info = model.model_fields.get(key)
    return next(_models(info.annotation), None) if info is not None else None


def section_names() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (dotted name, model) of every section, the whole configuration (`""`) first."""
    todo: list[tuple[str, type[BaseModel]]] = [("", RunConfig)]
    while todo:
        name, model = todo.pop(0)
        yield name, model
        for key in model.model_fields:
            inner = section_model(model, key)
            if inner is not None:
                todo.append((f"{name}.{key}".lstrip("."), inner))


def _model_of(section: str) -> type[BaseModel] | None:
    model: type[BaseModel] | None = RunConfig
    for key in section.split(".") if section else ():
        model = section_model(model, key) if model is not None else None
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
