"""Control tokens that the text of the data spells: found, counted, and told apart from those of the template.

A user's turn that says `<|im_end|>` ends itself when it is encoded. Where that is not wanted, the row is given to its
format twice, once with a mark inside each spelling: where the marks come out is what the data spelled, everything else
is the template's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from stages.formats.pieces import Piece, Rejected, RowFormat, Span

PRIVATE_USE = range(0xE000, 0xF8FF)


class ControlTokens:
    """The control tokens of a tokenizer, as texts."""

    def __init__(self, tokens: Sequence[str]) -> None:
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        written = {form for token in longest_first for form in (token, json.dumps(token)[1:-1])}
        # one pattern for each first byte: such a search jumps from one such byte to the next
        forms = sorted((form.encode() for form in written), key=len, reverse=True)
        self._raw = [_beginning(first, forms) for first in {form[:1] for form in forms}]
        self._escapes = any("<" in token for token in longest_first)

    def may_be_in(self, raw: bytes) -> bool:
        """Return whether the JSON text of a row can spell a control token: a quick look that is never wrongly false."""
        if self._escapes and b"\\u003c" in raw:
            return True
        for pattern in self._raw:
            if pattern.search(raw) is not None:
                return True
        return False

    def count(self, value: Any) -> Counter[str]:
        """Return how often each control token is spelled in the texts of a row."""
        return Counter(token for text in _texts(value) for token in self._pattern.findall(text))

    def spans(self, text: str) -> list[Span]:
        """Return where a text spells control tokens."""
        return [Span(*match.span()) for match in self._pattern.finditer(text)]

    def pieces_with_plain_text(self, row: dict[str, Any], form: RowFormat) -> list[Piece]:
        """Return the pieces of a row, with the places that are text and no control tokens.

        Raises:
            Rejected: the row cannot be used, or it is not certain what of its text is the data's.
        """
        pieces = form.pieces(row)
        mark = _absent_character(json.dumps(row, ensure_ascii=False))
        marked = form.pieces(self._marked(row, mark))
        if [piece.text for piece in pieces] != [piece.text.replace(mark, "") for piece in marked]:
            detail = "the data spells a control token, and the format writes the row otherwise without it"
            raise Rejected("control_token", detail)
        return [
            piece._replace(plain=tuple(self._marks(other.text, mark)))
            for piece, other in zip(pieces, marked, strict=True)
        ]

    def _marked(self, value: Any, mark: str) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda match: f"{match[0][0]}{mark}{match[0][1:]}", value)
        if isinstance(value, dict):
            return {key: self._marked(item, mark) for key, item in value.items()}
        return [self._marked(item, mark) for item in value] if isinstance(value, list) else value

    def _marks(self, text: str, mark: str) -> Iterator[Span]:
        """Yield the place of each marked spelling, in the text without marks."""
        bare = text.replace(mark, "")
        for number, found in enumerate(re.finditer(mark, text)):
            spelled = self._pattern.match(bare, found.start() - number - 1)
            if spelled is not None:
                yield Span(*spelled.span())


def _beginning(first: bytes, forms: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a pattern of all forms that begin with a byte."""
    rests = b"|".join(re.escape(form[1:]) for form in forms if form[:1] == first)
    return re.compile(re.escape(first) + b"(?:" + rests + b")")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _absent_character(text: str) -> str:
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in text)
