"""Formats of the user: a module with `to_messages`, `to_spans`, or axolotl's `load`. Finding it, without running it.

`type: my_pkg.my_module` is looked up as Python would, and in the working folder; `type: ./my_format.py` is a file.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from stages.errors import ConfigError, Problem

INTERFACES: dict[str, Literal["messages", "spans", "strategy"]] = {
    "to_messages": "messages",
    "to_spans": "spans",
    "load": "strategy",
}
"""Function that a module has -> what it gives."""
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class CustomFormat:
    """A module of the user.

    Attributes:
        name: its dotted name below `root`.
        root: the folder from which it is imported.
        file: its source.
        function: what is called.
        gives: messages for the chat template, spans of text, or an axolotl strategy, which gives tokens.
    """

    name: str
    root: Path
    file: Path
    function: str
    gives: Literal["messages", "spans", "strategy"]

    def sources(self) -> dict[str, Path]:
        """Return dotted name -> file of the module, and of all that it imports from its own package or folder."""
        found = {self.name: self.file}
        todo = [self.name]
        while todo:
            name = todo.pop()
            for imported in _imports(name, found[name]):
                file = self._file_of(imported)
                if file is not None and imported not in found:
                    found[imported] = file
                    todo.append(imported)
        return dict(sorted(found.items()))

    def _file_of(self, name: str) -> Path | None:
        package, _, _ = self.name.partition(".")
        own = name.split(".")[0] == package or ("." not in self.name and "site-packages" not in self.root.parts)
        base = self.root.joinpath(*name.split("."))
        files = (base.with_suffix(".py"), base / "__init__.py") if own else ()
        return next((file for file in files if file.is_file()), None)


def find_custom(name: str, key: str) -> CustomFormat | None:
    """Return the module that a `type` names, None if it is no such name or there is no such module.

    Raises:
        ConfigError: a file that is not there, or not Python, or that has no function of a format.
    """
    function: str | None = None
    found: tuple[str, Path, Path] | None = None
    if name.endswith(".py"):
        found = _by_file(name, key)
    elif DOTTED.fullmatch(name):
        module, _, last = name.rpartition(".")
        if last == "load" or last.startswith("load_"):
            name, function = module, last
        found = _by_name(name)
    if found is None:
        return None
    dotted, root, file = found
    names = set(_names(_parsed(file, key)))
    function = function or next((known for known in INTERFACES if known in names), None)
    if function not in names:
        rule = f"{file.name} has no function {function or 'to_messages, to_spans or load'}"
        raise ConfigError([Problem("configuration", key, name, rule, "Write one: see infra/docs/formats.md.")])
    return CustomFormat(dotted, root, file, str(function), INTERFACES.get(str(function), "strategy"))


def _by_file(name: str, key: str) -> tuple[str, Path, Path]:
    try:
        file = Path(name).resolve()
        there = file.is_file()
    except (OSError, ValueError):  # no name of a file
        there = False
    if not there:
        rule, remedy = "there is no such file", "Check the path; it is read from here, or from beside the YAML file."
        raise ConfigError([Problem("configuration", key, name, rule, remedy)])
    root, parts = file.parent, [file.stem]
    while (root / "__init__.py").is_file():
        root, parts = root.parent, [root.name, *parts]
    return ".".join(parts), root, file


def _by_name(name: str) -> tuple[str, Path, Path] | None:
    """Return a module as Python would find it, without importing the packages around it."""
    places: list[str] | None = [*sys.path, str(Path.cwd())]
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin).resolve()
    depth = len(parts) - (file.name != "__init__.py")
    return name, file.parents[depth], file


def _parsed(file: Path, key: str) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), file.name)
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        rule = f"is not valid Python{where}: {error.args[0]}"
        raise ConfigError([Problem("configuration", key, file.name, rule, "Correct the file.")]) from error


def _names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield the dotted names of all modules that a module may import, whether they are there or not."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # importing it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from _with_parents(".".join(base))
            yield from (".".join([*base, alias.name]) for alias in node.names)
    yield from _with_parents(".".join(package))


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".") if name else []
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
