"""A YAML document while it is judged: its values, the place of each key, and what is wrong with it so far."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError, Problem
from configs.secrets import holds_secret
from configs.yaml_file import Loader, read_nodes, read_text, syntax_problem

MOST_NODES = 10_000
MOST_LEVELS = 50
COMMAND_LINE = "command line"

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """A YAML document with the place of each key, and the findings about it.

    Attributes:
        values: the content, with command-line overrides.
        places: path of a key -> `file:line:column`, or the command line.
        file: the file's name as it was given.
        keys: the keys at the top of the file.
        problems: what is wrong; any of them refuses the document.
        notices: what is accepted, but not as it might be meant.
        nulls: keys that stood there without a value.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str]
    file: str
    keys: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    nulls: list[KeyPath] = field(default_factory=list)

    def place(self, path: KeyPath) -> str:
        """Return where a key stands, or the nearest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.file)

    def problem(self, path: KeyPath, value: Any, rule: str, remedy: str) -> None:
        """Note that a key is wrong."""
        self.problems.append(_finding(self.place(path), path, value, rule, remedy))

    def notice(self, path: KeyPath, value: Any, rule: str, remedy: str) -> None:
        """Note that a key is accepted, but not as it might be meant."""
        self.notices.append(_finding(self.place(path), path, value, rule, remedy))


def read_document(path: Path) -> Document:
    """Return a YAML file; nulls are gone, as in axolotl `key:` is no key at all.

    Raises:
        ConfigError: it cannot be read, is not YAML, or has a key twice.
    """
    document = _parse(str(path), read_text(path))
    if document.problems:
        raise ConfigError(document.problems)
    drop_nulls(document)  # and with it what anchors share becomes separate: an override changes one place
    return document


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems as their keys stand in the file; those of the command line last."""

    def position(problem: Problem) -> list[int]:
        return [int(part) for part in problem.place.rsplit(":", 2)[1:] if part.isdecimal()]

    return sorted(problems, key=lambda problem: (problem.place == COMMAND_LINE, position(problem)))


def drop_nulls(document: Document) -> None:
    """Take out every key whose value is null, and note that it was there."""
    document.values = _without_nulls(document.values, (), document.nulls)


def dotted(path: KeyPath) -> str:
    """Return a path as it is written on the command line: `datasets.0.type`."""
    return ".".join(str(part) for part in path)


def _parse(file: str, content: str) -> Document:
    loader: Loader | None = None
    try:
        loader = Loader(content)
        node = read_nodes(file, loader)
        document = Document({}, {}, file)
        _index(document, node)
        if not document.problems:
            document.values = loader.construct_document(node)
            document.keys = frozenset(document.values)
        return document
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError([syntax_problem(file, content, error)]) from error
    finally:
        if loader is not None:
            loader.dispose()


def _index(document: Document, root: yaml.MappingNode) -> None:
    """Note the place of every key; report what no configuration holds, and documents that never end."""
    todo: list[tuple[KeyPath, yaml.Node]] = [((), root)]
    visited = 0
    while todo:
        path, node = todo.pop()
        visited += 1
        if visited > MOST_NODES:
            document.problem((), None, f"the file unfolds to more than {MOST_NODES:,} values", "Use fewer anchors.")
            return
        if len(path) > MOST_LEVELS:
            document.problem(path[:2], None, "values stand in each other too deeply", "Let no anchor hold itself.")
            return
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                _note_place(document, (*path, position), item)
                todo.append(((*path, position), item))
        elif isinstance(node, yaml.MappingNode):
            todo += _index_keys(document, path, node)
        elif _UNWRITABLE.search(str(node.value)):
            document.problem(path, None, "the text has a character that cannot be written", "Remove its \\ escape.")


def _index_keys(document: Document, path: KeyPath, node: yaml.MappingNode) -> Iterator[tuple[KeyPath, yaml.Node]]:
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
        yield (*path, key), value_node


def _note_place(document: Document, path: KeyPath, node: yaml.Node) -> None:
    mark = node.start_mark
    document.places[path] = f"{document.file}:{mark.line + 1}:{mark.column + 1}"


def _without_nulls(value: Any, path: KeyPath, nulls: list[KeyPath]) -> Any:
    if isinstance(value, dict):
        nulls += [(*path, str(key)) for key, item in value.items() if item is None]
        return {
            str(key): _without_nulls(item, (*path, str(key)), nulls) for key, item in value.items() if item is not None
        }
    if isinstance(value, list):
        return [_without_nulls(item, (*path, position), nulls) for position, item in enumerate(value)]
    return value


def _finding(place: str, path: KeyPath, value: Any, rule: str, remedy: str) -> Problem:
    text = "" if value is None else "***" if holds_secret(path, value) else repr(value)
    return Problem(place, dotted(path), text if len(text) <= 120 else f"{text[:117]}...", rule, remedy)
