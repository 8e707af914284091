"""Overrides on the command line: `key=value`, `--key value`, `--key=value`; with dots into sections and lists."""

from __future__ import annotations

import difflib
import itertools
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from configs.document import COMMAND_LINE, Document, KeyPath
from configs.errors import Problem
from configs.keys import key_class
from configs.schema import RunConfig
from configs.secrets import holds_secret, signed
from configs.yaml_file import Loader

SWITCH_VALUES = {"true", "false", "yes", "no", "on", "off", "null"}


@dataclass(frozen=True)
class CommandWords:
    """What the words of a command line say.

    Attributes:
        config: path of the YAML file; None where no word is left for it.
        overrides: `key=value`.
        problems: options that are neither ours nor a key, keys without a value.
    """

    config: str | None
    overrides: tuple[str, ...]
    problems: tuple[Problem, ...]


def read_words(words: Sequence[str], options: Iterable[str] = ()) -> CommandWords:
    """Return the file and the overrides among the words that are not options of the command.

    Keys are written as in the file or, as options often are, with dashes. A key that is true or false needs no value.

    Args:
        words: what is left of the command line.
        options: the command's own options, `--until`, of which an unknown one may be a misspelling.

    >>> read_words(["--learning-rate", "1e-4", "run.yaml", "seed=1", "--no-tf32"]).overrides
    ('learning_rate=1e-4', 'seed=1', 'tf32=false')
    """
    config: str | None = None
    overrides: list[str] = []
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and not re.fullmatch(r"-[\d.].*", word):
            taken = _read_option(word, rest)
            if taken is None:
                problems.append(_unknown_option(word, options))
            elif "=" in taken:
                overrides.append(taken)
            else:
                problems.append(_no_value(taken))
        elif config is None and ("=" not in word or word.endswith((".yaml", ".yml"))):
            config = word
        else:
            overrides.append(word)
    return CommandWords(config, tuple(overrides), tuple(problems))


def _read_option(word: str, rest: list[str]) -> str | None:
    """Return `key=value`, or `key` where the value is missing, or None where there is no such key."""
    name, equals, value = word.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    negated = key.removeprefix("no_")
    if not word.startswith("--") or not name:
        return None
    if not _is_key(key):
        return f"{negated}=false" if negated != key and not equals and _is_switch(negated) else None
    if equals:
        return f"{key}={value}"
    if _is_switch(key):
        return f"{key}={rest.pop(0)}" if rest and rest[0].lower() in SWITCH_VALUES else f"{key}=true"
    return f"{key}={rest.pop(0)}" if rest and not rest[0].startswith("--") else key


def _is_key(key: str) -> bool:
    return key_class("", key.split(".")[0]) is not None


def _is_switch(key: str) -> bool:
    info = RunConfig.model_fields.get(key)
    return info is not None and set(typing.get_args(info.annotation) or [info.annotation]) <= {bool, type(None)}


def _unknown_option(word: str, options: Iterable[str]) -> Problem:
    name = word.partition("=")[0]
    keys = [f"--{key}" for key in RunConfig.model_fields]
    near = difflib.get_close_matches(name.replace("_", "-"), options, n=1, cutoff=0.6)
    near += difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), keys, n=2, cutoff=0.6)
    rule = "this is neither an option of the command nor a key of a configuration"
    remedy = f"Did you mean {' or '.join(near)}?" if near else "Look at --help, and at `sft schema` for the keys."
    return Problem(COMMAND_LINE, name, "", rule, remedy)


def _no_value(key: str) -> Problem:
    return Problem(COMMAND_LINE, key, "", "an override needs its value", f"Write {key}=VALUE, or --{key} VALUE.")


def apply_override(document: Document, text: str) -> None:
    """Set a value in a document: `datasets.0.type=alpaca`. A list grows at its end, a null takes a key away."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    if not equals or not all(key.split(".")):
        document.places[(text,)] = COMMAND_LINE
        remedy = "Write, for example, learning_rate=1e-4, or --learning_rate 1e-4."
        document.problem((text,), None, "an override is key=value", remedy)
        return
    if holds_secret(path, raw) or signed(raw):
        document.places[path] = COMMAND_LINE
        rule = "a secret on the command line is seen by others of this machine, and kept by Prefect's server"
        document.problem(path, None, rule, "Write it into the file, or use the environment or a Prefect block.")
        return
    for place in [place for place in document.places if place[: len(path)] == path]:
        del document.places[place]  # what stood there in the file is gone
    document.places[path] = COMMAND_LINE
    target: Any = document.values
    for depth, (part, following) in enumerate(itertools.pairwise(path), start=1):
        inner = _inner(target, part, create=[] if isinstance(following, int) else {})
        if inner is None:
            _no_such_place(document, path, path[:depth], target, part)
            return
        document.places.setdefault(path[:depth], COMMAND_LINE)
        target = inner
    if isinstance(target, dict):
        target[path[-1]] = _value(raw)
    elif isinstance(path[-1], int) and path[-1] <= len(target):
        target[path[-1] : path[-1] + 1] = [_value(raw)]
    else:
        _no_such_place(document, path, path, target, path[-1])


def _value(raw: str) -> Any:
    try:
        return yaml.load(raw, Loader)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return raw


def _inner(target: Any, part: str | int, create: Any) -> Any:
    """Return what is inside a part, made where nothing is; None where it cannot have an inside."""
    if isinstance(target, list):
        if not isinstance(part, int) or part > len(target):
            return None
        if part == len(target):
            target.append(create)
        inner = target[part]
    else:
        if target.get(part) is None:
            target[part] = create
        inner = target[part]
    return inner if isinstance(inner, dict | list) else None


def _no_such_place(document: Document, path: KeyPath, at: KeyPath, target: Any, part: str | int) -> None:
    above = ".".join(str(part) for part in at[:-1])
    if isinstance(target, list) and isinstance(part, int):
        remedy = f"{above} has {len(target)} entries; {above}.{len(target)} adds one."
    elif isinstance(target, list):
        remedy = f"{above} is a list; write a position: {above}.0."
    else:
        remedy = f"{'.'.join(str(part) for part in at)} holds {target[part]!r}, which has no parts."
    document.problem(path, None, "there is no such place in the configuration", remedy)
