"""Measure tokenizing against the bare Hugging Face tokenizer, on one core, in CPU seconds.

python infra/bench/tokenize_speed.py --data chats.jsonl --tokenizer FOLDER [--rows 10000] [--type alpaca]

Ours reads the raw rows from a shard, parses, renders, encodes, proves the masks and writes Arrow. The bare tokenizer is
given the finished texts in memory, and keeps nothing. Both do the same rows in turn, three times; medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from configs.schema import RunConfig
from stages.artifacts import FileDigests
from stages.base_model import find_tokenizer
from stages.formats import Rejected, make_format
from stages.formats.rows import read_row
from stages.stage import Context
from stages.templates.choice import ChatTemplate
from stages.tokenize.shard import Job, Outcome, Setup, ShardTokenizer
from stages.tokenize.stage import resolve_tokenizer, setup_of

ROUNDS = 3
WARM_UP_ROWS = 2500
"""The fast library is loaded only after so many texts; loading is measured apart."""


def main() -> None:
    """Print the figures as JSON, and a sentence."""
    options = _options()
    raw = Path(options.data).read_bytes().splitlines()[: options.rows]
    with tempfile.TemporaryDirectory() as folder:
        setup = _setup(options, Path(folder) / "tokenizer")
        texts = _texts(setup, raw)
        bare = Tokenizer.from_file(str(setup.folder / "tokenizer.json"))
        jobs = [_job(Path(folder), raw, "all"), _job(Path(folder), raw[:WARM_UP_ROWS], "first")]
        shards = ShardTokenizer(setup)
        warm_up = _seconds(lambda: shards.tokenize(jobs[1], _ignore))
        outcomes: list[Outcome] = []
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(_seconds(lambda: outcomes.append(shards.tokenize(jobs[0], _ignore))))
            theirs.append(_seconds(lambda: bare.encode_batch(texts, add_special_tokens=False)))
    megabytes = sum(map(len, raw)) / 1e6
    figures = {
        "rows": len(raw),
        "megabytes": round(megabytes, 1),
        "tokens": outcomes[0].tokens,
        "ours_cpu_seconds": round(median(ours), 3),
        "bare_tokenizer_cpu_seconds": round(median(theirs), 3),
        "warm_up_cpu_seconds": round(warm_up, 3),
        "ours_megabytes_per_second": round(megabytes / median(ours), 1),
        "ours_rows_per_second": round(len(raw) / median(ours)),
        "ratio": round(median(theirs) / median(ours), 1),
    }
    print(json.dumps(figures))
    print(
        f"Tokenizing with proven masks takes {median(ours):.2f} CPU seconds for {megabytes:.1f} MB, "
        f"{figures['ratio']} times less than the bare tokenizer needs for the finished texts ({median(theirs):.2f})."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--type", default="chat_template")
    parser.add_argument("--rows", type=int, default=10_000)
    return parser.parse_args()


def _setup(options: argparse.Namespace, folder: Path) -> Setup:
    values = {"base_model": options.tokenizer, "datasets": [{"path": options.data, "type": options.type}]}
    values |= {"output_dir": "out", "learning_rate": 1e-4, "micro_batch_size": 1, "num_epochs": 1, "sequence_len": 2048}
    run = RunConfig.model_validate({**values, "gradient_accumulation_steps": 1})
    context = Context(run, FileDigests(folder.parent / "digests.sqlite"))
    return setup_of(context, resolve_tokenizer(run, find_tokenizer(run), folder), folder)


def _texts(setup: Setup, raw: list[bytes]) -> list[str]:
    text = setup.templates[0]
    form = make_format(setup.run, 0, None if text is None else ChatTemplate(text, setup.variables))
    texts = []
    for row in raw:
        try:
            texts += [piece.text for piece in form.pieces(read_row(row))]
        except Rejected:
            pass
    return texts


def _job(folder: Path, raw: list[bytes], name: str) -> Job:
    source = folder / f"{name}.parquet"
    pq.write_table(pa.table({"row": pa.array(raw, pa.large_binary())}), source, compression="zstd")
    return Job(dataset=0, source=source, target=folder / f"{name}.arrow", first_row=0)


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _ignore(rows: int, tokens: int) -> None:
    pass


if __name__ == "__main__":
    main()
