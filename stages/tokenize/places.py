"""Where each token of a text is, and so which tokens a span of characters touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from stages.formats.pieces import Span

Ids = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]


class Places:
    """The place [start, stop) of each token, in characters or in UTF-8 bytes of its text.

    Attributes:
        starts, stops: (tokens,) int64.
    """

    def __init__(self, starts: Positions, stops: Positions, unit: Callable[[int], int] = int) -> None:
        self.starts, self.stops = starts, stops
        self._unit = unit

    def tokens_of(self, span: Span) -> tuple[int, int]:
        """Return the tokens [first, behind) that overlap a span of characters."""
        first = int(np.searchsorted(self.stops, self._unit(span.start), side="right"))
        return first, max(first, int(np.searchsorted(self.starts, self._unit(span.end), side="left")))


def places_from_offsets(encoding: Encoding) -> Places:
    """Return the places that the tokenizer itself tells, in characters."""
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return Places(offsets[:, 0], offsets[:, 1])


class ByteLengths:
    """Places from the length of each token in bytes: ten times cheaper than the tokenizer's offsets.

    Right for tokenizers whose tokens, one after the other, are exactly the bytes of the text (byte-level ones without a
    normalizer).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._lengths = np.zeros(max(vocabulary.values()) + 1, np.int32)
        for token, number in vocabulary.items():  # a byte-level token has one character for each byte
            self._lengths[number] = len(token.encode()) if number in added else len(token)

    def places(self, text: str, ids: Ids) -> Places | None:
        """Return the places of the tokens in bytes, None if they do not fill the text exactly."""
        stops = np.cumsum(self._lengths[ids], dtype=np.int64)
        size = len(text) if text.isascii() else len(text.encode())
        if not len(stops) or stops[-1] != size:
            return None
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
        return Places(starts, stops) if size == len(text) else Places(starts, stops, lambda at: len(text[:at].encode()))


def is_byte_level(settings: dict[str, Any]) -> bool:
    """Return whether a tokenizer (its `tokenizer.json`) gives back the bytes of a text exactly."""
    return settings["normalizer"] is None and (settings["decoder"] or {}).get("type") == "ByteLevel"
