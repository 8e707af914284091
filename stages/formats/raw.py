"""`type: input_output` (segments that are joined as they are) and `type: completion` (plain text)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.formats.pieces import NO_ENDS, EndRule, Piece, Rejected
from stages.formats.rows import shorten, text_field, text_of, type_name


@dataclass(frozen=True)
class SegmentsFormat:
    """Rows of `segments`: a list of {label, text}; those with a true label are trained."""

    train_on_inputs: bool
    ends: EndRule = NO_ENDS
    chunk: int | None = None

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return a piece for each segment. Raises as `RowFormat.pieces`."""
        segments = row.get("segments")
        if segments is None:
            raise Rejected("missing_field", "no column 'segments', or it is null")
        if not isinstance(segments, list):
            found = f"found {type_name(segments)}: {shorten(segments)}"
            raise Rejected("wrong_type", f"segments must be a list of {{label, text}}, {found}")
        return [self._piece(segment, f"segments.{number}") for number, segment in enumerate(segments)]

    def _piece(self, segment: Any, place: str) -> Piece:
        if not isinstance(segment, dict) or "label" not in segment or "text" not in segment:
            raise Rejected("missing_field", f"{place} must have label and text: {shorten(segment)}")
        if segment["label"] not in (True, False):
            raise Rejected("wrong_type", f"{place}.label must be true or false: {shorten(segment['label'])}")
        text = text_of(segment["text"], f"{place}.text")
        return Piece(text, trained=bool(segment["label"]) or self.train_on_inputs)


@dataclass(frozen=True)
class CompletionFormat:
    """Rows of plain text, all of it trained, cut into rows of `chunk` tokens."""

    column: str
    chunk: int | None
    ends: EndRule = NO_ENDS

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        """Return the text as one piece. Raises as `RowFormat.pieces`."""
        text = text_field(row, self.column)
        if not text:
            raise Rejected("no_text", f"{self.column} is empty")
        return [Piece(text, trained=True, special_tokens=True, ends=1)]
