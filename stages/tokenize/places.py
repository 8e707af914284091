"""Where each token of a text is by the tokenizer's own offsets, and so which tokens a span of characters touches."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from tokenizers import Encoding

from stages.formats.pieces import Span
from stages.tokenize.backends import Positions
from stages.tokenize.guarded import GuardedEncoding


class Places:
    """The places [start, stop) of tokens in their text, in characters.

    They are asked for one by one, where a search needs them: a list of all is a third of the time of encoding.
    """

    def __init__(self, encoding: Encoding | GuardedEncoding, tokens: int) -> None:
        self._place_of = encoding.token_to_chars
        self._found: dict[Span, tuple[int, int]] = {}
        first, behind = 0, tokens  # without the special tokens around a text, which have no place
        while first < behind and self._place_of(first) is None:
            first += 1
        while first < behind and self._place_of(behind - 1) is None:
            behind -= 1
        self._tokens = range(first, behind)

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """Return the tokens [first, behind) that overlap a span of characters."""
        if span not in self._found:
            first = self._tokens.start + bisect_right(self._tokens, span.start, key=self.stop)
            behind = self._tokens.start + bisect_left(self._tokens, span.end, key=self.start)
            self._found[span] = first, max(first, behind)
        return self._found[span]

    def start(self, token: int) -> int:
        """Return the first character of a token."""
        return (self._place_of(token) or (0, 0))[0]

    def stop(self, token: int) -> int:
        """Return the character behind a token."""
        return (self._place_of(token) or (0, 0))[1]

    def starts(self, first: int, behind: int) -> Positions:
        """Return the first characters of the tokens [first, behind)."""
        return np.array([self.start(token) for token in range(first, behind)], np.int64)
