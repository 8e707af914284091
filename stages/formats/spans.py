r"""Where in the rendered text each message's own words are.

A conversation is rendered in plain, and once more with a pair of marks around the content of the turns that matter:
characters of the private-use area, which do not occur in the text. If taking the marks out gives exactly the plain
text, the template has copied the contents, and the marks say where they are:

    plain   <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
    marked  <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟨Hello⟩<|im_end|>\n

A template that trims or splits contents fails that test, and a turn with tool calls or reasoning says more than its
content. Such a turn is located by difference: what the plain text has where a rendering with this turn replaced by a
single mark has something else. Either way the place is proven, or the row is rejected; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from stages.formats.pieces import Rejected, Span
from stages.templates.choice import RenderError

PRIVATE_USE = range(0xE000, 0xF8FF)
HEADER_KEYS = frozenset({"role", "content", "name", "tool_call_id"})
"""Keys of a message that do not make a turn say more than its content."""

Seen = dict[str, Any]
Render = Callable[..., str]


class Conversation:
    """A rendered conversation, and the places of its turns in it."""

    def __init__(self, messages: Sequence[Seen], render: Render) -> None:
        self._messages = list(messages)
        self._render = render
        try:
            self.text = render(self._messages)
        except RenderError as error:
            raise Rejected("template_error", str(error)) from error
        self._open, self._close = _absent_characters(self.text)

    def turns(self, numbers: Sequence[int]) -> dict[int, Span]:
        """Return the span of each of these turns; a turn that has no words in the text is not among them.

        Raises:
            Rejected: a turn's place cannot be proven.
        """
        plain = self._plain(numbers)
        marked = self._by_marks(plain)
        left = numbers if marked is None else [number for number in numbers if number not in plain]
        spans = dict(marked or {})
        for number in left:
            span = self._replaced(number)
            if span is not None:
                spans[number] = span
        _check_order({**(self._by_marks(self._plain(self._others(left))) or {}), **spans} if left else spans)
        return dict(sorted(spans.items()))

    def _replaced(self, number: int) -> Span | None:
        """Return the span of a turn that is found by replacing it.

        Without a call its result may be written otherwise: what a call says is looked for in front of the result.
        """
        dummy = self._dummy(number, HEADER_KEYS - {"content"})
        if self._messages[number].get("tool_calls"):
            try:
                return self._by_prefix(number, dummy)
            except Rejected:
                pass
        return self._by_difference(number, dummy)

    def _plain(self, numbers: Iterable[int]) -> list[int]:
        """Return those of the messages that say nothing but their content."""
        return [
            n for n in sorted(numbers) if self._messages[n].keys() <= HEADER_KEYS and self._messages[n].get("content")
        ]

    def _others(self, numbers: Iterable[int]) -> set[int]:
        """Return all other messages, without the results of tools: some templates write these into a call's turn."""
        results = {number for number, message in enumerate(self._messages) if message.get("role") == "tool"}
        return set(range(len(self._messages))) - set(numbers) - results

    def property_span(self, number: int, name: str) -> Span | None:
        """Return the span of one text property of a turn, all its other properties being as they are."""
        return self._by_difference(number, {**self._messages[number], name: self._open})

    def _dummy(self, number: int, kept: frozenset[str]) -> Seen:
        message = self._messages[number]
        return {**{key: message[key] for key in message if key in kept}, "content": self._open}

    def _by_marks(self, numbers: list[int]) -> dict[int, Span] | None:
        """Return the spans of all these turns from one rendering, None if it does not prove them."""
        if not numbers:
            return {}
        marked = list(self._messages)
        for number in numbers:
            content = f"{self._open}{self._messages[number]['content']}{self._close}"
            marked[number] = {**self._messages[number], "content": content}
        try:
            text = self._render(marked)
        except RenderError:
            return None
        before, *pieces = text.split(self._open)
        if len(pieces) != len(numbers):
            return None
        spans, parts, position = {}, [before], len(before)
        for number, piece in zip(numbers, pieces, strict=True):
            inside, closed, after = piece.partition(self._close)
            if not closed or inside != self._messages[number]["content"]:
                return None
            spans[number] = Span(position, position + len(inside))
            parts += (inside, after)
            position += len(inside) + len(after)
        return spans if "".join(parts) == self.text else None

    def _by_difference(self, number: int, dummy: Seen) -> Span | None:
        """Return what of the text is said by one turn, None if nothing is.

        The turn is replaced in the whole conversation; where the template does not accept that (it pairs tool calls
        with their results), in the conversation up to this turn.
        """
        replaced = [*self._messages[:number], dummy, *self._messages[number + 1 :]]
        try:
            return self._difference(self.text, self._render(replaced), number)
        except (RenderError, Rejected):
            return self._by_prefix(number, dummy)

    def _by_prefix(self, number: int, dummy: Seen) -> Span | None:
        """Return the same from the conversation up to this turn, which must be the beginning of the whole text."""
        last = len(self._messages) - 1
        try:
            shorter = self._render(self._messages[: number + 1], real_last_index=last)
            other = self._render([*self._messages[:number], dummy], real_last_index=last)
        except RenderError as error:
            raise Rejected(
                "mask_not_proven", f"message {number}: its place in the text is not known: {error}"
            ) from error
        span = self._difference(shorter, other, number)
        if span is not None and shorter[: span.end] != self.text[: span.end]:
            raise Rejected("mask_not_proven", f"message {number}: the template renders it otherwise in the middle")
        return span

    def _difference(self, text: str, other: str, number: int) -> Span | None:
        marks = other.count(self._open)
        if marks == 0:
            return None
        if marks > 1:
            raise Rejected("mask_not_proven", f"message {number}: the template writes it {marks} times")
        start = _common_prefix(text, other)
        end = len(text) - _common_prefix(text[start:][::-1], other[start:][::-1])
        return Span(start, end) if end > start else None


def _check_order(spans: dict[int, Span]) -> None:
    """Reject turns that overlap each other: then a replaced turn has changed more than its own words."""
    ordered = sorted(spans.items(), key=lambda item: item[1].start)
    for (first, one), (second, two) in pairwise(ordered):
        if two.start < one.end:
            raise Rejected("mask_not_proven", f"messages {first} and {second}: their places in the text overlap")


def _absent_characters(text: str) -> tuple[str, str]:
    """Return two private-use characters that do not occur in the text."""
    absent = (chr(code) for code in PRIVATE_USE if chr(code) not in text)
    try:
        return next(absent), next(absent)
    except StopIteration:
        raise Rejected("mask_not_proven", "the text uses every private-use character") from None


def _common_prefix(one: str, two: str) -> int:
    """Return how many characters two texts have in common at their start.

    >>> _common_prefix("abcd", "abxd")
    2
    """
    length = min(len(one), len(two))
    if one[:length] == two[:length]:
        return length
    first = np.frombuffer(one[:length].encode("utf-32-le"), np.uint32)
    second = np.frombuffer(two[:length].encode("utf-32-le"), np.uint32)
    return int(np.argmax(first != second))
