"""A YAML file as nodes that know their place; what is not YAML is told as a person would say it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from configs.errors import ConfigError, Problem

MOST_BYTES = 100_000
_DIGITS = list("-+0123456789")
_SYNTAX: tuple[tuple[str, str, str, bool], ...] = (
    # what PyYAML says, what is wrong, what to do, whether it is wrong where the construct begins
    ("another document", "a second document begins here", "Give one configuration per file: remove `---`.", False),
    ("could not find expected ':'", "this line is no `key: value`", "A colon and a space follow the key.", True),
    ("mapping values are not allowed", "a colon stands where no key is", "Put text with a colon in quotes.", False),
    ("expected <block end>", "the indentation is not that of the lines before", "Begin keys at one column.", False),
    ("unexpected end of stream", "a quote is not closed", "Close the quote that begins here.", True),
    ("expected ',' or", "a bracket is not closed", "Close the bracket that begins here, or put a comma.", True),
    ("found character '\\t'", "a tab stands where spaces belong", "Indent with spaces, not tabs.", False),
    ("that cannot start any token", "{problem}", "Put the text in quotes.", False),
    ("found undefined alias", "{problem}", "Put text that begins with * in quotes, or name the anchor with &.", False),
    ("could not determine a constructor", "a configuration has no tags (!)", "Remove it, or put it in quotes.", False),
)


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with numbers as people write them; keys are always text, and dates and times are too.

    `1e-4` is a number (YAML 1.1 wants `1.0e-4`), and `1:30` is not 90.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are text as it is written: `on:` is the key `on`."""
        self.flatten_mapping(node)
        return {str(key.value): self.construct_object(value, deep=deep) for key, value in node.value}


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"), _DIGITS
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
               r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    [*_DIGITS, "."],
)  # fmt: skip


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: it cannot be read, is no text, or is far too long.
    """
    file = str(path)
    try:
        with path.open("rb") as source:
            content = source.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            rule = f"this is more than a configuration holds (at most {MOST_BYTES:,} bytes)"
            raise ConfigError([Problem(file, "", "", rule, "Give the configuration, not the data.")])
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            line = error.object.count(b"\n", 0, error.start) + 1
            problem = Problem(f"{file}:{line}", "", "", "this is not text in UTF-8", "Save the file as UTF-8.")
        else:
            reason = error.strerror if isinstance(error, OSError) else error
            rule = f"the file cannot be read ({reason})"
            problem = Problem(file, "", "", rule, "Give the path of a YAML file.")
        raise ConfigError([problem]) from error


def read_nodes(file: str, loader: Loader) -> yaml.MappingNode:
    """Return the mapping that a configuration is.

    Raises:
        ConfigError: it is not YAML, or not a mapping.
    """
    node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        rule = "a configuration is a mapping of keys to values"
        raise ConfigError([Problem(file, "", "", rule, "Begin with base_model: NAME, or with `sft init`.")])
    return node


def syntax_problem(file: str, content: str, error: Exception) -> Problem:
    """Return what PyYAML found, as a sentence."""
    if isinstance(error, RecursionError):
        return Problem(file, "", "", "lists or mappings stand in each other too deeply", "Mend the brackets.")
    if isinstance(error, ReaderError):
        line = content.count("\n", 0, error.position) + 1
        rule = f"the character U+{ord(content[error.position]):04X} cannot stand in a YAML file"
        return Problem(f"{file}:{line}", "", "", rule, "Remove it.")
    if not isinstance(error, yaml.MarkedYAMLError):
        said = (str(error).splitlines() or ["?"])[0].partition(";")[0]
        return Problem(file, "", "", f"this is not valid YAML: {said}", "Mend the syntax.")
    said = error.problem or error.context or ""
    rule, remedy, at_start = said, "Mend the syntax; look at the line before it too.", False
    for needle, sentence, what_to_do, begins in _SYNTAX:
        if needle in said:
            rule, remedy, at_start = sentence.format(problem=said), what_to_do, begins
            break
    mark = (error.context_mark if at_start else None) or error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
    return Problem(place, "", "", f"this is not valid YAML: {rule}", remedy)
