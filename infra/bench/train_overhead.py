"""What `sft run` costs beside forward and backward: its tokens/s against a bare loop over the same model and batches.

python infra/bench/train_overhead.py --model FOLDER [--length 512] [--micro 2] [--steps 6] [--rounds 3] [--lora]

    ours      `sft run --until train`: Trainer, clipping, AdamW, metrics, health
    bare      forward and backward of the same model with the same attention and loss; no optimizer, nothing else
    plain     forward and backward of the model as transformers has it: SDPA with a block mask, logits of all positions

Every case takes its steps in a process of its own, one thread, in turn, `--rounds` times; the speed of a round is the
median over steps but the first. Prints one JSON document and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from compare_trl import measure_ours, write_rows

ROOT = Path(__file__).parents[2]
BARE = ("bare", "plain")


def main() -> None:
    """Run every case in turn and compare, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small causal language model with a chat template")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro", type=int, default=2, help="packed rows of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--case", choices=BARE)
    parser.add_argument("--folder", type=Path, help="where `ours` left its artifacts, for a case that is named")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(loop(options.case, options.folder, options.steps)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), options.length)
        rounds = [one_round(Path(name), options, environment) for _ in range(options.rounds)]
    shares = {case: median(one["ours"] / one[case] for one in rounds) for case in BARE}
    print(json.dumps({"options": {**vars(options), "folder": None}, "tokens_per_second": rounds}, indent=2))
    print(f"{shares['bare']:.1%} of the bare forward and backward pass, {shares['plain']:.2f} times the plain one")


def one_round(folder: Path, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, float]:
    """Return tokens/s of each case, taken one after the other."""
    speeds = {"ours": median(measure_ours(folder, vars(options), environment)["tokens_per_second"])}
    newest = max(folder.glob("*/store"), key=lambda store: store.stat().st_mtime).parent
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(newest), "--case"]
    for case in BARE:
        speeds[case] = json.loads(subprocess.check_output([*command, case], cwd=ROOT, env=environment))
    return {case: round(speed, 1) for case, speed in speeds.items()}


def loop(case: str, folder: Path, steps: int) -> float:
    """Return the median tokens/s of forward and backward over the steps that `ours` trained, but the first."""
    sys.path.insert(0, str(ROOT))
    import torch

    from configs.load import load_run
    from stages.tokens import Packs, TokenRows
    from stages.train.balance import training_costs
    from stages.train.data import Batches
    from stages.train.job import Job
    from stages.train.loss import CHECKED_TOKENS, LossByChunks
    from stages.train.model import load_model
    from stages.train.schedule import plan_schedule
    from stages.train.segments import attend_by_sample
    from stages.train.worker import batch_form, open_artifact

    torch.set_num_threads(1)
    run = load_run(folder / "run.yaml").run
    [tokenized], [packed] = ([*(folder / "store" / stage).iterdir()] for stage in ("tokenize", "pack"))
    model_folder = Path(run.base_model)
    names = {"key": "bench", "run": run, "work": folder, "model_name": "base", "model_commit": None}
    settings = {"precision": "fp32", "tf32": False, "world_size": 1}
    job = Job(tokens=tokenized, packs=packed, model=model_folder, **names, **settings)
    tokens, packs = open_artifact(tokenized), Packs.read(packed / "train.arrow")
    model: Any = load_model(job, tokens.facts["tokenizer"]["vocab_size"])
    model.config.use_cache = False
    if case == "bare":
        attend_by_sample(model)
    batches = Batches(TokenRows(tokens), packs, batch_form(job, tokens, model))
    if case == "bare":
        chunks = LossByChunks.of(model)
        assert chunks is not None
        small = batches.collate([batches.beginning(0, samples=1, tokens=CHECKED_TOKENS)])
        assert chunks.is_right(model, small)
    costs = training_costs(run, packs, model_folder)
    schedule = plan_schedule(run, sequences=len(packs), eval_sequences=0, world_size=1, costs=costs)
    model.train()
    speeds = []
    for sequences, _ in zip(schedule.step_sequences(), range(steps), strict=False):
        batch, started = batches.__getitems__(sequences.tolist()), time.perf_counter()
        model(**batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum()).loss.backward()
        speeds.append(batches.tokens(sequences) / (time.perf_counter() - started))
        model.zero_grad()
    return median(speeds[1:])


if __name__ == "__main__":
    main()
