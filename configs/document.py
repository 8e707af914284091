"""A YAML document while it is judged: its values, the place of each key, and what is wrong with it so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError, Problem

MOST_BYTES = 200_000
MOST_NODES = 20_000
COMMAND_LINE = "command line"

KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """A YAML document with the place of each key, and the findings about it.

    Attributes:
        values: the content, with command-line overrides.
        places: path of a key -> `file:line:column`, or the command line.
        file: the file's name as it was given.
        problems: what is wrong; any of them refuses the document.
        notices: what is accepted, but not as it might be meant.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str]
    file: str
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)

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
    document = _parse(str(path), _content(path))
    if document.problems:
        raise ConfigError(document.problems)
    drop_nulls(document)  # and with it what anchors share becomes separate: an override changes one place
    return document


def drop_nulls(document: Document) -> None:
    """Take out every key whose value is null."""
    document.values = _without_nulls(document.values)


def dotted(path: KeyPath) -> str:
    """Return a path as it is written on the command line: `datasets.0.type`."""
    return ".".join(str(part) for part in path)


def _content(path: Path) -> str:
    file = str(path)
    try:
        with path.open("rb") as source:
            content = source.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            rule = f"this is more than a configuration holds (at most {MOST_BYTES:,} bytes)"
            raise ConfigError([Problem(file, "", "", rule, "Give the configuration, not the data.")])
        return content.decode("utf-8-sig")
    except OSError as error:
        rule = f"the file cannot be read ({error.strerror})"
        raise ConfigError([Problem(file, "", "", rule, "Give the path of a YAML file.")]) from error
    except UnicodeDecodeError as error:
        rule = f"byte {error.start} is not UTF-8"
        raise ConfigError([Problem(file, "", "", rule, "Save the file as UTF-8.")]) from error


def _parse(file: str, content: str) -> Document:
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        document = Document({}, {}, file)
        if not isinstance(node, yaml.MappingNode):
            rule = "a configuration is a mapping of keys to values"
            raise ConfigError([Problem(file, "", "", rule, "Begin with base_model: NAME.")])
        _index(document, node)
        if not document.problems:
            document.values = loader.construct_document(node)
        return document
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(file, error)]) from error
    except RecursionError as error:
        rule = "lists or mappings stand in each other too deeply"
        raise ConfigError([Problem(file, "", "", rule, "Mend the brackets.")]) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        rule = f"this is not valid YAML: {(str(error).splitlines() or ['?'])[0]}"
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


def _index(document: Document, root: yaml.MappingNode) -> None:
    """Note the place of every key; report duplicate keys, keys that are not text, and documents that never end."""
    todo: list[tuple[KeyPath, yaml.Node]] = [((), root)]
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


def _note_place(document: Document, path: KeyPath, node: yaml.Node) -> None:
    mark = node.start_mark
    document.places[path] = f"{document.file}:{mark.line + 1}:{mark.column + 1}"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _finding(place: str, path: KeyPath, value: Any, rule: str, remedy: str) -> Problem:
    text = "" if value is None else repr(value)
    return Problem(place, dotted(path), text if len(text) <= 120 else f"{text[:117]}...", rule, remedy)
