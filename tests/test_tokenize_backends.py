"""The fast tokenizer library: used only where it is equal, and nothing of the result depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fetched
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from stages.formats import Piece, Span, Turn
from stages.formats.pieces import EndRule
from stages.tokenize.backends import FastBackend, HuggingFaceBackend, fast_backend
from stages.tokenize.encoder import Encoder, Tokenized
from stages.tokenize.parity import first_difference, hard_texts
from stages.tokenize.shard import Job, Setup, ShardTokenizer

NEVER = 10**9
ADDED = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(" \n\tab1é日🙂<|>", max_size=20),
    st.sampled_from(["<|im_end|>", "x<|im_end|> y", "e\u0301"]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def read(folder: Path) -> tuple[str, HuggingFaceBackend]:
    settings_ = (folder / "tokenizer.json").read_text()
    return settings_, HuggingFaceBackend(Tokenizer.from_str(settings_))


def added_ids(folder: Path) -> list[int]:
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return [vocabulary[token] for token in ADDED]


def with_beginning_and_normalizer(folder: Path, target: Path) -> Path:
    """Write the tokenizer once more: it composes characters, and puts a beginning in front and an end behind."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    ends = [(token, tokenizer.token_to_id(token)) for token in ADDED[:2]]
    tokenizer.post_processor = processors.TemplateProcessing(f"{ADDED[0]} $A {ADDED[1]}", special_tokens=ends)
    tokenizer.save(str(target / "tokenizer.json"))
    return target


def test_the_fast_library_gives_the_ids_of_the_reference(folder: Path) -> None:
    settings_, reference = read(folder)
    fast = fast_backend(settings_, reference, ADDED)
    assert fast is not None

    @settings(max_examples=200)
    @given(texts=st.lists(TEXTS, min_size=1, max_size=6))
    def check(texts: list[str]) -> None:
        assert first_difference(fast.encode, reference.encode, texts) is None

    check()


def test_a_tokenizer_with_one_token_more_is_found_out(folder: Path) -> None:
    settings_, reference = read(folder)
    other = Tokenizer.from_str(settings_)
    other.add_special_tokens([AddedToken("\u2028", normalized=False)])
    assert fast_backend(other.to_str(), reference, ADDED) is None
    assert fast_backend("{}", reference, ADDED) is None


def test_hard_texts_reach_into_every_plane_and_hold_every_added_token() -> None:
    texts = hard_texts(ADDED)
    planes = {ord(character) >> 16 for text in texts for character in text}
    assert planes == set(range(17))
    assert all(any(token in text for text in texts) for token in ADDED)


@pytest.mark.parametrize("kind", ["plain", "beginning and normalizer"])
def test_ids_and_masks_do_not_depend_on_the_library(folder: Path, tmp_path: Path, kind: str) -> None:
    chosen = folder if kind == "plain" else with_beginning_and_normalizer(folder, tmp_path)
    ids = added_ids(chosen)
    fast, reference = (Encoder(chosen, ids[0], ids[1], ids[1:2], fast_after=count) for count in (0, NEVER))

    @settings(max_examples=150)
    @given(
        rows=st.lists(st.lists(pieces(), min_size=1, max_size=3), min_size=1, max_size=4), ends=st.sampled_from(ENDS)
    )
    def check(rows: list[list[Piece]], ends: EndRule) -> None:
        form = _Form(ends)
        together = [encoder.encode(rows, form) for encoder in (fast, reference)]
        one, two = ([found.of(number) for number in range(len(rows))] for found in together)
        alone = [reference.encode([row], form).of(0) for row in rows]
        by_offsets = reference._by_offsets(rows, form)
        for found in (one, two, alone):
            for row, want in zip(found, by_offsets, strict=True):
                if isinstance(want, list):  # a trained end that the tokenizer adds has no offsets to prove it by
                    assert isinstance(row, list)
                    assert [as_lists(part) for part in row] == [as_lists(part) for part in want]

    check()


ENDS = [EndRule(eos, eot) for eos in ("none", "last") for eot in ("turn", "all", "last")]


class _Form:
    chunk: int | None = None

    def __init__(self, ends: EndRule) -> None:
        self.ends = ends

    def pieces(self, row: dict[str, Any]) -> list[Piece]:
        return []


def as_lists(row: Tokenized) -> tuple[list[int], list[bool]]:
    return row.ids.tolist(), row.trained.tolist()


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    """Draw a text with turns in it, or one that is trained as a whole, with or without special tokens."""
    words = draw(st.lists(TEXTS, max_size=4))
    turns, position = [], 0
    for word in words:
        turns.append(Turn(Span(position, position + len(word)), draw(st.booleans())))
        position += len(word) + draw(st.sampled_from([0, len("<|im_end|>")]))
    text = "".join(words) if not turns else _spread(words, turns)
    if draw(st.booleans()):
        return Piece(text, turns=tuple(turns))
    flags = [draw(st.booleans()) for _ in range(4)]
    return Piece(text, trained=flags[0], special_tokens=flags[1], continues=flags[2], ends=flags[3])


def _spread(words: list[str], turns: list[Turn]) -> str:
    text = ""
    for word, turn in zip(words, turns, strict=True):
        text = text if len(text) == turn.span.start else text + "<|im_end|>"
        text += word
    return text


def test_a_library_that_goes_wrong_is_given_up_and_the_shard_done_again(folder: Path, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "hello you"}]}
            for n in range(600)]  # fmt: skip
    run = fetched.make_run(folder)
    ids = added_ids(folder)
    setup = Setup(run=run, folder=folder, bos=ids[0], eos=ids[1], eot=(ids[1],), variables={}, templates=(tiny.CHATML,))
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"row": pa.array(list(map(orjson.dumps, rows)), pa.large_binary())}), source)
    right, wrong = ShardTokenizer(setup), ShardTokenizer(setup)
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    wrong._encoder._backend = FastBackend(other.to_str())
    counted: list[int] = []
    jobs = [Job(dataset=0, source=source, target=tmp_path / name, first_row=0) for name in ("right", "wrong")]
    expected = right.tokenize(jobs[0], lambda rows, tokens: None)
    outcome = wrong.tokenize(jobs[1], lambda rows, tokens: counted.append(rows))
    assert jobs[0].target.read_bytes() == jobs[1].target.read_bytes()
    assert expected.note == ""
    assert "differs from the reference" in outcome.note
    assert outcome.model_copy(update={"note": ""}) == expected
    assert sum(counted) == len(rows)
