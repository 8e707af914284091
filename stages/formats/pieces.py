"""What a row becomes before it is tokenized: pieces of text, and which characters of them are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from configs.schema import Train

FILTERED = "filtered"
"""The reason of rows that a format of the user leaves out on purpose."""


class Rejected(Exception):  # noqa: N818  it is the verdict on a row, not a failure of the program
    """A row that cannot be used.

    Attributes:
        reason: short and stable, for counting: `missing_field`.
        detail: for people: "messages.3 has no content".
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Span(NamedTuple):
    """Characters [start, end) of a piece."""

    start: int
    end: int


class Part(NamedTuple):
    """Characters that are trained within words of a turn of which not all are."""

    span: Span
    words: Span


class Turn(NamedTuple):
    """A turn of a conversation whose place in the text is known.

    Attributes:
        span: what the turn says; an end token is looked for behind it.
        trained: whether the turn is trained.
        parts: if not None, only these are trained, not the whole span.
    """

    span: Span
    trained: bool
    parts: tuple[Part, ...] | None = None


class Piece(NamedTuple):
    """A text that is encoded by itself.

    Attributes:
        text: what is encoded.
        trained: True trains every token of it.
        turns: trains the tokens of these turns, by the rules of `EndRule`.
        special_tokens: encode with the tokenizer's own special tokens (a beginning of sequence, if it adds one).
        continues: drop a beginning of sequence in front: this piece follows another one.
        ends: ends of sequence behind the text, one of which may be there already; none behind an empty text.
            They are trained if anything of the piece may be.
        plain: spellings of control tokens that are encoded as plain text.
    """

    text: str
    trained: bool = False
    turns: tuple[Turn, ...] = ()
    special_tokens: bool = False
    continues: bool = False
    ends: int = 0
    plain: tuple[Span, ...] = ()


@dataclass(frozen=True)
class EndRule:
    """Which end tokens are trained: those behind "all" turns, behind a trained "turn", the "last" one, or "none"."""

    eos: Train = "none"
    eot: Train = "none"


NO_ENDS = EndRule()


class RowFormat(Protocol):
    """How the rows of one data set become pieces.

    Attributes:
        ends: which end tokens behind turns are trained.
        chunk: if not None, a row is cut into rows of this many tokens.
    """

    @property
    def ends(self) -> EndRule: ...  # noqa: D102

    @property
    def chunk(self) -> int | None: ...  # noqa: D102

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return the pieces of a row, in order.

        Raises:
            Rejected: the row cannot be used.
        """
