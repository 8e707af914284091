"""Text to token ids in bulk, by the fastest library that is proven equal to Hugging Face's for this very tokenizer.

Which one is used is no part of a key: the ids are the same. `stages.tokenize.parity` holds the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

try:
    import fastokens  # type: ignore[import-untyped]
except ImportError:  # it is not built for every kind of machine
    fastokens = None

from stages.tokenize.parity import first_difference, hard_texts

Ids = npt.NDArray[np.int32]
Positions = npt.NDArray[np.int64]


class Backend(Protocol):
    """Encodes texts without the special tokens that a tokenizer puts around them."""

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Positions]:
        """Return (tokens,) ids of all texts, and (texts + 1,) offsets: text i has `ids[offsets[i]:offsets[i + 1]]`."""


class HuggingFaceBackend:
    """The reference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Positions]:
        """Return ids and offsets as `Backend.encode`."""
        listed = [np.array(found.ids, np.int32) for found in self._encodings(texts)]
        offsets = np.zeros(len(listed) + 1, np.int64)
        np.cumsum([len(ids) for ids in listed], out=offsets[1:])
        return np.concatenate([np.zeros(0, np.int32), *listed]), offsets

    def _encodings(self, texts: Sequence[str]) -> Any:
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)


class FastBackend:
    """`fastokens`: byte-level BPE some fifteen times as fast, into two buffers and no object for a token."""

    def __init__(self, settings: str) -> None:
        self._tokenizer = fastokens._native.Tokenizer.from_json_str(settings)
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Positions]:
        """Return ids and offsets as `Backend.encode`.

        Raises:
            ValueError: a text has a byte that the vocabulary lacks; Hugging Face's tokenizer leaves it out.
        """
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), add_special_tokens=False)
        return np.frombuffer(ids, np.uint32).view(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    def accepted(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that `encode` takes."""
        try:
            self.encode(texts)
        except ValueError:
            half = len(texts) // 2
            return self.accepted(texts[:half]) + self.accepted(texts[half:]) if half else []
        return list(texts)


def fast_backend(settings: str, reference: HuggingFaceBackend, added: Sequence[str]) -> FastBackend | None:
    """Return the fast backend for a tokenizer (its `tokenizer.json`), None if it differs in any hard text or is absent.

    Takes about 1.3 seconds with loading, so it is asked only where many texts follow; no verdict is kept.
    """
    if fastokens is None:
        return None
    try:
        fast = FastBackend(settings)
        texts = fast.accepted(hard_texts(added))
        return fast if first_difference(fast.encode, reference.encode, texts) is None else None
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        return None
