"""What each token of a vocabulary says, as bytes, and what many tokens say at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from stages.tokenize.backends import Ids, Positions

A_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """The tokens of a tokenizer (its `tokenizer.json`, loaded and as it stands there)."""

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
        said_by = _byte_level() if says_bytes(settings) else _in_characters(settings["model"])
        added = tokenizer.get_added_tokens_decoder()
        numbers = tokenizer.get_vocab(with_added_tokens=True)
        said = [b""] * (max(numbers.values(), default=0) + 1)
        for token, number in numbers.items():
            said[number] = token.encode() if number in added else said_by(token)
        self._said = pa.array(said, pa.large_binary())

    def __len__(self) -> int:
        """Return how many ids there are."""
        return len(self._said)

    def said(self, ids: Ids) -> tuple[npt.NDArray[np.uint8], Positions]:
        """Return the bytes of tokens, one after the other, and (tokens + 1,) how many are in front of each."""
        _, edges_buffer, said_buffer = self._said.take(pa.array(ids)).buffers()
        edges = np.frombuffer(edges_buffer, np.int64, len(ids) + 1)
        return np.frombuffer(said_buffer or b"", np.uint8, edges[-1]), edges


def says_bytes(settings: dict[str, Any]) -> bool:
    """Return whether the tokens of a tokenizer (its `tokenizer.json`) stand for bytes."""
    return (settings["decoder"] or {}).get("type") == "ByteLevel"


def _byte_level() -> Callable[[str], bytes]:
    to_byte = {ord(character): byte for byte, character in enumerate(_byte_characters())}

    def said(token: str) -> bytes:
        try:
            return token.translate(to_byte).encode("latin-1")
        except UnicodeEncodeError:
            return token.encode()

    return said


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte: itself if it is printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _in_characters(model: dict[str, Any]) -> Callable[[str], bytes]:
    """Return what the tokens of a SentencePiece or WordPiece model say, up to white space."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""

    def said(token: str) -> bytes:
        byte = A_BYTE.fullmatch(token) if model.get("byte_fallback") else None
        return bytes.fromhex(byte[1]) if byte else token.removeprefix(prefix).removesuffix(suffix).encode()

    return said
