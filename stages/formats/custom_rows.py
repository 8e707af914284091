"""Rows read by a module of the user: what is called, what it may give, and what becomes of its errors."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import DatasetConfig, RunConfig
from stages.errors import ConfigError, Problem
from stages.formats.chat import ChatFormat
from stages.formats.custom import CustomFormat
from stages.formats.messages import Message
from stages.formats.pieces import FILTERED, NO_ENDS, EndRule, Piece, Rejected, Span, Turn
from stages.formats.rows import parsed, shorten, text_of
from stages.formats.tokenized import GivenTokens, checked_tokens

GIVEN = (
    "base_model",
    "chat_template",
    "chat_template_kwargs",
    "eot_tokens",
    "sequence_len",
    "special_tokens",
    "tokenizer_config",
    "train_on_inputs",
)
"""What of the run's configuration an axolotl strategy may read: all of it is in the key."""
SOURCES = frozenset(
    "path split name revision data_files ds_type storage_options max_decompression_ratio shards shards_idx "
    "preprocess_shards weight".split()
)
"""What of a data set's configuration says where its rows are: a format is not given it."""


class Settings(dict[str, Any]):
    """A configuration as axolotl's strategies know it: keys are attributes too, and one that is not there is None."""

    def __getattr__(self, name: str) -> Any:
        if name in RunConfig.model_fields and name not in GIVEN and name not in self:
            raise AttributeError(f"cfg.{name} is not given to formats: it does not belong to the data")
        return self.get(name)

    def __missing__(self, name: str) -> Any:
        return getattr(self, name)


def run_settings(run: RunConfig) -> dict[str, Any]:
    """Return what an axolotl strategy is given as `cfg`."""
    return {name: value for name, value in run.model_dump(mode="json", include=set(GIVEN)).items() if value is not None}


def dataset_settings(dataset: DatasetConfig) -> dict[str, Any]:
    """Return what an axolotl strategy is given as `ds_cfg`."""
    return dataset.model_dump(mode="json", exclude={*SOURCES, "type"}, exclude_none=True)


def imported(custom: CustomFormat, key: str) -> Callable[..., Any]:
    """Return the function of a user's module, imported afresh.

    Raises:
        ConfigError: it cannot be imported.
    """
    for name in custom.sources():
        sys.modules.pop(name, None)
    if str(custom.root) not in sys.path:
        sys.path.append(str(custom.root))
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(custom.name)
    except Exception as error:
        raise _broken(custom, key, "cannot be imported", error) from error
    if Path(str(module.__file__)).resolve() != custom.file:
        rule, remedy = f"another module {custom.name} is found first: {module.__file__}", "Give the file another name."
        raise ConfigError([Problem("configuration", key, str(custom.file), rule, remedy)])
    function: Callable[..., Any] = getattr(module, custom.function)
    return function


def _broken(custom: CustomFormat, key: str, what: str, error: BaseException) -> ConfigError:
    rule = f"{what}: {type(error).__name__}: {error}"
    remedy = f"Correct {custom.file.name}, or install what it needs."
    return ConfigError([Problem("configuration", key, str(custom.file), rule, remedy)])


def _call(custom: CustomFormat, function: Callable[[Any], Any], row: Any) -> Any:
    """Call a user's function; whatever goes wrong in it is the row's end, not the run's.

    What it prints goes to standard error: standard output is for JSON.
    """
    try:
        with redirect_stdout(sys.stderr):
            return function(row)
    except Rejected:
        raise
    except Exception as error:  # code of the user
        detail = f"{custom.file.name} {custom.function}: {type(error).__name__}: {error}"
        raise Rejected("custom_format", detail) from error


@dataclass(frozen=True)
class MessagesFormat:
    """Rows that a user's `to_messages` makes into messages, which the chat template renders."""

    custom: CustomFormat
    function: Callable[[dict[str, Any]], Any]
    field: str
    chat: ChatFormat
    chunk: int | None = None

    @property
    def ends(self) -> EndRule:
        """Return which end tokens behind turns are trained."""
        return self.chat.ends

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return the conversation as one piece. Raises as `RowFormat.pieces`."""
        return self.chat.pieces(self._given(row))

    def conversation(self, row: dict[str, Any]) -> tuple[list[Message], list[Any] | None]:
        """Return the messages of a row and the schemas of its tools. Raises as `RowFormat.pieces`."""
        return self.chat.conversation(self._given(row))

    def _given(self, row: dict[str, Any]) -> dict[str, Any]:
        given = _call(self.custom, self.function, row)
        if not isinstance(given, list | dict):
            rule = "must return a list of messages, or a row with one"
            raise Rejected("custom_format", f"{self.custom.file.name} to_messages {rule}, found {shorten(given)}")
        return given if isinstance(given, dict) else {self.field: given}


@dataclass(frozen=True)
class SpansFormat:
    """Rows that a user's `to_spans` makes into (text, trained): one text, which ends if its last span is trained."""

    custom: CustomFormat
    function: Callable[[dict[str, Any]], Any]
    train_on_inputs: bool
    ends: EndRule = NO_ENDS
    chunk: int | None = None

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return the text as one piece. Raises as `RowFormat.pieces`."""
        spans = list(self._spans(_call(self.custom, self.function, row)))
        text, turns = "", []
        for said, trained in spans:
            if said and (trained or self.train_on_inputs):
                turns.append(Turn(Span(len(text), len(text) + len(said)), trained=True))
            text += said
        ends = 1 if spans and spans[-1][1] else 0
        return [Piece(text, turns=tuple(turns), special_tokens=True, ends=ends)]

    def _spans(self, given: Any) -> Iterator[tuple[str, bool]]:
        name = f"{self.custom.file.name} to_spans"
        if not isinstance(given, list | tuple):
            raise Rejected("custom_format", f"{name} must return a list of (text, trained), found {shorten(given)}")
        for number, pair in enumerate(given):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], bool):
                raise Rejected("custom_format", f"{name}: {number} must be (text, True or False): {shorten(pair)}")
            yield text_of(pair[0], f"{name}: {number}"), pair[1]


class StrategyFormat:
    """Rows that an axolotl strategy tokenizes."""

    def __init__(self, custom: CustomFormat, run: RunConfig, number: int, folder: Path, vocabulary: int) -> None:
        import transformers  # here, because only these formats need it

        key = f"{run.source_key(number)}.type"
        load = imported(custom, key)
        self._custom, self._vocabulary = custom, vocabulary
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        wanted = inspect.signature(load).parameters
        more = {"ds_cfg": Settings(dataset_settings(run.sources[number])), "processor": None}
        given = {name: value for name, value in more.items() if name in wanted}
        try:
            with redirect_stdout(sys.stderr):
                self._strategy = load(tokenizer, Settings(run_settings(run)), **given)
        except Exception as error:
            raise _broken(custom, key, f"{custom.function} failed", error) from error
        if not hasattr(self._strategy, "tokenize_prompt"):
            rule = (
                f"{custom.function} must return an object with tokenize_prompt, found {type(self._strategy).__name__}"
            )
            remedy = "A strategy that wraps a whole data set is not possible here; tokenize row by row."
            raise ConfigError([Problem("configuration", key, str(custom.file), rule, remedy)])

    def tokens(self, raw: bytes) -> list[GivenTokens]:
        """Return the tokens of a row; several where the strategy cuts it. Raises Rejected."""
        row = parsed(raw.decode("utf-8", errors="strict"), "the row") if _is_text(raw) else None
        if not isinstance(row, dict):
            raise Rejected("bad_json", f"an object {{...}} is expected: {raw[:80]!r}")
        keep = getattr(self._strategy, "filter_rows", None)
        if keep is not None and not _call(self._custom, keep, row):
            raise Rejected(FILTERED, f"{self._custom.file.name} filter_rows leaves it out")
        batched = bool(getattr(self._strategy, "supports_batched", False))
        given = {name: [value] for name, value in row.items()} if batched else row
        result = _call(self._custom, self._strategy.tokenize_prompt, given)
        ids, labels = self._column(result, "input_ids"), self._column(result, "labels")
        if batched and ids and isinstance(ids[0], list):
            return [self._row(one, two) for one, two in zip(ids, labels, strict=True)]
        return [self._row(ids, labels)]

    def _column(self, result: Any, name: str) -> list[Any]:
        if not isinstance(result, Mapping) or not isinstance(result.get(name), list):
            raise Rejected("custom_format", f"{self._custom.file.name}: tokenize_prompt must give a list of {name}")
        return list(result[name])

    def _row(self, ids: list[Any], labels: list[Any]) -> GivenTokens:
        if len(ids) != len(labels) or not all(type(item) is int for item in (*ids, *labels)):
            raise Rejected("custom_format", f"{self._custom.file.name}: as many labels as input_ids, all integers")
        return checked_tokens(np.array(ids, np.int64), np.array(labels, np.int64), self._vocabulary)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
