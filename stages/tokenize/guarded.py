"""Encoding texts in which some spellings of control tokens are plain text.

A second tokenizer knows each control token under another spelling, of the same length, that no text has. The template's
own tokens are respelled before a text is encoded; what the data spells is then like any other text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

from stages.formats.pieces import Piece, Span

RESPELLED = "\uf8ff"  # the last private-use character, which the marks of formats do not reach


class GuardedEncoding:
    """An `Encoding` with the ids of the real tokenizer; places are those in the text as it is.

    Attributes:
        certain: whether its control tokens are the template's and no others.
    """

    def __init__(self, encoding: Encoding, ids: list[int], certain: bool) -> None:
        self.ids, self.certain = ids, certain
        self.token_to_chars: Callable[[int], tuple[int, int] | None] = encoding.token_to_chars


class GuardedTokenizer:
    """Encodes pieces whose control tokens are the template's alone."""

    def __init__(self, settings: Any, spelled: Callable[[str], Sequence[Span]]) -> None:
        settings = json.loads(json.dumps(settings))
        self._control = {token["id"] for token in settings["added_tokens"] if token["special"]}
        for token in settings["added_tokens"]:
            if token["special"]:
                token["content"] = RESPELLED + token["content"][1:]
        self._tokenizer = Tokenizer.from_str(json.dumps({**settings, "post_processor": None}))
        added = settings["added_tokens"]
        self._real = {self._tokenizer.token_to_id(token["content"]): token["id"] for token in added}
        self._spelled = spelled

    def encode(self, piece: Piece) -> GuardedEncoding:
        """Return the tokens of a piece, without those that a tokenizer puts around a text."""
        text, plain = list(piece.text), {span.start for span in piece.plain}
        hidden = "".join(RESPELLED if at in plain else character for at, character in enumerate(text))
        templates = self._spelled(hidden)  # those that the data does not spell
        for span in templates:
            text[span.start] = RESPELLED
        encoding = self._tokenizer.encode("".join(text), add_special_tokens=False)
        ids = [self._real.get(number, number) for number in encoding.ids]
        return GuardedEncoding(encoding, ids, sum(number in self._control for number in ids) == len(templates))
