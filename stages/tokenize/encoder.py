"""Pieces of text to token ids and trained flags, for many rows at once, each mask proven.

A token that overlaps a trained character is trained. Where the tokens are is known in one of two ways:

* byte-level tokenizers: from the bytes of the tokens, for a whole batch (`stages.tokenize.byte_level`);
* others, texts that a normalizer changes, and turns of which only parts are trained: from the offsets that the
  tokenizer gives. Then the trained ids are decoded again; a row whose decoded text is not the text that was to be
  trained is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from tokenizers import Encoding, Tokenizer

from stages.formats.pieces import EndRule, Part, Piece, Rejected, RowFormat, Span, Turn
from stages.tokenize.backends import Backend, FastBackend, HuggingFaceBackend, Ids, Positions, fast_backend
from stages.tokenize.byte_level import END_WITHIN, ByteLevel, Mask
from stages.tokenize.places import Places, places_from_offsets

FAST_AFTER = 2000
"""Texts after which it pays to load the fast library and to test it: Hugging Face's needs two seconds for so many."""


class BackendError(Exception):
    """The fast library gave other ids than Hugging Face's: what it did so far is to be done again."""


class Tokenized(NamedTuple):
    """A row: (tokens,) ids and (tokens,) whether the label is the token itself."""

    ids: Ids
    trained: Mask


@dataclass(frozen=True)
class _Claim:
    """Trained ids, and the text that they must say."""

    ids: list[int]
    text: str


class Encoder:
    """A resolved tokenizer with its end tokens."""

    def __init__(
        self, folder: Path, bos: int | None, eos: int, eot: Sequence[int], fast_after: int = FAST_AFTER
    ) -> None:
        settings = orjson.loads((folder / "tokenizer.json").read_bytes())
        self._settings = orjson.dumps(settings).decode()
        self._tokenizer = Tokenizer.from_str(orjson.dumps(_with_whole_offsets(settings)).decode())
        self._reference = HuggingFaceBackend(self._tokenizer)
        self._backend: Backend = self._reference
        self._texts_left = fast_after if _says_bytes(settings) else -1
        self._is_byte_level = settings["normalizer"] is None and _says_bytes(settings)
        self._bytes = ByteLevel(self._tokenizer, eos, eot) if _says_bytes(settings) else None
        self._affixes = _affixes(self._tokenizer)
        self._bos, self._eos = bos, eos
        self._end = np.array([eos], np.int32)
        self._eot, self._eos_only = frozenset(eot), frozenset([eos])

    def encode(self, rows: Sequence[list[Piece]], form: RowFormat) -> list[list[Tokenized] | Rejected]:
        """Return for each row, given as its pieces, its tokenized rows (several if it is cut), or why there is none.

        Raises:
            BackendError: the fast library was wrong; it is not used again.
        """
        pieces = [piece for row in rows for piece in row]
        tokens = iter(self._by_bytes(pieces, form.ends))
        parts = [[next(tokens) for _ in row] for row in rows]
        left = [number for number, row in enumerate(parts) if None in row]
        exact = dict(zip(left, self._by_offsets([rows[number] for number in left], form), strict=True))
        return [
            exact[number] if number in exact else _joined(row, form.chunk)  # type: ignore[arg-type]
            for number, row in enumerate(parts)
        ]

    def _by_bytes(self, pieces: list[Piece], ends: EndRule) -> list[Tokenized | None]:
        """Return the tokens of each piece, None where this way does not prove them."""
        wanted = [number for number, piece in enumerate(pieces) if self._has_bytes(piece)]
        found: list[Tokenized | None] = [None] * len(pieces)
        chosen = [pieces[number] for number in wanted]
        if self._bytes is None or not chosen:
            return found
        texts = [piece.text for piece in chosen]
        ids, offsets = self._ids(texts)
        located = self._bytes.locate(texts, ids, offsets)
        if isinstance(located, list):
            kept = [number for number, proven in enumerate(located) if proven]
            wanted, chosen = [wanted[number] for number in kept], [chosen[number] for number in kept]
            ids, offsets = _selected(ids, offsets, kept)
            located = self._bytes.locate([piece.text for piece in chosen], ids, offsets)
            if isinstance(located, list):
                raise ValueError("texts that are proven one by one are not proven together")
        trained = self._bytes.trained(chosen, located, ends)
        for number, piece, start, end in zip(wanted, chosen, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            found[number] = self._with_ends(
                piece, self._with_affixes(piece, Tokenized(ids[start:end], trained[start:end]))
            )
        return found

    def _has_bytes(self, piece: Piece) -> bool:
        return not (piece.special_tokens and self._affixes is None) and all(turn.parts is None for turn in piece.turns)

    def _ids(self, texts: list[str]) -> tuple[Ids, Positions]:
        """Return the ids of texts by the fastest backend; one text of them is encoded by the reference as well."""
        if self._texts_left >= 0:
            self._texts_left -= len(texts)
            if self._texts_left < 0:
                added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
                self._backend = fast_backend(self._settings, self._reference, added) or self._reference
        if not isinstance(self._backend, FastBackend):
            return self._reference.encode(texts)
        try:
            ids, offsets = self._backend.encode(texts)
        except ValueError:
            return self._reference.encode(texts)
        number = int(offsets[-1]) % len(texts)  # any one, the same on every machine
        ids_here = ids[offsets[number] : offsets[number + 1]]
        if not np.array_equal(ids_here, self._reference.encode(texts[number : number + 1])[0]):
            self._backend = self._reference
            raise BackendError(f"the fast tokenizer differs from the reference in {texts[number][:200]!r}")
        return ids, offsets

    def _with_affixes(self, piece: Piece, tokens: Tokenized) -> Tokenized:
        if not piece.special_tokens or not piece.text or self._affixes is None or not any(map(len, self._affixes)):
            return tokens
        before, after = self._affixes
        ids = np.concatenate([before, tokens.ids, after])
        flags = (np.full(len(before), piece.trained), tokens.trained, np.full(len(after), piece.trained))
        return Tokenized(ids, np.concatenate(flags))

    def _by_offsets(self, rows: Sequence[list[Piece]], form: RowFormat) -> list[list[Tokenized] | Rejected]:
        encodings = self._encodings([piece for row in rows for piece in row])
        results: list[list[Tokenized] | Rejected] = []
        claims: list[_Claim] = []
        claims_of: list[int] = []
        for number, row in enumerate(rows):
            parts = [self._piece(piece, next(encodings), form.ends) for piece in row]
            found = [claim for _, row_claims in parts for claim in row_claims]
            claims += found
            claims_of += [number] * len(found)
            results.append(_joined([tokens for tokens, _ in parts], form.chunk))
        for claim, number, said in zip(claims, claims_of, self._decoded(claims), strict=True):
            if not self._agree(said, claim.text):
                results[number] = Rejected("mask_not_proven", _difference(said, claim.text))
        return results

    def _encodings(self, pieces: list[Piece]) -> Iterator[Encoding]:
        """Return an iterator over the encodings of the pieces, in order."""
        own = iter(self._batch([piece.text for piece in pieces if piece.special_tokens], True))
        bare = iter(self._batch([piece.text for piece in pieces if not piece.special_tokens], False))
        return iter([next(own if piece.special_tokens else bare) for piece in pieces])

    def _batch(self, texts: list[str], special_tokens: bool) -> list[Encoding]:
        return list(self._tokenizer.encode_batch(texts, add_special_tokens=special_tokens)) if texts else []

    def _piece(self, piece: Piece, encoding: Encoding, ends: EndRule) -> tuple[Tokenized, list[_Claim]]:
        if not piece.text:
            return Tokenized(np.zeros(0, np.int32), np.zeros(0, np.bool_)), []
        listed = encoding.ids
        ids = np.array(listed, np.int32)
        trained = np.full(len(ids), piece.trained)
        claims = []
        if piece.turns or piece.trained:
            spans = [turn.span for turn in piece.turns if turn.trained and turn.parts is None]
            spans += [Span(0, len(piece.text))] if piece.trained else []
            places = places_from_offsets(encoding)
            claims = [_claim(piece.text, listed, places, encoding, span) for span in spans]
            self._train_turns(piece.turns, listed, trained, places, ends)
        return self._with_ends(piece, Tokenized(ids, trained)), claims

    def _with_ends(self, piece: Piece, tokens: Tokenized) -> Tokenized:
        ids, trained = tokens.ids, tokens.trained
        if piece.ends and len(ids) and ids[-1] != self._eos:
            ids = np.concatenate([ids, self._end])
            trained = np.concatenate([trained, [piece.trained]])
        if piece.continues and len(ids) and ids[0] == self._bos:
            ids, trained = ids[1:], trained[1:]
        return Tokenized(ids, trained)

    def _train_turns(
        self, turns: tuple[Turn, ...], ids: list[int], trained: Mask, places: Places, ends: EndRule
    ) -> None:
        """Mark in `trained` the tokens of trained turns and the end tokens behind turns."""
        rules = (("eot", ends.eot, self._eot), ("eos", ends.eos, self._eos_only))
        last: dict[str, int] = {}
        for turn in turns:
            first, behind = places.tokens_of(turn.span)
            if turn.trained and turn.parts is None:
                trained[first:behind] = True
            for part in turn.parts or ():
                _train_part(part, trained, places)
            for kind, mode, wanted in rules:
                near = (at for at, token in enumerate(ids[behind : behind + END_WITHIN + 1], behind) if token in wanted)
                end = next(near, None)
                if end is not None:
                    last[kind] = end
                    if mode == "all" or (mode == "turn" and turn.trained):
                        trained[end] = True
        for kind, mode, _ in rules:
            if mode == "last" and kind in last:
                trained[last[kind]] = True

    def _decoded(self, claims: list[_Claim]) -> list[str]:
        if not claims:
            return []
        return list(self._tokenizer.decode_batch([claim.ids for claim in claims], skip_special_tokens=False))

    def _agree(self, said: str, text: str) -> bool:
        """Return whether decoded text is the text that was encoded.

        A tokenizer that normalizes text, or that puts spaces around words, gives it back only up to that. A first or
        last token may hold a part of a character beyond its edge, which is decoded as U+FFFD.
        """
        if said == text:
            return True
        if self._is_byte_level:
            inner = said.strip("\ufffd")
            return 0 <= len(text) - len(inner) <= 2 and inner in text
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
            said = self._tokenizer.normalizer.normalize_str(said)
        return _without_spaces(said) == _without_spaces(text)


def _says_bytes(settings: dict[str, Any]) -> bool:
    """Return whether the tokens of a tokenizer (its `tokenizer.json`) stand for bytes."""
    return (settings["decoder"] or {}).get("type") == "ByteLevel"


def _affixes(tokenizer: Tokenizer) -> tuple[Ids, Ids] | None:
    """Return the special tokens that are put before and after a text, None if that is not what the tokenizer does."""
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare and bare:
            return np.array(full[:start], np.int32), np.array(full[start + len(bare) :], np.int32)
    return None


def _selected(ids: Ids, offsets: Positions, kept: list[int]) -> tuple[Ids, Positions]:
    """Return the ids and offsets of some of the texts."""
    counts = np.diff(offsets)
    chosen = np.zeros(len(counts), np.bool_)
    chosen[kept] = True
    return ids[np.repeat(chosen, counts)], np.append(0, np.cumsum(counts[kept]))


def _with_whole_offsets(settings: Any) -> Any:
    """Return tokenizer settings whose offsets include the white space of each token."""
    if isinstance(settings, dict):
        return {key: False if key == "trim_offsets" else _with_whole_offsets(item) for key, item in settings.items()}
    if isinstance(settings, list) and settings and isinstance(settings[0], dict):
        return [_with_whole_offsets(item) for item in settings]
    return settings


def _train_part(part: Part, trained: Mask, places: Places) -> None:
    """Mark the tokens of a part of some words, by the rule of the original.

    A token counts as [its start, the start of the next token - 1]. The part first grows to whole tokens where it shares
    two characters or more with a token at its edge; then the tokens inside are trained. Several tokens that make one
    character all start at it, and only the last of them holds it.
    """
    first, behind = places.tokens_of(part.words)
    if first == behind:
        return
    begins = np.maximum(places.starts[first:behind], part.words.start)
    lasts = np.append(begins[1:], part.words.end) - 1  # last character of each token
    start, end = part.span.start, part.span.end - 1
    low = int(np.searchsorted(begins, start, side="left"))
    if low > 0 and lasts[low - 1] > start:
        low -= 1
    high = int(np.searchsorted(lasts, end, side="right")) - 1
    if high + 1 < len(begins) and begins[high + 1] < end:
        high += 1
    if low <= high:
        trained[first:behind] |= (begins >= begins[low]) & (lasts <= lasts[high])


def _claim(text: str, ids: list[int], places: Places, encoding: Encoding, span: Span) -> _Claim:
    """Return the ids of a span, and the text that they must say: that of the span, up to the edges of its tokens."""
    first, behind = places.tokens_of(span)
    if first == behind:
        return _Claim([], text[span.start : span.end])
    start, stop = encoding.token_to_chars(first) or (0, 0), encoding.token_to_chars(behind - 1) or (0, 0)
    return _Claim(ids[first:behind], text[min(start[0], span.start) : max(stop[1], span.end)])


def _joined(parts: list[Tokenized], chunk: int | None) -> list[Tokenized] | Rejected:
    """Return the pieces of a row as one row, or cut in rows of `chunk` tokens."""
    if not parts or not sum(len(part.ids) for part in parts):
        return Rejected("no_text", "the row gives no token")
    one = parts[0]
    if len(parts) > 1:
        one = Tokenized(np.concatenate([part.ids for part in parts]), np.concatenate([part.trained for part in parts]))
    if chunk is None or len(one.ids) <= chunk:
        return [one]
    cuts = range(0, len(one.ids), chunk)
    return [Tokenized(one.ids[cut : cut + chunk], one.trained[cut : cut + chunk]) for cut in cuts]


def _without_spaces(text: str) -> str:
    return re.sub(r"[\s▁]+", "", text)


def _difference(said: str, text: str) -> str:
    at = next(
        (n for n, (one, two) in enumerate(zip(said, text, strict=False)) if one != two), min(len(said), len(text))
    )
    here = slice(max(0, at - 20), at + 20)
    return f"the trained tokens say {said[here]!r} where the text is {text[here]!r}"
