"""Rows of JSON files as they stand there: the lines of JSON Lines, the elements of a list; never altered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

CHUNK = 1 << 20  # bytes
LONGEST_FIRST_LINE = 64 << 20  # bytes; a longer first line is taken for a whole document
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
STRUCTURE = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL
)  # a lone " begins a string that a chunk cuts
DEPTH = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}

Pieces = Iterator[tuple[bytes, bytes]]


def line_rows(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that are not blank, without their ends.

    Raises:
        ValueError: the text is UTF-16.
    """
    first = stream.readline()
    if first.startswith(UTF16_MARKS):
        raise ValueError("it is UTF-16; save it as UTF-8")
    for line in chain([first.removeprefix(BYTE_ORDER_MARK)], stream):
        row = line.rstrip(b"\r\n")
        if row and not row.isspace():
            yield row


def json_rows(stream: BinaryIO, chunk: int = CHUNK) -> Iterator[bytes]:
    r"""Yield the JSON text of each row of a file of which only is known that it is JSON.

    `{"a": 1}\n{"a": 2}` (one row a line), `[{"a": 1}, {"a": 2}]` and `{"version": 1, "data": [{"a": 1}, {"a": 2}]}`
    (an object with one list) give the same two rows. An element of a list that is not JSON is given as it is.

    Args:
        stream: the bytes of the file.
        chunk: bytes that are read at a time.

    Raises:
        ValueError: the list is not complete, or there is none, or there are several; or the text is UTF-16.
    """
    first = stream.readline(chunk).removeprefix(BYTE_ORDER_MARK)
    if first.startswith(UTF16_MARKS):
        raise ValueError("it is UTF-16; save it as UTF-8")
    while first and first.isspace():
        first = stream.readline(chunk)
    if first.lstrip().startswith(b"{") and not first.endswith(b"\n"):
        first += stream.readline(LONGEST_FIRST_LINE)
    if not _is_document(first):
        rest = line_rows(stream)
        second = next(rest, None)
        if second is not None or not _holds_one_list(first):
            yield from chain([first.rstrip(b"\r\n")] if first else [], [] if second is None else [second], rest)
            return
    yield from _elements(_pieces(first, stream, chunk))


def _is_document(first: bytes) -> bool:
    """Return whether a first line is a list, or begins an object that goes on in the next line."""
    tokens = STRUCTURE.findall(first)
    is_open = b'"' in tokens or sum(DEPTH.get(token, 0) for token in tokens) > 0
    return first.lstrip().startswith(b"[") or (first.lstrip().startswith(b"{") and is_open)


def _holds_one_list(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and sum(isinstance(item, list) for item in value.values()) == 1


def _pieces(head: bytes, stream: BinaryIO, chunk: int) -> Pieces:
    """Yield (bytes before, token) for each string, bracket and comma; at the end (rest, b"")."""
    buffer, start = head, 0
    while True:
        for match in STRUCTURE.finditer(buffer, start):
            if match[0] == b'"':
                break
            yield buffer[start : match.start()], match[0]
            start = match.end()
        more = stream.read(chunk)
        if not more:
            yield buffer[start:], b""
            return
        buffer, start = buffer[start:] + more, 0


def _elements(pieces: Pieces) -> Iterator[bytes]:
    """Yield the elements of the list that the document is, or that is the only one in it."""
    before, opening = next(pieces)
    if before.strip() or opening not in (b"[", b"{"):
        raise ValueError("it begins with neither a list nor an object")
    yield from _list(pieces) if opening == b"[" else _only_list(pieces)
    rest, token = next(pieces)
    if token or rest.strip():
        raise ValueError(
            f"after its end there is more ({(rest.strip() + token)[:20]!r}); several documents in one file must be one "
            "per line (.jsonl)"
        )


def _only_list(pieces: Pieces) -> Iterator[bytes]:
    """Yield the elements of the one list that is a value of the object whose opening brace was just read."""
    key, found = b"", b""
    for _, token in pieces:
        if token.startswith(b'"'):
            key = token
        elif token == b"[" and found:
            raise ValueError(f"it holds several lists, {found.decode()} and {key.decode()}; expected one list of rows")
        elif token == b"[":
            found = key
            yield from _list(pieces)
        elif token == b"{":
            _skip(pieces)
        elif token in (b"}", b"]", b""):
            break
    if token != b"}":
        raise ValueError("it ends in the middle of an object")
    if not found:
        raise ValueError("it is an object without a list; expected a list of rows, or an object with one list")


def _list(pieces: Pieces) -> Iterator[bytes]:
    """Yield the elements of the list whose opening bracket was just read."""
    parts: list[bytes] = []
    depth, number = 0, 0
    for before, token in pieces:
        parts.append(before)
        if depth == 0 and token in (b",", b"]"):
            element = b"".join(parts).strip()
            parts.clear()
            if element:
                yield element
                number += 1
            elif token == b"," or number:
                raise ValueError(f"between two commas, after element {number} of its list, there is nothing")
            if token == b"]":
                return
        elif token:
            parts.append(token)
            depth += DEPTH.get(token, 0)
        if depth < 0 or not token:
            raise ValueError(f"it ends in the middle of its list, after element {number}")


def _skip(pieces: Pieces) -> None:
    """Read to the end of the object whose opening brace was just read."""
    depth = 1
    for _, token in pieces:
        depth += DEPTH.get(token, 0)
        if not depth or not token:
            return
