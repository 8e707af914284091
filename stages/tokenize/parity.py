"""The proof that two tokenizer libraries agree: texts that are hard to tokenize, and the first in which they differ."""

# ruff: noqa: RUF001  confusable characters are what it is about
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Encode = Callable[[Sequence[str]], tuple[Any, Any]]
SEED = 20240229
MIXTURES = 400
PIECES_PER_MIXTURE = 24
SURROGATES = range(0xD800, 0xE000)
MAX_ADDED = 300
"""Of a vocabulary with more added tokens, that many are tried, spread over all of them."""

WORDS = (
    "the", " quick", "don't", "DON'T", "I'LL", "we\u2019re", "naïve", "Straße", "ﬁn", "İstanbul", "ΣΊΣΥΦΟΣ",
    "snake_case", "camelCase", "HTTPServer2", "über-", "\u2026", "--", "=====", "#include <x>",
    "def f(x):\n\treturn x**2\n", "{}[]();", "https://a.b/c?d=e&f=%20", "a@b.co", "C:\\x\\y", "$1,234.56",
    "3.14159", "0xdeadbeef", "1e-9", "١٢٣", "四五六", "Ⅷ", "½", "²", "123456789012345678901234567890", "007",
    "你好\uff0c世界", "こんにちは", "안녕하세요", "สว\u0e31สด\u0e35", "नमस\u094dत\u0947", "مرحبا", "שלום",
    "Привет", "Γειά", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "e\u0301", "\u0301", "\u200d", "\u200b", "\ufeff",
    "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u0000", "\u0001", "\u007f", "\u0085", "\u2028", "'s", "'S",
    "\u2019s", "''", "s's", "_", "<0x0A>", "▁", "Ġ", "<s>", "</s>", "<unk>", "<", ">", "[INST]", "<think>",
    "´", "\uff07", "<|", "|>",
)  # fmt: skip
SPACES = (
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\u2003 ",
    "\v",
    "\f",
    " " * 17,
    "\n" * 9,
)


def hard_texts(added: Sequence[str]) -> list[str]:
    """Return the texts: all planes of Unicode, white space, words, `added` tokens, and mixtures of these."""
    stride = max(1, -(-len(added) // MAX_ADDED))
    tokens = list(added[::stride])
    return ["", *WORDS, *SPACES, *_planes(), *_around(tokens), *_mixtures(tokens)]


def first_difference(one: Encode, two: Encode, texts: Sequence[str]) -> str | None:
    """Return the first text that the two encode otherwise, None if there is none."""
    ids, offsets = one(texts)
    others, other_offsets = two(texts)
    if np.array_equal(ids, others) and np.array_equal(offsets, other_offsets):
        return None
    for number, text in enumerate(texts):
        here, there = slice(*offsets[number : number + 2]), slice(*other_offsets[number : number + 2])
        if not np.array_equal(ids[here], others[there]):
            return text
    raise ValueError("two encodings differ in no text")


def _planes() -> Iterator[str]:
    """Yield runs of neighbouring characters: all of the first plane, every 37th of the others."""
    common = [chr(code) for code in range(0x10000) if code not in SURROGATES]
    others = [chr(code) for code in range(0x10000, 0x110000, 37)]
    for characters in (common, others):
        for first in range(0, len(characters), 64):
            yield "".join(characters[first : first + 64])


def _around(tokens: list[str]) -> Iterator[str]:
    for token in tokens:
        yield f"{token}a{token}{token} {token}\n{token}  b{token}c \n {token}"
        yield f"{token[:-1]} {token[1:]}{token.upper()}{token.lower()}{token[:-1]}{token}"


def _mixtures(tokens: list[str]) -> Iterator[str]:
    chance = random.Random(SEED)  # noqa: S311  the same on every machine, no secret
    pools = (WORDS, SPACES, tokens or WORDS, WORDS, SPACES)
    for _ in range(MIXTURES):
        yield "".join(chance.choice(chance.choice(pools)) for _ in range(PIECES_PER_MIXTURE))
