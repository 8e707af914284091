"""From the start of a training to its first batch, for small and large data, and how long a step waits for its batch.

python infra/bench/load.py [--rows 1000000] [--tokens 60] [--steps 2]

Tokenized rows and packs are made up and lie in a store as the stages write them. `seconds_to_first_batch` counts from
the opening of the artifacts to the first batch, imports excluded; files are in the page cache. The step is forward and
backward of a random model of the shape of SmolLM2-135M on one thread, on packs of 512 tokens. All are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa

from configs.schema import RunConfig
from stages.artifacts import Store
from stages.artifacts.artifact import read_artifact
from stages.pack import pack_best_fit
from stages.tokens import TOKEN_SCHEMA, Packs, TokenRows, write_arrow

ROUNDS = 3
CAPACITY = 512
ROWS_PER_SHARD = 15_000
VOCABULARY = 49_152
BATCHES = 200


def main() -> None:
    """Print the figures as JSON, and a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=60, help="mean tokens of a row")
    parser.add_argument("--steps", type=int, default=2, help="steps of the model; 0 leaves them out")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for rows in (options.rows // 100, options.rows):
            folder = Path(name, str(rows))
            make(folder, rows, options.tokens)
            runs = [first_batch(folder) for _ in range(ROUNDS)]
            found[str(rows)] = {figure: round(median(run[figure] for run in runs), 5) for figure in runs[0]}
    largest = found[str(options.rows)]
    if options.steps:
        largest["seconds_per_step"] = round(step_seconds(options.steps), 3)
        largest["share_of_step"] = round(largest["seconds_per_batch"] / largest["seconds_per_step"], 6)
    print(json.dumps(found))
    told = f"; a batch takes {largest['share_of_step']:.3%} of a step" if options.steps else ""
    print(f"{options.rows:,} rows: {largest['seconds_to_first_batch']:.2f} s to the first batch{told}.")


def make(folder: Path, rows: int, mean_tokens: int) -> None:
    """Write artifacts of `tokenize` and `pack` with so many rows."""
    random, store = np.random.default_rng(0), Store(folder)
    lengths = np.clip(random.lognormal(np.log(mean_tokens) - 0.3, 0.8, rows), 4, CAPACITY).astype(np.int32)
    with store.writer("tokenize", {"rows": rows}, {}) as writer:
        listed = []
        for number, first in enumerate(range(0, rows, ROWS_PER_SHARD)):
            part = lengths[first : first + ROWS_PER_SHARD]
            offsets = np.concatenate([[0], np.cumsum(part)]).astype(np.int32)
            ids = random.integers(5, VOCABULARY, offsets[-1], np.int32)
            columns = [
                pa.ListArray.from_arrays(offsets, pa.array(ids)),
                pa.ListArray.from_arrays(offsets, pa.array(ids % 2 == 0)),
                pa.array(np.zeros(len(part), np.int32)),
                pa.array(np.arange(first, first + len(part))),
            ]
            file = f"00/{number:05d}.arrow"
            with writer.create(file) as draft:
                write_arrow(draft.path, pa.Table.from_arrays(columns, schema=TOKEN_SCHEMA))
            listed.append({"file": file, "dataset": 0, "rows": len(part), "tokens": int(offsets[-1])})
        tokens = writer.commit(facts={"shards": listed})
    packed, order = pack_best_fit(lengths, CAPACITY)
    with store.writer("pack", {"rows": rows}, {}) as writer:
        with writer.create("train.arrow") as draft:
            Packs(packed, order, np.zeros(rows, np.int32), lengths[order]).write(draft.path)
        packs = writer.commit(facts={})
    (folder / "made.json").write_text(json.dumps([str(tokens.folder), str(packs.folder)]))


def first_batch(folder: Path) -> dict[str, float]:
    """Return the seconds to the first batch, and those of a batch after it."""
    from stages.train.balance import pair_cost_of, sequence_costs
    from stages.train.data import Batches, BatchForm, RankPasses
    from stages.train.schedule import plan_schedule

    tokens, packs = (Path(path) for path in json.loads((folder / "made.json").read_text()))
    settings = {"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}], "learning_rate": 1e-4}
    sizes = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "sample_packing": True}
    run = RunConfig.model_validate({**settings, **sizes})
    started = time.process_time()
    artifact = read_artifact(tokens)
    assert artifact is not None
    rows, index = TokenRows(artifact), Packs.read(packs / "train.arrow")
    costs = sequence_costs(index, pair_cost_of({}))
    schedule = plan_schedule(run, sequences=len(index), eval_sequences=0, world_size=1, costs=costs)
    batches = Batches(rows, index, BatchForm(pad_id=0))
    passes = iter(RankPasses(schedule, passes_per_step=1, rank=0, world_size=1))
    batches.__getitems__(next(passes))
    first = time.process_time() - started
    started = time.process_time()
    made = sum(1 for sequences in islice(passes, BATCHES) if batches.__getitems__(sequences))
    return {"seconds_to_first_batch": first, "seconds_per_batch": (time.process_time() - started) / made}


def step_seconds(steps: int) -> float:
    """Return the seconds of the fastest forward and backward pass of a model of the shape of SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=3, **sizes))
    ids, seconds = torch.randint(5, VOCABULARY, (1, CAPACITY)), []
    for _ in range(steps):
        started = time.process_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
