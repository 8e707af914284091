"""Pieces of text to token ids and trained flags, for many rows at once, each mask proven.

A token that overlaps a trained character is trained. Where the tokens are is known in one of two ways:

* byte-level tokenizers: from the bytes of the tokens, for a whole batch (`stages.tokenize.byte_level`);
* others, texts that a normalizer changes, and turns of which only parts are trained: from the offsets that the
  tokenizer gives. Then the trained ids are decoded again; a row whose decoded text is not the text that was to be
  trained is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from tokenizers import Encoding, Tokenizer

from stages.formats.control import ControlTokens
from stages.formats.pieces import EndRule, Part, Piece, Rejected, RowFormat, Span, Turn
from stages.tokenize.backends import Backend, HuggingFaceBackend, Ids, Positions, fast_backend
from stages.tokenize.byte_level import END_WITHIN, ByteLevel, Mask
from stages.tokenize.guarded import GuardedEncoding, GuardedTokenizer
from stages.tokenize.places import Places
from stages.tokenize.vocabulary import Vocabulary, says_bytes

NO_TEXT = Rejected("no_text", "the row gives no token")
FAST_AFTER = 2000
"""Texts after which it pays to load the fast library and to test it: Hugging Face's needs two seconds for so many."""


class BackendError(Exception):
    """The fast library gave other ids than Hugging Face's: what it did so far is to be done again."""


class Tokenized(NamedTuple):
    """A row: (tokens,) ids and (tokens,) whether the label is the token itself."""

    ids: Ids
    trained: Mask


@dataclass(frozen=True)
class Encoded:
    """What became of many rows: their tokens, one row after the other.

    Attributes:
        ids: (tokens,) of all tokenized rows.
        trained: (tokens,) whether the label is the token itself.
        lengths: (tokenized rows,) tokens of each.
        owners: (tokenized rows,) the number of the row that it was made of, rising.
        rejected: why the other rows gave none.
    """

    ids: Ids
    trained: Mask
    lengths: Positions
    owners: Positions
    rejected: dict[int, Rejected]

    def of(self, number: int) -> list[Tokenized] | Rejected:
        """Return what became of one row."""
        return self.rejected[number] if number in self.rejected else self.rows_of(number)

    def rows_of(self, number: int) -> list[Tokenized]:
        """Return the tokenized rows of one row."""
        ends = np.cumsum(self.lengths)
        places = [slice(ends[at] - self.lengths[at], ends[at]) for at in np.flatnonzero(self.owners == number)]
        return [Tokenized(self.ids[place], self.trained[place]) for place in places]

    def split(self, rows: int) -> list[list[Tokenized]]:
        """Return the tokenized rows of each of so many rows."""
        found: list[list[Tokenized]] = [[] for _ in range(rows)]
        edges = np.append(0, np.cumsum(self.lengths)).tolist()
        for owner, (start, stop) in zip(self.owners.tolist(), pairwise(edges), strict=True):
            found[owner].append(Tokenized(self.ids[start:stop], self.trained[start:stop]))
        return found


def encoded_rows(rows: Sequence[list[Tokenized] | Rejected]) -> Encoded:
    """Return rows that bring their own tokens."""
    rejected = {number: row for number, row in enumerate(rows) if isinstance(row, Rejected)}
    made = [(number, one) for number, row in enumerate(rows) if not isinstance(row, Rejected) for one in row]
    tokens = _Tokens.of([one for _, one in made])
    return Encoded(tokens.ids, tokens.trained, tokens.counts, np.array([n for n, _ in made], np.int64), rejected)


@dataclass(frozen=True)
class _Tokens:
    """The tokens of pieces, one after the other; `counts` (pieces,) says how many each has."""

    ids: Ids
    trained: Mask
    counts: Positions

    @classmethod
    def of(cls, parts: Sequence[Tokenized]) -> _Tokens:
        """Put tokens together."""
        ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)])
        trained = np.concatenate([np.zeros(0, np.bool_), *(part.trained for part in parts)])
        return cls(ids, trained, np.array([len(part.ids) for part in parts], np.int64))

    def kept(self, pieces: Mask) -> _Tokens:
        """Return the tokens with those of other pieces left out."""
        kept = np.repeat(pieces, self.counts)
        return _Tokens(self.ids[kept], self.trained[kept], np.where(pieces, self.counts, 0))

    def inserted(self, places: Positions, ids: Ids, wanted: Mask, trained: Mask) -> _Tokens:
        """Return the tokens with `ids` put in front of `places`, a row of them for each wanted piece.

        `trained` (pieces,) says whether they are trained.
        """
        if not places.size:
            return self
        return _Tokens(
            np.insert(self.ids, places.ravel(), np.tile(ids, len(places))),
            np.insert(self.trained, places.ravel(), np.repeat(trained[wanted], len(ids))),
            self.counts + len(ids) * wanted,
        )


@dataclass(frozen=True)
class _Claim:
    """The tokens [first, behind) of a piece, and the text that they must say."""

    first: int
    behind: int
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
        self._texts_left = fast_after if says_bytes(settings) else -1
        self._is_byte_level = settings["normalizer"] is None and says_bytes(settings)
        self._keeps_spaces = _keeps_spaces(self._tokenizer, settings)
        self._vocabulary = Vocabulary(self._tokenizer, settings)
        self._bytes = ByteLevel(self._vocabulary, eos, eot) if says_bytes(settings) else None
        self._affixes = _affixes(self._tokenizer)
        self._bos, self._eos = bos, eos
        self._end = np.array([eos], np.int32)
        self._eot, self._eos_only = frozenset(eot), frozenset([eos])
        self.control = ControlTokens([token["content"] for token in settings["added_tokens"] if token["special"]])

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the reference, whose offsets hold white space."""
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens, added ones among them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def ids_of(self, text: str) -> list[int]:
        """Return the ids of one text by the backend that is in use, without special tokens around it."""
        return list(self._by_backend([text])[0].tolist())

    def encode(self, rows: Sequence[list[Piece]], form: RowFormat) -> Encoded:
        """Return what becomes of rows, each given as its pieces: one tokenized row, several if it is cut, or none.

        Raises:
            BackendError: the fast library was wrong; it is not used again.
        """
        owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        tokens, proven = self._by_bytes([piece for row in rows for piece in row], form.ends)
        left = np.unique(owners[~proven])
        if len(left):
            tokens = tokens.kept(~np.isin(owners, left))
        fast = _joined(tokens, owners, len(rows), form.chunk)
        no_text = {number: NO_TEXT for number in np.setdiff1d(np.arange(len(rows)), [*fast.owners, *left]).tolist()}
        if not len(left):
            return replace(fast, rejected=no_text)
        exact = self._by_offsets([rows[number] for number in left.tolist()], form)
        return _merged(fast, dict(zip(left.tolist(), exact, strict=True)), no_text)

    def _by_bytes(self, pieces: list[Piece], ends: EndRule) -> tuple[_Tokens, Mask]:
        """Return the tokens of all pieces, and (pieces,) of which of them this way proves the tokens."""
        proven = np.array([self._has_bytes(piece) for piece in pieces], np.bool_)
        counts = np.zeros(len(pieces), np.int64)
        if self._bytes is None or not proven.any():
            return _Tokens(np.zeros(0, np.int32), np.zeros(0, np.bool_), counts), np.zeros(len(pieces), np.bool_)
        chosen = list(compress(pieces, proven.tolist()))
        ids, offsets = self._ids([piece.text for piece in chosen])
        while True:
            said, located = self._bytes.locate([piece.text for piece in chosen], ids, offsets)
            if located is not None:
                break
            proven[proven] = said
            chosen = list(compress(chosen, said.tolist()))
            ids, offsets = _selected(ids, offsets, said)
        trained = self._bytes.trained(chosen, located, ends)
        tokens = self._with_ends(chosen, self._with_affixes(chosen, _Tokens(ids, trained, np.diff(offsets))))
        counts[proven] = tokens.counts
        return replace(tokens, counts=counts), proven

    def _has_bytes(self, piece: Piece) -> bool:
        if piece.plain or (piece.special_tokens and self._affixes is None):
            return False
        return not piece.turns or all([turn.parts is None for turn in piece.turns])

    def _ids(self, texts: list[str]) -> tuple[Ids, Positions]:
        """Return the ids of texts by the fastest backend; one text of them is encoded by the reference as well."""
        if self._texts_left >= 0:
            self._texts_left -= len(texts)
            if self._texts_left < 0:
                added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
                self._backend = fast_backend(self._settings, self._reference, added) or self._reference
        ids, offsets = self._by_backend(texts)
        if self._backend is self._reference:
            return ids, offsets
        number = int(offsets[-1]) % len(texts)  # any one, the same on every machine
        ids_here = ids[offsets[number] : offsets[number + 1]]
        if not np.array_equal(ids_here, self._reference.encode(texts[number : number + 1])[0]):
            self._backend = self._reference
            raise BackendError(f"the fast tokenizer differs from the reference in {texts[number][:200]!r}")
        return ids, offsets

    def _by_backend(self, texts: list[str]) -> tuple[Ids, Positions]:
        try:
            return self._backend.encode(texts)
        except ValueError:  # the fast one has no token for a byte
            return self._reference.encode(texts)

    def _with_affixes(self, pieces: Sequence[Piece], tokens: _Tokens) -> _Tokens:
        """Put the tokenizer's own special tokens around pieces that want them; a piece without text gets none."""
        if self._affixes is None or not any(map(len, self._affixes)):
            return tokens
        wanted = np.array([piece.special_tokens and bool(piece.text) for piece in pieces], np.bool_)
        before, after = self._affixes
        ends = np.cumsum(tokens.counts)
        begins = ends - tokens.counts
        places = np.column_stack([begins[wanted]] * len(before) + [ends[wanted]] * len(after))
        trained = np.array([piece.trained for piece in pieces], np.bool_)
        return tokens.inserted(places, np.concatenate([before, after]), wanted, trained)

    def _with_ends(self, pieces: Sequence[Piece], tokens: _Tokens) -> _Tokens:
        """Append the ends of sequence that pieces lack, and drop the beginning of those that continue others."""
        missing = np.array([piece.ends for piece in pieces], np.int64) * (tokens.counts > 0)
        ends = np.cumsum(tokens.counts)
        missing[missing > 0] -= tokens.ids[ends[missing > 0] - 1] == self._eos
        trained = np.array([piece.trained or bool(piece.turns) for piece in pieces], np.bool_)
        for least in range(missing.max(initial=0)):
            wanted = missing > least
            tokens = tokens.inserted(np.cumsum(tokens.counts)[wanted][:, None], self._end, wanted, trained)
        dropped = np.array([piece.continues for piece in pieces], np.bool_) & (tokens.counts > 0)
        begins = np.cumsum(tokens.counts) - tokens.counts
        dropped[dropped] = tokens.ids[begins[dropped]] == self._bos
        if not dropped.any():
            return tokens
        kept = np.ones(len(tokens.ids), np.bool_)
        kept[begins[dropped]] = False
        return _Tokens(tokens.ids[kept], tokens.trained[kept], tokens.counts - dropped)

    def _by_offsets(self, rows: Sequence[list[Piece]], form: RowFormat) -> list[list[Tokenized] | Rejected]:
        pieces = [piece for row in rows for piece in row]
        owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        parts: list[Tokenized] = []
        claims: list[tuple[int, _Claim]] = []
        for number, (piece, encoding) in enumerate(zip(pieces, self._encodings(pieces), strict=True)):
            part, found = self._piece(piece, encoding, form.ends)
            parts.append(part)
            claims += ((number, claim) for claim in found)
        tokens = _Tokens.of(parts)
        refuted = {int(owners[number]): why for number, why in self._refuted(claims, tokens)}
        guarded = [piece if piece.plain else piece._replace(special_tokens=False) for piece in pieces]
        whole = self._with_ends(pieces, self._with_affixes(guarded, tokens))
        made = _joined(whole, owners, len(rows), form.chunk).split(len(rows))
        return [refuted.get(number) or row or NO_TEXT for number, row in enumerate(made)]

    def _encodings(self, pieces: list[Piece]) -> Iterator[Encoding | GuardedEncoding]:
        """Return an iterator over the encodings of the pieces, in order."""
        usual = [piece for piece in pieces if not piece.plain]
        own = iter(self._batch([piece.text for piece in usual if piece.special_tokens], True))
        bare = iter(self._batch([piece.text for piece in usual if not piece.special_tokens], False))
        return iter([self._guarded.encode(p) if p.plain else next(own if p.special_tokens else bare) for p in pieces])

    @cached_property
    def _guarded(self) -> GuardedTokenizer:
        """Return the tokenizer for pieces in which control tokens are spelled as text; few runs have one."""
        return GuardedTokenizer(_with_whole_offsets(orjson.loads(self._settings)), self.control.spans)

    def _batch(self, texts: list[str], special_tokens: bool) -> list[Encoding]:
        return list(self._tokenizer.encode_batch(texts, add_special_tokens=special_tokens)) if texts else []

    def _piece(
        self, piece: Piece, encoding: Encoding | GuardedEncoding, ends: EndRule
    ) -> tuple[Tokenized, list[_Claim]]:
        if not piece.text:
            return Tokenized(np.zeros(0, np.int32), np.zeros(0, np.bool_)), []
        listed = encoding.ids
        ids = np.fromiter(listed, np.int32, len(listed))
        trained = np.full(len(ids), piece.trained)
        claims = []
        if isinstance(encoding, GuardedEncoding) and not encoding.certain:
            claims.append(_Claim(0, 0, piece.text))  # which is never so: the row is rejected
        if piece.turns or piece.trained:
            spans = [turn.span for turn in piece.turns if turn.trained and turn.parts is None]
            spans += [Span(0, len(piece.text))] if piece.trained else []
            places = Places(encoding, len(listed))
            claims += [_claim(piece.text, places, span) for span in spans]
            self._train_turns(piece.turns, listed, trained, places, ends)
        return Tokenized(ids, trained), claims

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

    def _refuted(self, claims: Sequence[tuple[int, _Claim]], tokens: _Tokens) -> Iterator[tuple[int, Rejected]]:
        """Yield the number of the piece, and why, of each claim about a piece that does not hold."""
        if not claims:
            return
        begins = np.append(0, np.cumsum(tokens.counts))
        firsts, behinds = (
            begins[[number for number, _ in claims]] + places
            for places in np.array([(claim.first, claim.behind) for _, claim in claims], np.int64).T
        )
        spoken, edges = self._vocabulary.said(tokens.ids)
        said = spoken.tobytes()
        places = zip(edges[firsts].tolist(), edges[behinds].tolist(), strict=True)
        doubtful = [
            at
            for at, ((start, stop), (_, claim)) in enumerate(zip(places, claims, strict=True))
            if not self._says(said[start:stop], claim.text)
        ]
        ids = [tokens.ids[firsts[at] : behinds[at]].tolist() for at in doubtful]
        decoded = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        for at, text in zip(doubtful, decoded, strict=True):
            number, claim = claims[at]
            if not self._agree(text, claim.text):
                yield number, Rejected("mask_not_proven", _difference(text, claim.text))

    def _says(self, said: bytes, text: str) -> bool:
        """Return whether the bytes of tokens certainly say a text: a quick look, the decoder has the last word."""
        if self._is_byte_level:
            return said == text.encode()
        shown = said.decode(errors="replace").replace("▁", " ")
        if shown.strip() == text.strip():
            return True
        if self._tokenizer.normalizer is not None:
            shown, text = shown.casefold(), text.casefold()
        return _without_spaces(shown) == _without_spaces(text)

    def _agree(self, said: str, text: str) -> bool:
        """Return whether decoded text is the text that was encoded.

        A tokenizer that normalizes text, or that puts spaces around words, gives it back only up to that. A first or
        last token may hold a part of a character beyond its edge, which is decoded as U+FFFD.
        """
        if said == text:
            return True
        if self._is_byte_level:
            inner = said.strip("\ufffd")
            if not self._keeps_spaces:
                inner, text = _without_spaces(inner), _without_spaces(text)
            return 0 <= len(text) - len(inner) <= 2 and inner in text
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
            said = self._tokenizer.normalizer.normalize_str(said)
        return _without_spaces(said) == _without_spaces(text)


def _keeps_spaces(tokenizer: Tokenizer, settings: dict[str, Any]) -> bool:
    """Return whether the tokens of a byte-level tokenizer hold all white space of a text."""
    if any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"]):
        return False
    text = "a \n b"
    return bool(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text)


def _affixes(tokenizer: Tokenizer) -> tuple[Ids, Ids] | None:
    """Return the special tokens that are put before and after a text, None if that is not what the tokenizer does."""
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare and bare:
            return np.array(full[:start], np.int32), np.array(full[start + len(bare) :], np.int32)
    return None


def _selected(ids: Ids, offsets: Positions, kept: Mask) -> tuple[Ids, Positions]:
    """Return the ids and offsets of some of the texts."""
    counts = np.diff(offsets)
    return ids[np.repeat(kept, counts)], np.append(0, np.cumsum(counts[kept]))


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
    begins = np.maximum(places.starts(first, behind), part.words.start)
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


def _claim(text: str, places: Places, span: Span) -> _Claim:
    """Return what the tokens of a span must say: its text, up to the edges of these tokens."""
    first, behind = places.tokens_of(span)
    if first == behind:
        return _Claim(first, behind, text[span.start : span.end])
    start, stop = min(places.start(first), span.start), max(places.stop(behind - 1), span.end)
    return _Claim(first, behind, text[start:stop])


def _joined(tokens: _Tokens, owners: Positions, rows: int, chunk: int | None) -> Encoded:
    """Return the pieces of each row as one row, or cut in rows of `chunk` tokens; a row without tokens is left out."""
    lengths = np.bincount(owners, tokens.counts, rows).astype(np.int64)
    numbers = np.flatnonzero(lengths)
    lengths = lengths[numbers]
    if chunk is not None:
        parts = -(-lengths // chunk)
        rests = lengths - (parts - 1) * chunk
        numbers, lengths = np.repeat(numbers, parts), np.full(parts.sum(), chunk)
        lengths[np.cumsum(parts) - 1] = rests
    return Encoded(tokens.ids, tokens.trained, lengths, numbers, {})


def _merged(fast: Encoded, exact: dict[int, list[Tokenized] | Rejected], rejected: dict[int, Rejected]) -> Encoded:
    """Return rows of both ways in their order."""
    parts = [(number, tokens) for number in dict.fromkeys(fast.owners.tolist()) for tokens in fast.rows_of(number)]
    for number, result in exact.items():
        if isinstance(result, Rejected):
            rejected[number] = result
        else:
            parts += [(number, tokens) for tokens in result]
    parts.sort(key=lambda part: part[0])
    tokens = _Tokens.of([tokens for _, tokens in parts])
    owners = np.array([number for number, _ in parts], np.int64)
    return Encoded(tokens.ids, tokens.trained, tokens.counts, owners, rejected)


def _without_spaces(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def _difference(said: str, text: str) -> str:
    at = next(
        (n for n, (one, two) in enumerate(zip(said, text, strict=False)) if one != two), min(len(said), len(text))
    )
    here = slice(max(0, at - 20), at + 20)
    return f"the trained tokens say {said[here]!r} where the text is {text[here]!r}"
