"""Rows that bring their own tokens: an empty `type:`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.formats.pieces import Rejected
from stages.formats.rows import read_row, shorten

IGNORED = -100


@dataclass(frozen=True)
class GivenTokens:
    """A row that needs no encoding.

    Attributes:
        ids: (tokens,) int32.
        trained: (tokens,) bool.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenizedFormat:
    """Rows of `input_ids`, `labels` (-100 where not trained), and perhaps `attention_mask` (0 where padded).

    Attributes:
        vocabulary: number of tokens that the tokenizer knows.
    """

    vocabulary: int

    def tokens(self, raw: bytes) -> list[GivenTokens]:
        """Return the tokens of a row, without padding.

        Raises:
            Rejected: a column is missing, or is not what it must be.
        """
        row = read_row(raw)
        if missing := [name for name in ("input_ids", "labels") if name not in row]:
            columns = ", ".join(sorted(map(str, row))) or "none"
            raise Rejected(
                "missing_field", f"no column {missing[0]!r}, which an empty `type` reads; the row has: {columns}"
            )
        ids, labels = _integers(row["input_ids"], "input_ids"), _integers(row["labels"], "labels")
        kept = _integers(row.get("attention_mask", [1] * len(ids)), "attention_mask") != 0
        if not len(ids) == len(labels) == len(kept):
            lengths = f"{len(ids)} input_ids, {len(labels)} labels, {len(kept)} in attention_mask"
            raise Rejected("wrong_length", f"as many labels as input_ids are needed; found {lengths}")
        return [checked_tokens(ids[kept], labels[kept], self.vocabulary)]


def checked_tokens(ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], vocabulary: int) -> GivenTokens:
    """Return ids and labels as tokens; each label must be the token itself, or -100. Raises Rejected."""
    if not len(ids):
        raise Rejected("no_text", "the row gives no token")
    if outside := ids[(ids < 0) | (ids >= vocabulary)].tolist():
        raise Rejected("unknown_token", f"token {outside[0]} is not one of the tokenizer's {vocabulary}")
    trained = labels != IGNORED
    if len(wrong := np.flatnonzero(trained & (labels != ids))):
        at = int(wrong[0])
        rule = "a label must be the token itself (not shifted), or -100"
        raise Rejected("wrong_label", f"{rule}; at {at} the token is {ids[at]} and the label {labels[at]}")
    return GivenTokens(ids.astype(np.int32), trained)


def _integers(value: Any, name: str) -> npt.NDArray[np.int64]:
    """Return a list of integers as an array."""
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise Rejected("wrong_type", f"{name} must be a list of integers, found {shorten(value)}")
    try:
        return np.array(value, np.int64)
    except OverflowError as error:
        raise Rejected("unknown_token", f"{name} holds a number that is no token: {error}") from error
