"""Where each token of a text is by the tokenizer's own offsets, and so which tokens a span of characters touches."""

from __future__ import annotations

import numpy as np
from tokenizers import Encoding

from stages.formats.pieces import Span
from stages.tokenize.backends import Positions
from stages.tokenize.guarded import GuardedEncoding


class Places:
    """The place [start, stop) of each token, in characters of its text.

    Attributes:
        starts, stops: (tokens,) int64.
    """

    def __init__(self, starts: Positions, stops: Positions) -> None:
        self.starts, self.stops = starts, stops

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """Return the tokens [first, behind) that overlap a span of characters."""
        first = int(np.searchsorted(self.stops, span.start, side="right"))
        return first, max(first, int(np.searchsorted(self.starts, span.end, side="left")))


def places_from_offsets(encoding: Encoding | GuardedEncoding) -> Places:
    """Return the places that the tokenizer itself tells."""
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return Places(offsets[:, 0], offsets[:, 1])
