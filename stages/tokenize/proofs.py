"""What a tokenized conversation proves about its data set: a second look, by other means, at a sample of its rows.

The mask was made from one rendering and the bytes of its tokens. Here the text is encoded by the reference tokenizer,
each trained turn is decoded and compared with its message, and the prompt that inference renders for it is compared
with what training puts in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Encoding, Tokenizer

from configs.schema import DatasetConfig
from stages.formats.messages import Message, MessageReader
from stages.formats.pieces import Piece, Rejected, Span, Turn
from stages.formats.spans import HEADER_KEYS, Conversation
from stages.templates.choice import ChatTemplate, RenderError
from stages.tokenize.places import Places

END_WITHIN = 3  # tokens between a turn and its end token
LAST_TURNS = 3
"""Trained turns of a row that are looked at: each costs a rendering of the whole conversation."""
SHOWN = 60


@dataclass(frozen=True)
class Found:
    """One thing about one turn: what, from a short list, and an example for people."""

    what: str
    example: str = ""


class ConversationProver:
    """Looks at conversations of one data set again."""

    def __init__(
        self,
        dataset: DatasetConfig,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        ids_of: Callable[[str], list[int]],
        ends: Sequence[int],
        train_on_inputs: bool,
    ) -> None:
        self._reader = MessageReader(dataset, train_on_inputs)
        self._template, self._tokenizer, self._ids_of, self._ends = template, tokenizer, ids_of, frozenset(ends)
        self._added = frozenset(tokenizer.get_added_tokens_decoder())

    def look(self, row: dict[str, Any], piece: Piece, ids: list[int], trained: list[bool]) -> Iterator[Found]:
        """Yield what is found about a row, given its piece of text, its token ids and their trained flags."""
        encoding = self._tokenizer.encode(piece.text, add_special_tokens=False)
        yield Found("ids:same" if encoding.ids == ids else "ids:other", _cut(piece.text))
        places = Places(encoding, len(encoding.ids))
        for turn in piece.turns:
            if turn.trained and turn.parts is None:
                yield self._end(turn, places, piece.text, ids, trained)
                yield self._content(turn, places, piece.text, ids)
        yield from self._prompts(row, piece, encoding, places)

    def _end(self, turn: Turn, places: Places, text: str, ids: list[int], trained: list[bool]) -> Found:
        _, behind = places.tokens_of(turn.span)
        after = ids[behind : behind + END_WITHIN + 1]
        at = next((behind + n for n, token in enumerate(after) if token in self._ends), None)
        if at is not None:
            return Found("end:trained" if trained[at] else "end:untrained")
        if not after:
            return Found("end:nothing")
        if after[0] in self._added:
            return Found("end:token", self._decoded(after[:1]))
        return Found("end:text", _cut(text[turn.span.end :], 24))

    def _content(self, turn: Turn, places: Places, text: str, ids: list[int]) -> Found:
        first, behind = places.tokens_of(turn.span)
        said, wanted = self._decoded(ids[first:behind]), text[turn.span.start : turn.span.end]
        same = _bare(wanted) in _bare(said) and len(_bare(said)) - len(_bare(wanted)) <= 2 * SHOWN
        return Found("content:same" if same else "content:other", f"{_cut(said)} where the text is {_cut(wanted)}")

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _prompts(self, row: dict[str, Any], piece: Piece, encoding: Encoding, places: Places) -> Iterator[Found]:
        messages, tools = self._reader.messages(row), self._reader.tools(row)
        answers = [n for n, message in enumerate(messages) if message.trained and message.seen["role"] == "assistant"]
        conversation = Conversation([message.seen for message in messages], partial(self._template.render, tools=tools))
        for number, span in _places_of(conversation, answers[-LAST_TURNS:]).items():
            yield self._says_it(messages[number], piece.text[span.start : span.end])
            yield self._prompt([m.seen for m in messages[:number]], tools, span, piece.text, encoding, places)

    def _says_it(self, message: Message, turn: str) -> Found:
        """Compare a turn in the text with its message, if all that the message says is its content."""
        if not message.seen.keys() <= HEADER_KEYS or "content" not in message.seen:
            return Found("message:more")
        same = turn.strip() == message.content.strip()
        return Found("message:same" if same else "message:other", f"{_cut(turn)} for {_cut(message.content)}")

    def _prompt(
        self,
        before: list[dict[str, Any]],
        tools: list[Any] | None,
        span: Span,
        text: str,
        encoding: Encoding,
        places: Places,
    ) -> Found:
        try:
            prompt = self._template.render(before, tools, add_generation_prompt=True)
            seen = text[: span.start]
            if prompt == seen:
                return self._same_prompt(self._ids_of(prompt), encoding.ids[: places.tokens_of(span)[0]])
            plain = self._template.render(before, tools)
        except RenderError as error:
            return Found("prompt:refused", str(error))
        if prompt == plain:
            return Found("prompt:none", f"training puts {_cut(seen[len(plain) :])} in front of an answer")
        if seen.startswith(prompt):
            return Found("prompt:shorter", f"training has {_cut(seen[len(prompt) :])} between it and the answer")
        if prompt.startswith(seen):
            begins = _cut(text[span.start : span.end], SHOWN // 2)
            return Found("prompt:longer", f"it goes on with {_cut(prompt[span.start :])}, trained is {begins}")
        at = next(n for n, (one, other) in enumerate(zip(prompt, text, strict=False)) if one != other)
        return Found("prompt:other", f"it says {_cut(prompt[at:])} where training says {_cut(text[at:])}")

    def _same_prompt(self, asked: list[int], seen: list[int]) -> Found:
        """Compare the tokens of one text: when the model is asked, and as the beginning of a row."""
        if asked == seen:
            return Found("prompt:same")
        at = next((n for n, pair in enumerate(zip(asked, seen, strict=False)) if pair[0] != pair[1]), len(seen))
        as_asked, as_seen = ([self._decoded([token]) for token in ids[at:]] for ids in (asked, seen))
        return Found("prompt:merged", f"{as_asked} when it asks, {as_seen} in training")


def _places_of(conversation: Conversation, numbers: Sequence[int]) -> dict[int, Span]:
    """Return the spans of those of these turns whose places are proven."""
    try:
        return conversation.turns(numbers)
    except Rejected:  # one of them is refused: each by itself
        parts = [_places_of(conversation, [number]) for number in numbers] if len(numbers) > 1 else []
        return {number: span for part in parts for number, span in part.items()}


def _bare(text: str) -> str:
    """Return a text without white space: normalizers and decoders move it."""
    return re.sub(r"[\s▁�]+", "", text)


def _cut(text: str, limit: int = SHOWN) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]}...")
