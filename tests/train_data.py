"""Small tokenize and pack artifacts in a real store, for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.stage import Context
from stages.tokens import TOKEN_SCHEMA, Packs, write_arrow
from tests.tiny import build_model

Row = tuple[list[int], list[bool]]


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Rows of random tokens (ids 5 to 299) of which the last part, at least two tokens, is trained."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        prompt = int(random.integers(0, length - 1))
        ids = random.integers(5, 300, length).tolist()
        rows.append((ids, [position >= prompt for position in range(length)]))
    return rows


def write_tokens(
    store: Store, rows: Sequence[Row], tokenizer: Path, shards: int = 2, datasets: Sequence[int] = ()
) -> Artifact:
    with store.writer("tokenize", {"rows": rows, "datasets": list(datasets)}, {}) as writer:
        listed = []
        for shard, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
            name = f"00/{shard:05d}.arrow"
            columns = [
                [rows[i][0] for i in part],
                [rows[i][1] for i in part],
                [datasets[i] if datasets else 0 for i in part],
                part.tolist(),
            ]
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, TOKEN_SCHEMA, strict=True)]
            with writer.create(name) as draft:
                write_arrow(draft.path, pa.Table.from_arrays(arrays, schema=TOKEN_SCHEMA))
            tokens = sum(len(rows[i][0]) for i in part)
            listed.append({"file": name, "dataset": 0, "rows": len(part), "tokens": tokens})
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            writer.take(tokenizer / name, f"tokenizer/{name}")
        ids = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        return writer.commit(facts={"shards": listed, "tokenizer": ids})


def packs_of(sequences: Sequence[Sequence[int]], rows: Sequence[Row]) -> Packs:
    """Sequences given as lists of whole rows."""
    flat = [row for sequence in sequences for row in sequence]
    return Packs(
        offsets=np.cumsum([0, *map(len, sequences)]).astype(np.int64),
        rows=np.asarray(flat, np.int64),
        starts=np.zeros(len(flat), np.int32),
        lengths=np.asarray([len(rows[row][0]) for row in flat], np.int32),
    )


def write_packs(store: Store, train: Packs, evaluation: Packs) -> Artifact:
    inputs = {name: packs.rows.tolist() for name, packs in (("train", train), ("eval", evaluation))}
    with store.writer("pack", inputs, {}) as writer:
        for name, packs in (("train", train), ("eval", evaluation)):
            with writer.create(f"{name}.arrow") as draft:
                packs.write(draft.path)
        return writer.commit(facts={"sequence_len": 64})


class Bench:
    """A folder with a tiny base model, a store, and the artifacts that training needs."""

    def __init__(
        self,
        folder: Path,
        lengths: Sequence[int],
        sequences: Sequence[Sequence[int]],
        held_out: int = 2,
        datasets: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        self.model = build_model(folder / "base")
        self.digests = FileDigests(folder / "digests.sqlite")
        self.store = Store(folder / "store", self.digests)
        self.rows = random_rows(lengths)
        last = len(sequences) - held_out
        self.train_packs = packs_of(sequences[:last], self.rows)
        self.eval_packs = packs_of(sequences[last:], self.rows)
        self.upstream = {
            "tokenize": write_tokens(self.store, self.rows, self.model, datasets=datasets),
            "pack": write_packs(self.store, self.train_packs, self.eval_packs),
        }

    def run(self, **overrides: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "base_model": str(self.model),
            "datasets": [{"path": "unused.jsonl", "type": "chat_template"}],
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
            "bf16": False,
            "launcher": {"threads": 1},
            "warmup_steps": 0,
        }
        return RunConfig.model_validate({**settings, **overrides})

    def context(self, run: RunConfig, **services: Any) -> Context:
        return Context(run, self.digests, **services)
