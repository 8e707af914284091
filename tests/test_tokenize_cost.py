"""What a row costs in calls of Python, which are the same on every machine: few, and none for each of its tokens."""

from __future__ import annotations

import cProfile
from pathlib import Path
from typing import Any

import fetched
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from tokenizers import Tokenizer

from stages.tokenize.encoder import FAST_AFTER
from stages.tokenize.shard import Job, Setup, ShardTokenizer

ROWS = 512
MOST_CALLS = {"chat_template": 60, "alpaca": 55}
"""For a row of two turns; 43 and 43 where it was written."""


def calls_of_a_row(folder: Path, tokenizer: Path, kind: str, words: int) -> float:
    """Return the calls that one more row costs: what a shard costs in itself is left out."""
    run = fetched.make_run(tokenizer, {"type": kind})
    ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id
    bos, eos = ids("<|im_start|>"), ids("<|im_end|>")
    template = tiny.CHATML if kind == "chat_template" else None
    setup = Setup(run=run, folder=tokenizer, bos=bos, eos=eos, eot=(eos,), variables={}, templates=(template,))
    shards, calls = ShardTokenizer(setup), []
    for rows in (FAST_AFTER + 1, ROWS, 3 * ROWS):  # the first makes what is made once, the fast library as well
        job = write_job(folder, kind, words, rows)
        profile = cProfile.Profile()
        profile.enable()
        outcome = shards.tokenize(job, lambda rows, tokens: None)
        profile.disable()
        assert outcome.rows == rows
        assert outcome.tokens > rows * words
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    return (calls[2] - calls[1]) / (2 * ROWS)


def write_job(folder: Path, kind: str, words: int, rows: int) -> Job:
    text = "the quick brown fox " * words
    row: dict[str, Any] = {"instruction": text, "output": text}
    if kind == "chat_template":
        row = {"messages": [{"role": role, "content": text} for role in ("user", "assistant")]}
    source = folder / f"{kind}-{words}-{rows}.parquet"
    pq.write_table(pa.table({"row": pa.array([orjson.dumps(row)] * rows, pa.large_binary())}), source)
    return Job(dataset=0, source=source, target=folder / "out.arrow", first_row=0)


@pytest.mark.parametrize("kind", MOST_CALLS)
def test_a_row_costs_few_calls_and_its_tokens_none(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    short, long = (calls_of_a_row(tmp_path, tokenizer, kind, words) for words in (2, 20))
    assert short < MOST_CALLS[kind]
    assert long < short + 5
