"""The JSON schema of a configuration file, for editors: what the reader takes, with axolotl's keys beside ours."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from configs.keys import key_class, known_keys, section_names
from configs.schema import RunConfig

ASKS_FOR_NOTHING: list[Any] = [None, False, "", [], {}]


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12). `key:` without a value is the same as no key, so null fits everywhere."""
    schema = RunConfig.model_json_schema(mode="validation")
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    schema["title"] = "A run of sft-flow"
    places = {model.__name__: section for section, model in section_names()}
    for name, part in [("RunConfig", schema), *schema["$defs"].items()]:
        for key, value in part.get("properties", {}).items():
            part["properties"][key] = _or_null(value)
        if name in places:
            part["properties"] |= _other_keys(places[name])
    _also_text(schema["properties"]["deepspeed"], "path of its JSON file, or the name of a preset")
    schema["$defs"]["FsdpConfig"]["patternProperties"] = {"^fsdp_": {"description": "The same without fsdp_."}}
    return schema


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    """Let a value be left out, and a number be written as 1e-4, which YAML 1.1 takes for text."""
    kept: dict[str, Any] = {name: value[name] for name in ("description", "default") if name in value}
    rest = {name: part for name, part in value.items() if name not in (*kept, "title")}
    choices = rest.pop("anyOf", None) or [rest]
    if any(choice.get("type") == "number" for choice in choices):
        choices = [*choices, {"type": "string", "pattern": r"^[-+.\d]+[eE][-+]?\d+$"}]
    if {"type": "null"} not in choices:
        choices = [*choices, {"type": "null"}]
    return {**kept, "anyOf": choices}


def _also_text(value: dict[str, Any], description: str) -> None:
    value["anyOf"].append({"type": "string", "description": description})


def _other_keys(section: str) -> dict[str, Any]:
    """Return the keys of a section that are not acted on: what becomes of them is their description."""
    others: dict[str, Any] = {}
    for key in known_keys(section):
        found = key_class(section, key)
        if found is None or found.kind == "acted on":
            continue
        said = f"{found.kind.capitalize()}: {found.text}."
        if found.kind == "refused":
            others[key] = {"description": said, "enum": ASKS_FOR_NOTHING}
        elif not (found.kind == "without effect" and _is_field(section, key)):
            others[key] = {"description": said, "deprecated": found.kind == "replaced by"}
    return others


def _is_field(section: str, key: str) -> bool:
    return any(name == section and key in model.model_fields for name, model in section_names())
