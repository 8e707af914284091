"""Formats of one instruction and one response: a prompt, then the response, encoded by itself and trained.

Two things make such a format: what a row says (`Reading`), and how the prompt is written (`PromptStyle`). The texts are
those of axolotl, because models that were trained on them must see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from configs.schema import PromptConfig
from stages.errors import ConfigError, Problem
from stages.formats.pieces import NO_ENDS, EndRule, Piece
from stages.formats.rows import text_field, text_of


@dataclass(frozen=True)
class PromptStyle:
    """How a prompt is written; `{system}`, `{instruction}` and `{input}` are filled in."""

    system: str
    with_input: str
    without_input: str


class Reading(NamedTuple):
    """What a row says; `system` is None where the row leaves it to the format, empty for none."""

    instruction: str
    response: str
    given: str = ""
    system: str | None = None


Read = Callable[[dict[str, Any]], Reading]


@dataclass(frozen=True)
class InstructionFormat:
    """Rows of instruction, optional input, and response.

    Attributes:
        read: what a row says. Raises Rejected.
        style: how the prompt is written.
        system: text of the system part (with an input, without one) when the row has none; empty leaves it out.
        train_on_inputs: train the prompt as well.
        final_ends: ends of sequence after the response.
    """

    read: Read
    style: PromptStyle
    system: tuple[str, str]
    train_on_inputs: bool
    final_ends: int = 1
    ends: EndRule = NO_ENDS
    chunk: int | None = None

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return prompt and response. Raises as `RowFormat.pieces`."""
        said = self.read(row)
        system = self.system[0 if said.given else 1] if said.system is None else said.system
        form = self.style.with_input if said.given else self.style.without_input
        prompt = self.style.system.format(system=system) if system else ""
        prompt += form.format(instruction=said.instruction, input=said.given, system=system)
        return [
            Piece(prompt, trained=self.train_on_inputs, special_tokens=True),
            Piece(said.response, trained=True, special_tokens=True, continues=True, ends=self.final_ends),
        ]


def columns(instruction: str, response: str, given: str | None = None, system: str | None = None) -> Read:
    """Return how to read rows with these columns; those of input and system may be missing in a row."""

    def read(row: dict[str, Any]) -> Reading:
        return Reading(
            text_field(row, instruction),
            text_field(row, response),
            text_of(row[given], given) if given is not None and given in row else "",
            text_of(row[system], system) if system is not None and system in row else None,
        )

    return read


def user_defined(prompt: PromptConfig, train_on_inputs: bool, place: str) -> InstructionFormat:
    """Return a user-defined format.

    Raises:
        ConfigError: a format text asks for something other than instruction, input or system.
    """
    _check_format(prompt.format, {"instruction", "input"}, f"{place}.format")
    _check_format(prompt.no_input_format, {"instruction"}, f"{place}.no_input_format")
    _check_format(prompt.system_format, {"system"}, f"{place}.system_format")
    style = PromptStyle(prompt.system_format, prompt.format, prompt.no_input_format)
    read = columns(prompt.field_instruction, prompt.field_output, prompt.field_input, prompt.field_system)
    return InstructionFormat(read, style, (prompt.system_prompt, prompt.system_prompt), train_on_inputs)


def _check_format(text: str, names: set[str], key: str) -> None:
    try:
        text.format(**dict.fromkeys(names, ""))
    except (LookupError, ValueError, AttributeError) as error:
        known = " and ".join(f"{{{name}}}" for name in sorted(names))
        rule = f"can only refer to {known}, found {error}"
        raise ConfigError([Problem("configuration", key, repr(text), rule, "Write a brace as {{ or }}.")]) from error
