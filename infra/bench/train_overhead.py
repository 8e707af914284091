"""What a training costs beside forward and backward: its tokens/s against a bare loop over the same model and batches.

python infra/bench/train_overhead.py --model FOLDER [--length 1024] [--steps 5] [--rounds 3] [--lora]

    ours      a training process: Trainer, batches, clipping, AdamW, metrics, health
    bare      forward and backward of the same model with the same attention and loss; no optimizer, nothing else
    plain     forward and backward of the model as transformers has it: SDPA with a block mask, logits of all positions

Every case takes its steps in a process of its own, one thread, in turn, `--rounds` times. Time is that of the
processor, so that other processes of the machine do not count; the speed of a round is the median over steps but the
first. Prints one JSON document and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

CASES = ("ours", "bare", "plain")
SHARES = (0.35, 0.3, 0.2, 0.15)
"""Lengths of a sequence's samples: rows of SFT are short and uneven."""


def main() -> None:
    """Run every case in turn and compare, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of a small causal language model")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a step, which is one packed sequence")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    if options.case:
        with tempfile.TemporaryDirectory() as folder:
            seconds = MEASURES[options.case](prepare(Path(folder), options))
        print(options.length / median(seconds[1:]))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *sys.argv[1:], "--case"]
    rounds = [
        {case: float(subprocess.check_output([*command, case], env=environment).split()[-1]) for case in CASES}
        for _ in range(options.rounds)
    ]
    shares = {case: median(one["ours"] / one[case] for one in rounds) for case in CASES}
    print(json.dumps({"options": {**vars(options), "model": str(options.model)}, "rounds": rounds}, indent=2))
    print(f"{shares['bare']:.1%} of the bare forward and backward pass, {shares['plain']:.2f} times the plain one")


def prepare(folder: Path, options: argparse.Namespace) -> Any:
    """Return a training of full sequences of random tokens."""
    from configs.schema import RunConfig
    from stages.train.job import Job
    from tests.train_data import FileDigests, Store, packs_of, random_rows, write_packs, write_tokens

    lora = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
    run = RunConfig.model_validate(
        {
            "base_model": str(options.model),
            "datasets": [{"path": "unused.jsonl", "type": "completion"}],
            "sequence_len": options.length,
            "sample_packing": True,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_steps": options.steps,
            "learning_rate": 1e-5,
            "logging_steps": 1,
            "bf16": False,
            "save_strategy": "no",
            "launcher": {"processes": 1, "threads": 1},
            **(lora if options.lora else {}),
        }
    )
    rows = random_rows([int(share * options.length) for share in SHARES] * options.steps)
    store, samples = Store(folder / "store", FileDigests(folder / "digests.sqlite")), len(SHARES)
    packs = packs_of([range(n * samples, (n + 1) * samples) for n in range(options.steps)], rows)
    (folder / "work").mkdir()
    names = {"key": "bench", "run": run, "work": folder / "work", "model_name": "base", "model_commit": None}
    tokens = write_tokens(store, rows, options.model).folder
    artifacts = {"tokens": tokens, "packs": write_packs(store, packs, packs_of([], rows)).folder}
    return Job(model=options.model, precision="fp32", tf32=False, world_size=1, **names, **artifacts)


def measure_training(job: Any) -> list[float]:
    """Return the seconds of each step of the training, from record to record."""
    from stages.train import worker
    from stages.train.stopping import StopFlag
    from tests.conftest import free_port

    marks = []

    class Clock(worker.Recorder):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            super().on_train_begin(*args, **kwargs)
            marks.append(time.process_time())

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            super().on_log(*args, **kwargs)
            marks.append(time.process_time())

    worker.Recorder = Clock  # type: ignore[misc]
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(group, MASTER_PORT=str(free_port()), GLOO_SOCKET_IFNAME="lo")
    assert worker.train(job, StopFlag()) == 0
    return [end - begin for begin, end in pairwise(marks[: job.run.max_steps + 1])]


def measure_loop(job: Any, *, as_ours: bool) -> list[float]:
    """Return the seconds of forward and backward of each step."""
    import torch

    from stages.tokens import Packs, TokenRows
    from stages.train.data import Batches
    from stages.train.loss import LossByChunks
    from stages.train.model import load_model
    from stages.train.segments import attend_by_sample
    from stages.train.worker import batch_form, open_artifact

    torch.set_num_threads(1)
    tokens = open_artifact(job.tokens)
    model: Any = load_model(job, tokens.facts["tokenizer"]["vocab_size"])
    model.config.use_cache = False
    if as_ours:
        attend_by_sample(model)
        assert LossByChunks.of(model) is not None
    batches = Batches(TokenRows(tokens), Packs.read(job.packs / "train.arrow"), batch_form(job, tokens, model))
    model.train()
    seconds = []
    for step in range(job.run.max_steps):
        batch, started = batches.__getitems__([step]), time.process_time()
        model(**batch, num_items_in_batch=(batch["labels"][:, 1:] != -100).sum()).loss.backward()
        seconds.append(time.process_time() - started)
        model.zero_grad()
    return seconds


MEASURES = {
    "ours": measure_training,
    "bare": lambda job: measure_loop(job, as_ours=True),
    "plain": lambda job: measure_loop(job, as_ours=False),
}

if __name__ == "__main__":
    main()
