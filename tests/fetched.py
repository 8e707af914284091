"""A `fetch` artifact made of rows given in the test, and running `tokenize` on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.stage import Context, run_stage
from stages.tokenize import STAGE
from stages.tokenize.shard import Job, Outcome, Setup, ShardTokenizer
from stages.tokens import TokenRows, read_arrow
from tests.tiny import CHATML

REQUIRED: dict[str, Any] = {
    "learning_rate": 1e-4,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_rejected_ratio": 1.0,
}


def make_run(tokenizer: Path, dataset: dict[str, Any] | None = None, **keys: Any) -> RunConfig:
    datasets = [{"path": "rows.jsonl", "type": "chat_template", **(dataset or {})}]
    return RunConfig.model_validate({"base_model": str(tokenizer), "datasets": datasets, **REQUIRED, **keys})


def make_fetched(store: Store, datasets: Sequence[Iterable[Any]], rows_per_shard: int = 1000) -> Artifact:
    """Write an artifact as `fetch` does; a row is an object, or the bytes of a line."""
    sources = [[row if isinstance(row, bytes) else orjson.dumps(row) for row in rows] for rows in datasets]
    inputs = {
        "stage": "fetch",
        "rows": [[row.decode("latin-1") for row in rows] for rows in sources],
        "n": rows_per_shard,
    }
    facts: list[dict[str, Any]] = []
    with store.writer("fetch", inputs, {}) as writer:
        for number, rows in enumerate(sources):
            shards = []
            for index, first in enumerate(range(0, len(rows), rows_per_shard)):
                part = rows[first : first + rows_per_shard]
                name = f"{number:02d}/{index:05d}.parquet"
                with writer.create(name) as draft:
                    pq.write_table(pa.table({"row": pa.array(part, pa.large_binary())}), draft.path, compression="zstd")
                shards.append({"file": name, "first_row": first, "rows": len(part), "bytes": sum(map(len, part))})
            facts.append({"path": "rows.jsonl", "split": "train", "rows": len(rows), "source": {}, "shards": shards})
        return writer.commit(facts={"datasets": facts})


def tokenize(
    folder: Path,
    run: RunConfig,
    *datasets: Iterable[Any],
    rows_per_shard: int = 1000,
    progress: Callable[..., None] = lambda *_, **__: None,
) -> Artifact:
    """Run the real stage over rows, in a store in `folder`."""
    store = Store(folder / "store")
    fetched = make_fetched(store, datasets, rows_per_shard)
    context = Context(run, FileDigests(folder / "digests.sqlite"), progress)
    return run_stage(STAGE, context, {"fetch": fetched}, store).artifact


def tokenize_here(
    folder: Path, tokenizer: Path, run: RunConfig, rows: Sequence[Any], *, template: str | None = CHATML, eot: int = 2
) -> tuple[Outcome, list[tuple[list[int], list[int]]]]:
    """Tokenize one shard in this process, without the stage around it; return what it counted, and (ids, labels)."""
    variables = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    setup = Setup(run=run, folder=tokenizer, bos=1, eos=2, eot=(eot,), variables=variables, templates=(template,))
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
    pq.write_table(pa.table({"row": pa.array(lines, pa.large_binary())}), folder / "rows.parquet")
    job = Job(dataset=0, source=folder / "rows.parquet", target=folder / "rows.arrow", first_row=0)
    outcome = ShardTokenizer(setup).tokenize(job, lambda rows, tokens: None)
    table = read_arrow(job.target)
    pairs = zip(table["input_ids"].to_pylist(), table["trained"].to_pylist(), strict=True)
    return outcome, [(ids, [i if flag else -100 for i, flag in zip(ids, flags, strict=True)]) for ids, flags in pairs]


def rejected(artifact: Artifact) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in artifact.path("rejected.jsonl").read_bytes().splitlines()]


def tokenized_rows(artifact: Artifact) -> list[tuple[int, int, list[int], list[int]]]:
    """Return (data set, row number, input_ids, labels) of every tokenized row."""
    rows = TokenRows(artifact)
    return [(*rows.source(i), rows[i][0].tolist(), rows[i][1].tolist()) for i in range(len(rows))]
