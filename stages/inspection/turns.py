"""A tokenized row as a person reads it: turn by turn, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.formats import is_chat
from stages.formats.messages import MessageReader
from stages.formats.pieces import Rejected
from stages.formats.rows import read_row
from stages.formats.spans import Conversation
from stages.templates.choice import ChatTemplate, choose_template
from stages.tokenize.places import Places
from stages.tokens import IGNORED

WHOLE = "row"
TEMPLATE = "template"
UNTRAINED, TRAINED = "read", "trained"


@dataclass(frozen=True)
class Cell:
    """Tokens that make text together: one, or several that are parts of one character.

    Attributes:
        text: what they say.
        ids: the tokens.
        trained: whether the loss counts them.
        special: whether they are control tokens.
    """

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool


@dataclass(frozen=True)
class TurnView:
    """A turn of a row: who speaks (a role; "template", "read" or "trained" where there is none), and its tokens."""

    role: str
    cells: list[Cell]

    @property
    def trained(self) -> int:
        """Return how many of its tokens are trained."""
        return sum(len(cell.ids) for cell in self.cells if cell.trained)


class RowReader:
    """Tells tokenized rows of one artifact as turns."""

    def __init__(self, run: RunConfig, tokens: Artifact) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokens.path("tokenizer/tokenizer.json")))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        self._run, self._tokens = run, tokens
        self._renders = {n: self._render(n) for n, dataset in enumerate(run.sources) if is_chat(dataset)}

    def turns(self, dataset: int, raw: bytes | None, input_ids: Sequence[int], labels: Sequence[int]) -> list[TurnView]:
        """Return the turns of a row; where its raw text does not tell them, the stretches of its mask."""
        found = self._by_conversation(dataset, raw, input_ids) if raw is not None and dataset in self._renders else None
        stretches = found or _by_mask(labels)
        return [TurnView(role, list(self._cells(input_ids[a:b], labels[a:b]))) for role, a, b in stretches if a < b]

    def _cells(self, input_ids: Sequence[int], labels: Sequence[int]) -> Iterator[Cell]:
        stream, waiting = DecodeStream(skip_special_tokens=False), list[int]()
        for token, label in zip(input_ids, labels, strict=True):
            text = stream.step(self._tokenizer, token)
            waiting.append(token)
            if text is not None:
                yield Cell(text, tuple(waiting), label != IGNORED, token in self._special)
                waiting = []
        if waiting:  # the row ends within a character
            text = self._tokenizer.decode(waiting, skip_special_tokens=False)
            yield Cell(text, tuple(waiting), labels[-1] != IGNORED, False)

    def _by_conversation(self, dataset: int, raw: bytes, input_ids: Sequence[int]) -> list[tuple[str, int, int]] | None:
        """Return (role, first, behind) of each turn in tokens, None if the row cannot be told so."""
        try:
            row = read_row(raw)
            reader = MessageReader(self._run.sources[dataset], self._run.train_on_inputs)
            messages = [message.seen for message in reader.messages(row)]
            conversation = Conversation(messages, partial(self._renders[dataset], tools=reader.tools(row)))
            spans = conversation.turns(range(len(messages)))
        except Rejected:
            return None
        encoding = self._tokenizer.encode(conversation.text, add_special_tokens=False)
        if encoding.ids != list(input_ids) or not spans:
            return None
        return self._cut(messages, spans, Places(encoding, len(encoding.ids)), input_ids)

    def _cut(
        self, messages: Sequence[Mapping[str, Any]], spans: Mapping[int, Any], places: Places, ids: Sequence[int]
    ) -> list[tuple[str, int, int]]:
        numbers = list(spans)
        inner = [places.tokens_of(spans[number]) for number in numbers]
        cuts = [self._behind_ends(ids, behind, first) for (_, behind), (first, _) in pairwise(inner)]
        start = self._behind_ends(ids, 0, inner[0][0])
        edges = [start, *cuts, len(ids)]
        found = [(str(messages[n]["role"]), a, b) for n, (a, b) in zip(numbers, pairwise(edges), strict=True)]
        return [(TEMPLATE, 0, start), *found]

    def _behind_ends(self, ids: Sequence[int], start: int, stop: int) -> int:
        """Return where in [start, stop) the words of one turn end and the header of the next begins."""
        ends = [at for at in range(start, stop) if ids[at] in self._end_ids]
        if not ends:
            return start
        at = ends[-1] + 1
        while at < stop and not self._tokenizer.decode([ids[at]], skip_special_tokens=False).strip():
            at += 1
        return at

    @property
    def _end_ids(self) -> frozenset[int]:
        named = {self._tokenizer.token_to_id(token) for token in self._run.eot_tokens or ()}
        return frozenset({self._tokens.facts["tokenizer"]["eos_token_id"], *named})

    def _render(self, number: int) -> Callable[..., str]:
        saved = self._tokens.path("tokenizer/chat_template.jinja")
        of_tokenizer = saved.read_text(encoding="utf-8") if saved.is_file() else None
        choice = choose_template(self._run, self._run.sources[number], self._run.source_key(number))
        settings = orjson.loads(self._tokens.path("tokenizer/tokenizer_config.json").read_bytes())
        variables = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in settings.items()
            if name.endswith("_token") and value
        }
        return ChatTemplate(choice.resolve(of_tokenizer) or "", {**variables, **self._run.chat_template_kwargs}).render


def _by_mask(labels: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return the stretches of like tokens: what is read, and what is trained."""
    trained = np.asarray(labels) != IGNORED
    edges = [0, *(np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist(), len(trained)]
    return [(TRAINED if trained[a] else UNTRAINED, a, b) for a, b in pairwise(edges) if a < b]
