"""`type: alpaca` and user-defined formats: a prompt, then a response that is encoded by itself and trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.schema import PromptConfig
from stages.errors import ConfigError, Problem
from stages.formats.pieces import NO_ENDS, EndRule, Piece
from stages.formats.rows import text_field, text_of

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


@dataclass(frozen=True)
class PromptStyle:
    """How a prompt is written; `{system}`, `{instruction}` and `{input}` are filled in."""

    system: str
    with_input: str
    without_input: str


STYLES = {
    "instruct": PromptStyle(
        "{system}\n\n",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "chat": PromptStyle(
        "SYSTEM: {system}\n",
        "USER: {instruction}\n{input}\nASSISTANT:",
        "USER: {instruction}\nASSISTANT:",
    ),
    "chatml": PromptStyle(
        "<|im_start|>system\n{system}<|im_end|>\n",
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "phi": PromptStyle(
        "<|system|>\n{system}<|end|>\n",
        "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
        "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    ),
}


@dataclass(frozen=True)
class InstructionFormat:
    """Rows of instruction, optional input, and output.

    Attributes:
        style: how the prompt is written.
        columns: names of the columns of instruction, input, output and system; without the last none is read.
        system: text of the system part (with an input, without one) when the row has none; empty leaves it out.
        train_on_inputs: train the prompt as well.
    """

    style: PromptStyle
    columns: tuple[str, str, str, str | None]
    system: tuple[str, str]
    train_on_inputs: bool
    ends: EndRule = NO_ENDS
    chunk: int | None = None

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return prompt and response. Raises as `RowFormat.pieces`."""
        _, input_column, output_column, _ = self.columns
        instruction = text_field(row, self.columns[0])
        given = text_of(row[input_column], input_column) if input_column in row else ""
        response = text_field(row, output_column)
        prompt = self._system_part(row, bool(given)) + (
            self.style.with_input.format(instruction=instruction, input=given)
            if given
            else self.style.without_input.format(instruction=instruction)
        )
        return [
            Piece(prompt, trained=self.train_on_inputs, special_tokens=True),
            Piece(response, trained=True, special_tokens=True, continues=True, ends=True),
        ]

    def _system_part(self, row: dict[str, Any], with_input: bool) -> str:
        column = self.columns[3]
        default = self.system[0] if with_input else self.system[1]
        system = text_of(row[column], column) if column is not None and column in row else default
        return self.style.system.format(system=system) if system else ""


def alpaca(style: str, train_on_inputs: bool) -> InstructionFormat:
    """Return the format of `alpaca` (style "instruct") or `alpaca:<style>`."""
    columns = ("instruction", "input", "output", None)
    return InstructionFormat(STYLES[style], columns, (WITH_INPUT, WITHOUT_INPUT), train_on_inputs)


def user_defined(prompt: PromptConfig, train_on_inputs: bool, place: str) -> InstructionFormat:
    """Return a user-defined format.

    Raises:
        ConfigError: a format text asks for something other than instruction, input or system.
    """
    _check_format(prompt.format, {"instruction", "input"}, f"{place}.format")
    _check_format(prompt.no_input_format, {"instruction"}, f"{place}.no_input_format")
    _check_format(prompt.system_format, {"system"}, f"{place}.system_format")
    style = PromptStyle(prompt.system_format, prompt.format, prompt.no_input_format)
    columns = (prompt.field_instruction, prompt.field_input, prompt.field_output, prompt.field_system)
    return InstructionFormat(style, columns, (prompt.system_prompt, prompt.system_prompt), train_on_inputs)


def _check_format(text: str, names: set[str], key: str) -> None:
    try:
        text.format(**dict.fromkeys(names, ""))
    except (LookupError, ValueError, AttributeError) as error:
        known = " and ".join(f"{{{name}}}" for name in sorted(names))
        rule = f"can only refer to {known}, found {error}"
        raise ConfigError([Problem("configuration", key, repr(text), rule, "Write a brace as {{ or }}.")]) from error
