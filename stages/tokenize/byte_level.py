r"""Masks of byte-level tokenizers: many texts at once, from the bytes of their tokens.

The bytes of a token are known from the vocabulary, so the tokens of a text say where they are. One comparison proves it
for a whole batch: the bytes of all tokens, one after the other, are the bytes of all texts.

    texts   "a é"        bytes  61 20 c3 a9          span "é" = characters [2, 3) = bytes [2, 4)
    tokens  "a" " \xc3" "\xa9"  stops 1  3  4        touched: every token that ends behind 2 and starts before 4
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from configs.schema import Train
from stages.formats.pieces import EndRule, Piece
from stages.tokenize.backends import Ids, Positions
from stages.tokenize.vocabulary import Vocabulary

Mask = npt.NDArray[np.bool_]
END_WITHIN = 3
"""An end token belongs to a turn if at most this many tokens stand between them."""


@dataclass(frozen=True)
class Located:
    """Texts whose tokens are proven, all in one row of characters, of bytes, and of tokens.

    Attributes:
        ids: (tokens,) of all texts.
        offsets: (texts + 1,) tokens in front of each text.
        characters: (texts + 1,) characters in front of each text.
        behind: for each byte that continues a character, how many characters have begun in front of it, in order.
        stops: (tokens,) bytes up to the end of each token.
    """

    ids: Ids
    offsets: Positions
    characters: Positions
    behind: Positions
    stops: Positions

    def tokens_of(self, starts: Positions, ends: Positions) -> tuple[Positions, Positions]:
        """Return the tokens [first, behind) that overlap each span [start, end) of characters."""
        starts, ends = _bytes_at(self.behind, starts), _bytes_at(self.behind, ends)
        first = np.searchsorted(self.stops, starts, side="right")
        begins = np.concatenate([np.zeros(1, np.int64), self.stops[:-1]])
        return first, np.maximum(first, np.searchsorted(begins, ends, side="left"))


class ByteLevel:
    """The vocabulary of a byte-level tokenizer, and its end tokens."""

    def __init__(self, vocabulary: Vocabulary, eos: int, eot: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ends = {"eot": _is_one_of(eot, len(vocabulary)), "eos": _is_one_of([eos], len(vocabulary))}

    def locate(self, texts: Sequence[str], ids: Ids, offsets: Positions) -> tuple[Mask, Located | None]:
        """Return of which texts it is proven that their tokens say them, and if of all, where the tokens are."""
        data = "".join(texts).encode()
        characters = _running_sum([len(text) for text in texts])
        behind = _continuations(data) if len(data) > characters[-1] else np.zeros(0, np.int64)
        edges = _bytes_at(behind, characters)
        spoken, stops = self._vocabulary.said(ids)
        said_edges = stops[offsets]
        if np.array_equal(spoken, np.frombuffer(data, np.uint8)) and np.array_equal(said_edges, edges):
            return np.ones(len(texts), np.bool_), Located(ids, offsets, characters, behind, stops[1:])
        places = zip(said_edges[:-1], said_edges[1:], edges[:-1], edges[1:], strict=True)
        return np.array([spoken[one:two].tobytes() == data[start:end] for one, two, start, end in places]), None

    def trained(self, pieces: Sequence[Piece], located: Located, ends: EndRule) -> Mask:
        """Return (tokens,) what is trained of all pieces: the tokens of trained turns, and end tokens behind turns."""
        mask = np.repeat(np.array([piece.trained for piece in pieces], np.bool_), np.diff(located.offsets))
        turns = [turn for piece in pieces for turn in piece.turns]
        if not turns:
            return mask
        owners = np.repeat(np.arange(len(pieces)), [len(piece.turns) for piece in pieces])
        is_trained = np.array([turn.trained for turn in turns], np.bool_)
        starts, stops = (np.array(edges, np.int64) for edges in zip(*(turn.span for turn in turns), strict=True))
        bases = located.characters[owners]
        first, behind = located.tokens_of(bases + starts, bases + stops)
        change = np.zeros(len(mask) + 1, np.int32)
        np.add.at(change, first[is_trained], 1)
        np.add.at(change, behind[is_trained], -1)
        mask |= np.cumsum(change[:-1], dtype=np.int32) > 0
        limits = located.offsets[owners + 1]
        for kind, mode in (("eot", ends.eot), ("eos", ends.eos)):
            places = _first_end(self._ends[kind], located.ids, behind, limits)
            mask[_trained_ends(places, owners, is_trained, mode)] = True
        return mask


def _first_end(is_end: Mask, ids: Ids, behind: Positions, limits: Positions) -> Positions:
    """Return (turns,) the first end token close behind each turn and within its text, -1 where there is none.

    `is_end` (vocabulary,) says of which ids it is one.
    """
    found = np.full(len(behind), -1, np.int64)
    for distance in range(END_WITHIN, -1, -1):
        at = behind + distance
        inside = at < limits
        hit = np.zeros(len(at), np.bool_)
        hit[inside] = is_end[ids[at[inside]]]
        found[hit] = at[hit]
    return found


def _trained_ends(places: Positions, owners: Positions, is_trained: Mask, mode: Train) -> Positions:
    there = places >= 0
    if mode == "turn":
        there &= is_trained
    if mode == "none":
        there[:] = False
    chosen = places[there]
    if mode == "last" and len(chosen):
        owner = owners[there]
        chosen = chosen[np.append(owner[1:] != owner[:-1], True)]
    return chosen


def _is_one_of(numbers: Sequence[int], size: int) -> Mask:
    flags = np.zeros(size, np.bool_)
    flags[list(numbers)] = True
    return flags


def _running_sum(counts: Sequence[int]) -> Positions:
    total = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=total[1:])
    return total


def _continuations(data: bytes) -> Positions:
    """Return `Located.behind` of UTF-8."""
    continued = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) == 0x80)
    return continued - np.arange(len(continued))


def _bytes_at(behind: Positions, characters: Positions) -> Positions:
    """Return how many bytes are in front of each of these characters: one for each character, and the others.

    >>> _bytes_at(_continuations("é=".encode()), np.array([0, 1, 2]))
    array([0, 2, 3])
    """
    return characters + np.searchsorted(behind, characters, side="right") if len(behind) else characters
