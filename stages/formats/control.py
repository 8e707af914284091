"""Control tokens that the text of the data spells: found, counted, and told apart from those of the template.

A user's turn that says `<|im_end|>` ends itself when it is encoded. Where that is not wanted, the row is given to its
format twice, once with a mark inside each spelling: where the marks come out is what the data spelled, everything else
is the template's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from stages.formats.pieces import Piece, Rejected, RowFormat, Span
from stages.formats.rows import read_row

PRIVATE_USE = range(0xE000, 0xF8FF)
PLAIN = re.compile(r'(?![\w"\\/])[!-~][ !#-\[\]-~]*', re.ASCII)
"""Tokens that JSON writes as they are, or escapes without need; no backslash can precede their first character."""
ESCAPED_PLAIN, ESCAPED = re.compile(rb"\\(?:u00[2-7]|/)"), re.compile(rb"\\[u/]")
"""How JSON escapes what need not be: of plain tokens, of any."""


class ControlTokens:
    """The control tokens of a tokenizer, as texts."""

    def __init__(self, tokens: Sequence[str]) -> None:
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        written = {form for token in longest_first for form in (token, json.dumps(token)[1:-1])}
        forms = sorted((form.encode() for form in written), key=len, reverse=True)
        self._written = re.compile(b"|".join(map(re.escape, forms)) or rb"(?!)")
        # one pattern for each first byte: such a search jumps from one such byte to the next
        self._quick = [_beginning(first, forms) for first in {form[:1] for form in forms}]
        self._as_they_are = all(PLAIN.fullmatch(token) for token in longest_first)
        self._escaped = ESCAPED_PLAIN if self._as_they_are else ESCAPED

    def spelled_in(self, raw: bytes) -> list[str]:
        """Return each control token that the JSON text of a row spells, in order; none where that is broken.

        A row is parsed only where it may spell one and its text may be another than it looks.
        """
        if self._escaped.search(raw) is None:
            if all(pattern.search(raw) is None for pattern in self._quick):
                return []
            if self._as_they_are:
                return [found.decode() for found in self._written.findall(raw)]
        try:
            return self.spelled(read_row(raw))
        except Rejected:
            return []

    def spelled(self, value: Any) -> list[str]:
        """Return each control token that the texts and names of a row spell, in order."""
        return [token for text in _texts(value) for token in self._pattern.findall(text)]

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
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _absent_character(text: str) -> str:
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in text)
