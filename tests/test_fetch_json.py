"""Rows of JSON files, whatever stands in them and wherever the reads cut them."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.fetch.json_rows import json_rows, line_rows

TEXT = st.text(st.sampled_from('ab"\\[]{},: \n\t\u2028é'), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=6)
PLAIN = st.dictionaries(TEXT, st.integers() | TEXT | st.dictionaries(TEXT, st.lists(TEXT), max_size=2), max_size=2)


CHUNKS = st.sampled_from([1, 3, 1 << 20])
few = settings(max_examples=50)


def read(text: str, chunk: int = 1 << 20) -> list[Any]:
    return [json.loads(row) for row in json_rows(io.BytesIO(text.encode()), chunk)]


@few
@given(ROWS, st.sampled_from([None, 0, 2]), st.booleans(), CHUNKS)
def test_lists(rows: list[Any], indent: int | None, ascii_only: bool, chunk: int) -> None:
    assert read(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), chunk) == rows


@few
@given(ROWS, PLAIN, PLAIN, st.sampled_from([None, 2]), CHUNKS)
def test_objects_with_one_list(rows: list[Any], before: Any, after: Any, indent: int | None, chunk: int) -> None:
    document = {**before, "the rows": rows} | {f"after {key}": value for key, value in after.items()}
    assert read(json.dumps(document, indent=indent), chunk) == rows


@few
@given(ROWS.filter(lambda rows: len(rows) != 1), CHUNKS)
def test_lines(rows: list[Any], chunk: int) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert read(text, chunk) == rows
    assert [json.loads(row) for row in line_rows(io.BytesIO(text.encode()))] == rows


def test_a_single_object_is_a_row_unless_it_holds_one_list() -> None:
    assert read('{"a": 1}') == [{"a": 1}]
    assert read('{"a": [1], "b": [2]}\n') == [{"a": [1], "b": [2]}]
    assert read('{"version": 1, "data": [{"a": 1}]}\n') == [{"a": 1}]


@few
@given(ROWS.filter(bool), CHUNKS, st.data())
def test_a_cut_off_list_is_never_taken_for_a_shorter_one(rows: list[Any], chunk: int, data: st.DataObject) -> None:
    text = json.dumps(rows, ensure_ascii=True)
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(ValueError, match="ends in the middle"):
        read(cut, chunk)
