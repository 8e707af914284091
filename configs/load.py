"""From a YAML file and command-line overrides to a `RunConfig`, or to all that is wrong with them at once."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.axolotl import ALIASES, REFUSED, WITHOUT_EFFECT
from configs.errors import ConfigError, Problem
from configs.schema import DatasetConfig, LauncherConfig, PromptConfig, PublishConfig, RunConfig, SpecialTokensConfig

MOST_BYTES = 1_000_000
MOST_NODES = 20_000
COMMAND_LINE = "command line"

Path_ = tuple[str | int, ...]
_SECTIONS: dict[str, type[BaseModel]] = {
    "datasets": DatasetConfig,
    "special_tokens": SpecialTokensConfig,
    "launcher": LauncherConfig,
    "publish": PublishConfig,
    "type": PromptConfig,
}
_MODEL_TAGS = {"PromptConfig", "PublishConfig", "str", "int", "bool"}


@dataclass(frozen=True)
class LoadedRun:
    """A valid configuration, what it says of keys without effect, and where it came from."""

    run: RunConfig
    notices: tuple[Problem, ...]
    path: Path


@dataclass
class _Document:
    """A YAML document while it is judged: values, the place of each, and what is wrong so far."""

    values: dict[str, Any]
    places: dict[Path_, str]
    file: str
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)

    def place(self, path: Path_) -> str:
        """Return where a key stands, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.file)

    def problem(self, path: Path_, value: Any, rule: str, remedy: str) -> None:
        """Note that a key is wrong."""
        self.problems.append(_problem(self.place(path), path, value, rule, remedy))

    def notice(self, path: Path_, value: Any, rule: str, remedy: str) -> None:
        """Note that a key is accepted, but not as it might be meant."""
        self.notices.append(_problem(self.place(path), path, value, rule, remedy))


def load_run(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Return the configuration of a run.

    Args:
        path: the YAML file.
        overrides: `key=value`, with dots into sections and list positions: `datasets.0.split=train[:10%]`.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document = _read(path)
    for override in overrides:
        _override(document, override)
    if document.problems:
        raise ConfigError(document.problems)
    document.values = _without_nulls(document.values)
    _classify(document)
    _find_unknown(document, document.values, RunConfig, ())
    known = {key: value for key, value in document.values.items() if key in RunConfig.model_fields}
    run: RunConfig | None = None
    try:
        run = RunConfig.model_validate(known)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] != "extra_forbidden":
                _explain(document, details)
    if run is None or document.problems:
        raise ConfigError(document.problems)
    return LoadedRun(_with_paths(run, path.resolve().parent), tuple(document.notices), path)


def _read(path: Path) -> _Document:
    file = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        rule = f"the file cannot be read ({error.strerror})"
        raise ConfigError([Problem(file, "", "", rule, "Give the path of a YAML file.")]) from error
    if len(content) > MOST_BYTES:
        rule = f"{len(content):,} bytes are too many for a configuration (at most {MOST_BYTES:,})"
        raise ConfigError([Problem(file, "", "", rule, "Give the configuration, not the data.")])
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        document = _Document({}, {}, file)
        if not isinstance(node, yaml.MappingNode):
            rule = "a configuration is a mapping of keys to values"
            raise ConfigError([Problem(file, "", "", rule, "Begin with base_model: NAME.")])
        _index(document, node)
        if not document.problems:
            document.values = loader.construct_document(node)
        return document
    except UnicodeDecodeError as error:
        rule = f"byte {error.start} is not UTF-8"
        raise ConfigError([Problem(file, "", "", rule, "Save the file as UTF-8.")]) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(file, error)]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        rule = f"this is not valid YAML: {str(error).splitlines()[0]}"
        raise ConfigError([Problem(file, "", "", rule, "Mend the syntax.")]) from error
    finally:
        if loader is not None:
            loader.dispose()


def _syntax_problem(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
    tab = "'\\t'" in (error.problem or "")
    remedy = "Indent with spaces, not tabs." if tab else "Mend the syntax; look at the line before it too."
    return Problem(place, "", "", f"this is not valid YAML: {error.problem or error.context}", remedy)


def _index(document: _Document, root: yaml.MappingNode) -> None:
    """Note the place of every key; report duplicate keys, keys that are not text, and documents that never end."""
    todo: list[tuple[Path_, yaml.Node]] = [((), root)]
    visited = 0
    while todo:
        path, node = todo.pop()
        visited += 1
        if visited > MOST_NODES:
            document.problem((), None, f"the file unfolds to more than {MOST_NODES:,} values", "Use fewer anchors.")
            return
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                _note_place(document, (*path, position), item)
                todo.append(((*path, position), item))
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    document.problem(path, None, "a key must be a word", "Write `key: value`.")
                    continue
                key = str(key_node.value)
                _note_place(document, (*path, key), key_node)
                if key in seen:
                    document.problem((*path, key), None, "this key stands twice", "Remove one of the two.")
                seen.add(key)
                todo.append(((*path, key), value_node))


def _note_place(document: _Document, path: Path_, node: yaml.Node) -> None:
    mark = node.start_mark
    document.places[path] = f"{document.file}:{mark.line + 1}:{mark.column + 1}"


def _override(document: _Document, text: str) -> None:
    key, equals, raw = text.partition("=")
    path = tuple(int(part) if part.isdigit() else part for part in key.strip().lstrip("-").split("."))
    document.places[path] = COMMAND_LINE
    if not equals or not key.strip():
        document.places[(text,)] = COMMAND_LINE
        document.problem((text,), None, "an override is key=value", "Write, for example, learning_rate=1e-4.")
        return
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = raw
    target: Any = document.values
    for part, following in itertools.pairwise(path):
        target = _step(target, part, create=[] if isinstance(following, int) else {})
    if isinstance(target, dict):
        target[path[-1]] = value
    elif isinstance(target, list) and isinstance(path[-1], int) and path[-1] < len(target):
        target[path[-1]] = value
    else:
        document.problem(path, value, "there is no such place in the configuration", "Check the dots and positions.")


def _step(target: Any, part: str | int, create: Any) -> Any:
    if isinstance(target, list) and isinstance(part, int) and part < len(target):
        return target[part]
    if isinstance(target, dict):
        if not isinstance(target.get(part), dict | list):
            target[part] = create
        return target[part]
    return None


def _without_nulls(value: Any) -> Any:
    """Drop keys without a value: in axolotl `key:` is the same as no key at all."""
    if isinstance(value, dict):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _classify(document: _Document) -> None:
    """Take out the keys of axolotl that our schema does not have: aliases, without effect, refused."""
    for key in list(document.values):
        value = document.values[key]
        asks_for_nothing = value is False or value in ("", [], {})
        if key in ALIASES:
            del document.values[key]
            if not asks_for_nothing:
                _replace_alias(document, key, value)
        elif key in REFUSED:
            del document.values[key]
            if not asks_for_nothing:
                document.problem((key,), value, "this is not done here", f"Instead: {REFUSED[key]}.")
        elif key in WITHOUT_EFFECT:
            del document.values[key]
            if not asks_for_nothing:
                document.notice((key,), value, "has no effect here", f"Reason: {WITHOUT_EFFECT[key]}.")


def _replace_alias(document: _Document, old: str, value: Any) -> None:
    new, stands_for = ALIASES[old]
    replacement = value if stands_for is None else stands_for
    if new in document.values:
        document.problem((old,), value, f"{old} is an old name for {new}, and both are given", f"Remove {old}.")
        return
    document.values[new] = replacement
    document.places[(new,)] = document.place((old,))
    document.notice((old,), value, f"is read as {new}: {replacement}", "Use the new name.")


def _find_unknown(document: _Document, values: Any, model: type[BaseModel], path: Path_) -> None:
    for key, value in values.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, n=2, cutoff=0.6)
            remedy = f"Did you mean {' or '.join(near)}?" if near else "Remove it; `sft schema` lists every key."
            document.problem((*path, key), value, "this key is not known", remedy)
        elif key in _SECTIONS:
            for item_path, item in _mappings(value, (*path, key)):
                _find_unknown(document, item, _SECTIONS[key], item_path)


def _mappings(value: Any, path: Path_) -> Iterator[tuple[Path_, dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
    elif isinstance(value, list):
        for position, item in enumerate(value):
            if isinstance(item, dict):
                yield (*path, position), item


def _explain(document: _Document, details: ErrorDetails) -> None:
    """Turn one of pydantic's findings into a sentence with a remedy."""
    path = tuple(part for part in details["loc"] if part not in _MODEL_TAGS and not str(part).startswith("function-"))
    path = tuple(part for part in path if not str(part).startswith(("literal[", "constrained-", "lax-or-strict")))
    description = _description(path)
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error":
        rule, _, remedy = message.partition("; ")
        document.problem(path, None, rule, f"{remedy[:1].upper()}{remedy[1:]}.")
    elif details["type"] == "missing":
        document.problem(path, None, "this key is required", f"Add it. {description}")
    else:
        rule = message[:1].lower() + message[1:]
        if any(f"{problem.key}.".startswith(f"{_dotted(path)}.") for problem in document.problems):
            return  # one sentence per value: not one per member of a union, none for what only holds a wrong value
        document.problem(path, details["input"], rule, description)


def _description(path: Path_) -> str:
    model: type[BaseModel] = RunConfig
    description = ""
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        description = f"It is: {model.model_fields[part].description}"
        model = _SECTIONS.get(part, model)
    return description


def _with_paths(run: RunConfig, folder: Path) -> RunConfig:
    """Read a relative path from here, as axolotl does, or from beside the YAML file if it is only there."""

    def found(name: str) -> str:
        beside = folder / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    def found_template(text: str | None) -> str | None:
        return found(text) if text and len(text) < 4096 and "\n" not in text and "{" not in text else text

    datasets = tuple(
        dataset.model_copy(
            update={
                "path": found(dataset.path),
                "chat_template_jinja": found_template(dataset.chat_template_jinja),
            }
        )
        for dataset in run.datasets
    )
    return run.model_copy(
        update={
            "base_model": found(run.base_model),
            "tokenizer_config": found(run.tokenizer_config) if run.tokenizer_config else None,
            "chat_template_jinja": found_template(run.chat_template_jinja),
            "datasets": datasets,
        }
    )


def _problem(place: str, path: Path_, value: Any, rule: str, remedy: str) -> Problem:
    text = "" if value is None else repr(value)
    return Problem(place, _dotted(path), text if len(text) <= 120 else f"{text[:117]}...", rule, remedy)


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path)
