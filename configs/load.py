"""From a YAML file and command-line overrides to a `RunConfig`, or to all that is wrong with them at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from configs.axolotl import ALIASES, ATTENTION, GIVES_WAY, NEUTRAL, PLUGINS
from configs.document import Document, KeyPath, dotted, drop_nulls, in_order, read_document
from configs.errors import ConfigError, KeyUse, Problem
from configs.explain import explain
from configs.keys import key_class, known_keys, section_model
from configs.other_names import OTHER_NAMES
from configs.overrides import apply_override
from configs.precision import read_precision
from configs.schema import DatasetConfig, PromptConfig, RunConfig
from configs.sharding import FSDP_KEYS, read_deepspeed, read_fsdp

MOST_UNKNOWN = 30


@dataclass(frozen=True)
class LoadedRun:
    """A valid configuration, what it says of keys without effect, what became of each key, and where it came from."""

    run: RunConfig
    notices: tuple[Problem, ...]
    path: Path
    keys: tuple[KeyUse, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    lenient: bool = False

    def place(self, key: str) -> str:
        """Return where a dotted key stands (`run.yaml:12:3`), or the nearest thing around it, or the file."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, str(self.path))


def load_run(path: Path, overrides: Sequence[str] = (), *, lenient: bool = False) -> LoadedRun:
    """Return the configuration of a run.

    Args:
        path: the YAML file.
        overrides: `key=value`, with dots into sections and list positions: `datasets.0.split=train[:10%]`.
        lenient: unknown keys are notices, not problems, and have no effect.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document = read_document(path)
    for override in overrides:
        apply_override(document, override)
    drop_nulls(document)
    uses = tuple(_uses(document.values, RunConfig, ""))
    _check_strict(document, overrides)
    _read_plugins(document)
    read_precision(document)
    _classify(document)
    _read_attention(document)
    _read_sharding(document, path.resolve().parent)
    _classify_sections(document, lenient=lenient)
    _notice_empty(document)
    run: RunConfig | None = None
    try:
        run = RunConfig.model_validate(document.values)
    except ValidationError as error:
        explain(document, error)
    if run is None or document.problems:
        raise ConfigError(in_order(document.problems), uses)
    places = {dotted(place): where for place, where in document.places.items()}
    return LoadedRun(_with_paths(run, path.resolve().parent), tuple(document.notices), path, uses, places, lenient)


def _uses(values: dict[str, Any], model: type[BaseModel], section: str) -> Iterator[KeyUse]:
    for key, value in values.items():
        name = f"{section}.{key}".lstrip(".")
        found = key_class(section, key.removeprefix("fsdp_") if section == "fsdp_config" else key)
        if found is not None and not (found.kind == "refused" and asks_nothing(section, key, value)):
            yield KeyUse(name, found.kind, found.text)
        inner = section_model(model, key)
        if inner is not None:
            for _, item in _mappings(value, ()):
                yield from _uses(item, inner, name)


def _read_plugins(document: Document) -> None:
    """Turn on what a listed plugin turns on, and refuse those that would do something else."""
    listed = document.values.get("plugins", [])
    for position, name in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(name, str):
            continue  # the schema says that it should be text
        if name not in PLUGINS:
            remedy = f"Remove it. Understood are {', '.join(known.rpartition('.')[2] for known in PLUGINS)}."
            document.problem(("plugins", position), name, "code of this plugin is not run here", remedy)
        elif PLUGINS[name] in RunConfig.model_fields:
            document.values.setdefault(PLUGINS[name], True)


def _check_strict(document: Document, overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that are not in the file where it says `strict: true`."""
    if document.values.get("strict") is not True:
        return
    for override in overrides:
        key = override.partition("=")[0].split(".")[0]
        if key not in document.keys:
            rule = "with strict: true only keys of the file can be overridden"
            document.problem((key,), None, rule, "Add it to the file, or remove strict.")


def _classify(document: Document) -> None:
    """Take out the keys of axolotl that our schema does not have: aliases, without effect, refused."""
    for key in [key for key in document.values if key in ALIASES and key not in RunConfig.model_fields]:
        value = document.values.pop(key)
        if not _asks_for_nothing(value):
            _replace_alias(document, key, value)
    _take_out(document, document.values, RunConfig, "", ())


def _classify_sections(document: Document, *, lenient: bool) -> None:
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
        if asks_nothing(section, key, value):
            continue
        if found.kind == "refused":
            document.problem((*path, key), value, "this is not done here", f"Instead: {found.text}.")
        else:
            document.notice((*path, key), value, "has no effect here", f"Reason: {found.text}.")


def asks_nothing(section: str, key: str, value: Any) -> bool:
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


def _notice_empty(document: Document) -> None:
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


def _read_attention(document: Document) -> None:
    """Read other names of attention implementations; without a name the fastest that is there is taken."""
    name = document.values.get("attn_implementation")
    if not isinstance(name, str) or name not in ATTENTION:
        return
    read_as, why = ATTENTION[name]
    if why:
        document.notice(("attn_implementation",), name, f"is read as {read_as or 'auto'}: {why}", "")
    del document.values["attn_implementation"]
    if read_as:
        document.values["attn_implementation"] = read_as


def _read_sharding(document: Document, folder: Path) -> None:
    """Bring FSDP into the words of FSDP2, and DeepSpeed's file into the configuration."""
    fsdp = read_fsdp(document.values)
    for key, value, what in fsdp.notices:
        document.notice(tuple(key.split(".")), value, what, "")
    for key, value, rule, remedy in fsdp.problems:
        document.problem((key,), value, rule, remedy)
    for key in FSDP_KEYS:
        document.values.pop(key, None)
    if fsdp.config is not None:
        document.values["fsdp_config"] = fsdp.config
    name = document.values.get("deepspeed")
    if not isinstance(name, str):
        return
    try:
        document.values["deepspeed"], said = read_deepspeed(name, folder)
        if said:
            document.notice(("deepspeed",), name, said, "")
    except ValueError as error:
        rule, _, remedy = str(error).partition("; ")
        document.problem(("deepspeed",), name, rule, f"{remedy[:1].upper()}{remedy[1:]}.")
        del document.values["deepspeed"]


def _with_paths(run: RunConfig, folder: Path) -> RunConfig:
    """Read a relative path from here, as axolotl does, or from beside the YAML file if it is only there."""

    def found(name: str) -> str:
        beside = folder / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    def found_template(text: str | None) -> str | None:
        return found(text) if text and len(text) < 4096 and "\n" not in text and "{" not in text else text

    def found_type(kind: str | PromptConfig | None) -> str | PromptConfig | None:
        if not isinstance(kind, str):
            return kind
        if kind.endswith(".py"):
            return found(kind)
        module = "/".join(kind.split(".")) + ".py"
        beside_only = re.fullmatch(r"[\w.]{1,200}", kind) and not Path(module).exists() and (folder / module).is_file()
        return str(folder / module) if beside_only else kind

    def found_sources(datasets: Sequence[DatasetConfig]) -> tuple[DatasetConfig, ...]:
        return tuple(
            dataset.model_copy(
                update={
                    "path": found(dataset.path),
                    "type": found_type(dataset.type),
                    "chat_template_jinja": found_template(dataset.chat_template_jinja),
                }
            )
            for dataset in datasets
        )

    return run.model_copy(
        update={
            "base_model": found(run.base_model),
            "tokenizer_config": found(run.tokenizer_config) if run.tokenizer_config else None,
            "lora_model_dir": found(run.lora_model_dir) if run.lora_model_dir else None,
            "resume_from_checkpoint": found(resumed)
            if isinstance(resumed := run.resume_from_checkpoint, str)
            else None,
            "chat_template_jinja": found_template(run.chat_template_jinja),
            "datasets": found_sources(run.datasets),
            "test_datasets": found_sources(run.test_datasets),
        }
    )
