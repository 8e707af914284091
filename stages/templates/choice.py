"""Chat templates: which one a data set uses, and rendering it as Hugging Face's tokenizers do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from configs.schema import DatasetConfig, RunConfig
from stages.errors import ConfigError, Problem
from stages.templates.limits import LimitedEnvironment, limited
from stages.templates.proof import Needs, what_copying_needs

TOKENIZER_DEFAULT = "tokenizer_default"
FALLBACK = "tokenizer_default_fallback_"
VARIANTS = {
    "command_a_rag": ("command_a", "{%- set agentic = true -%}\n{%- set tools = [] -%}\n"),
    "command_a_tool_use": ("command_a", "{%- set agentic = true -%}\n"),
    "gemma3n": ("gemma3", ""),
    "gemma4_unified": ("gemma4", ""),
    "qwen3_5": ("qwen3", ""),
}
"""Names of templates that are, for text, another one: that one, and what stands in front of it."""
OF_IMAGES = ("llama3_2_vision", "llava", "pixtral", "qwen2_vl")
DATA_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template can run into that does not fit the data."""

NO_DAY = date(1970, 1, 1)
"""What `strftime_now` sees where no template is known to ask for it."""

Message = dict[str, Any]


class RenderError(Exception):
    """The template refused a conversation, or failed on it."""


@dataclass(frozen=True)
class TemplateChoice:
    """What the configuration says about a chat template.

    Attributes:
        text: the Jinja text; None for the tokenizer's own.
        fallback: the Jinja text that is used when the tokenizer has none of its own.
    """

    text: str | None
    fallback: str | None = None

    def resolve(self, of_tokenizer: str | None) -> str | None:
        """Return the Jinja text, given that of the tokenizer."""
        return self.text if self.text is not None else of_tokenizer or self.fallback


def choose_template(run: RunConfig, dataset: DatasetConfig | None = None, place: str = "") -> TemplateChoice:
    """Return the template of a data set, or without one that of the run.

    Raises:
        ConfigError: an unknown name, no text for `jinja`, or a text that is not Jinja.
    """
    section: DatasetConfig | RunConfig = run
    if dataset is not None and (dataset.chat_template or dataset.chat_template_jinja):
        section = dataset
    key = f"{place}.chat_template" if section is dataset and place else "chat_template"
    choice = section.chat_template or ("jinja" if section.chat_template_jinja else TOKENIZER_DEFAULT)
    if choice == TOKENIZER_DEFAULT:
        return TemplateChoice(None)
    if choice.startswith(FALLBACK):
        return TemplateChoice(None, _checked(_named(choice.removeprefix(FALLBACK), key), key))
    if choice != "jinja":
        return TemplateChoice(_checked(_named(choice, key), key))
    if not section.chat_template_jinja:
        rule, remedy = "needs the template itself", "Set chat_template_jinja to the Jinja text, or to a file with it."
        raise ConfigError([Problem("configuration", key, choice, rule, remedy)])
    return TemplateChoice(_checked(_text_or_file(section.chat_template_jinja), f"{key}_jinja"))


def known_templates() -> list[str]:
    """Return the names of the templates that come with the project."""
    files = resources.files("stages.formats").joinpath("templates").iterdir()
    names = [file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja")]
    return sorted([*names, *VARIANTS])


def _named(name: str, key: str) -> str:
    known = known_templates()
    if name in OF_IMAGES:
        rule = "is the template of a model that reads images, and only text is trained here"
        remedy = "Use a text-only base_model, or chat_template: jinja with the text part of that template."
        raise ConfigError([Problem("configuration", key, name, rule, remedy)])
    if name not in known:
        remedy = f"Known: tokenizer_default, tokenizer_default_fallback_NAME, jinja, {', '.join(known)}."
        raise ConfigError([Problem("configuration", key, name, "is not a known chat template", remedy)])
    file, front = VARIANTS.get(name, (name, ""))
    return front + resources.files("stages.formats").joinpath("templates", f"{file}.jinja").read_text(encoding="utf-8")


def writes_the_date(text: str) -> bool:
    """Return whether a template may write the date: then the date is a part of what determines its text."""
    return "strftime_now" in text


def _text_or_file(value: str) -> str:
    """Return the Jinja text: `value` itself, or the content of the file that it names."""
    if "{" not in value and "\n" not in value and Path(value).is_file():
        return Path(value).read_text(encoding="utf-8")
    return value


def _checked(text: str, key: str) -> str:
    try:
        _environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        remedy = f"Correct line {error.lineno} of the template."
        raise ConfigError(
            [Problem("configuration", key, "", f"is not valid Jinja: {error.message}", remedy)]
        ) from error
    return text


class ChatTemplate:
    """A compiled chat template.

    The environment is that of `apply_chat_template`: sandboxed, blocks trimmed, loop controls, `generation` blocks,
    `tojson` without HTML escapes, `raise_exception`, and `strftime_now`, for which it is midnight of a given day.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], today: date = NO_DAY) -> None:
        self.text = text
        self._variables = dict(variables)  # bos_token and the like, and chat_template_kwargs
        self._render: Callable[..., str] = _environment(today).from_string(text).render

    def copying_needs(self) -> Needs | None:
        """Return under which conditions the template only copies contents, None if it may look into them."""
        return what_copying_needs(_environment().parse(self.text))

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, **more: Any) -> str:
        """Return the text of a conversation, without a generation prompt.

        Raises:
            RenderError: the template raised an exception of its own, or does not fit the conversation.
            ConfigError: it takes too long.
        """
        variables = {"add_generation_prompt": False, "documents": None, **self._variables, **more}
        try:
            with limited():
                return self._render({**variables, "messages": messages, "tools": tools})
        except (jinja2.TemplateError, *DATA_ERRORS) as error:
            raise RenderError(f"{type(error).__name__}: {error}") from error


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts `{% generation %} ... {% endgeneration %}` and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012  the declaration of jinja2.ext.Extension

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment(today: date = NO_DAY) -> LimitedEnvironment:
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = partial(_strftime_now, today)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(today: date, form: str) -> str:
    return datetime.combine(today, time.min).strftime(form)
