"""Compare input ids and labels with axolotl's own, over random rows and options: every named template, every type.

python infra/bench/compare_axolotl.py --python AXOLOTL_ENV/bin/python --tokenizer FOLDER [--cases 200] [--rows 20]

axolotl 0.21 needs an environment of its own (Python 3.11 will do):

    pip install torch==2.13.0
    pip install "huggingface_hub>=1.31.0" peft==0.21.2 tokenizers==0.23.3 transformers==5.20.1 accelerate==1.15.0 \
        datasets==5.0.1 trl==1.14.1 numba numpy pydantic==2.13.5 addict fire PyYAML==6.0.3 requests einops colorama \
        click typer==0.25.1 scipy art python-dotenv==1.0.1 zstandard==0.22.0 packaging==26.0 posthog==6.7.11 \
        sentencepiece psutil nvidia-ml-py==12.560.30 py-cpuinfo pillow mistral-common==1.12.0 tensorboard fastcore wandb
    pip install --no-deps --ignore-requires-python axolotl==0.21.0 axolotl-contribs-lgpl==0.0.7 \
        axolotl-contribs-mit==0.0.6 evaluate==0.4.1 schedulefree==1.4.1 bitsandbytes==0.50.2 torchao==0.18.0 \
        liger-kernel==0.8.4

A case is a data set with a type, a template and options drawn at random. axolotl's strategy is what its own
`get_dataset_wrapper` makes of the validated configuration; ours is `sft inspect --jsonl`. Prints JSON: cases, rows,
how many are identical, how many differ by each reason that `infra/docs/from-axolotl.md` gives, and all others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from compare_axolotl_rows import Case, Seen, Tokens, documented, draw_runs
from tokenizers import Tokenizer

BASE = {
    "learning_rate": 1e-4,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_rejected_ratio": 1.0,
    "template_date": "2026-01-31",
    "dataset_num_proc": 1,
}
SHOWN = 5

Ours = tuple[list[list[list[Tokens]]], dict[tuple[int, int], str]]
"""The rows of each row of each case, and (case, row) -> reason of each that is rejected."""


def main() -> None:
    """Print the counts as JSON, and a sentence."""
    options = _options()
    counts: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    runs = list(draw_runs(options.seed, options.cases, options.rows))
    with tempfile.TemporaryDirectory() as name:
        theirs = _theirs(options, Path(name), runs)
        for number, (keys, cases) in enumerate(runs):
            ours = _ours(options, Path(name) / f"run{number}", keys, cases)
            for case, seen in zip(cases, _pairs(options, ours, theirs[number]), strict=True):
                verdicts = [_verdict(case, row, one) for row, one in enumerate(seen)]
                counts.update(verdicts)
                shown += (
                    {"keys": keys, "dataset": case.dataset, "row": case.rows[row], "ours": seen[row].ours}
                    | {"rejected": seen[row].rejected, "theirs": seen[row].theirs}
                    for row, verdict in enumerate(verdicts)
                    if verdict == "other"
                )
    total = sum(counts.values())
    known = {name: count for name, count in sorted(counts.items()) if name not in ("identical", "other")}
    figures = {
        "cases": sum(len(cases) for _, cases in runs),
        "rows": total,
        "identical": counts["identical"],
        "documented": known,
        "other": counts["other"],
        "seed": options.seed,
    }
    sys.stdout.write(json.dumps({**figures, "examples": shown[: options.show]}, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.write(
        f"{counts['identical']} of {total} rows are identical, {sum(known.values())} differ by a documented "
        f"reason, {counts['other']} otherwise.\n"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of axolotl's environment")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of a tokenizer")
    parser.add_argument("--cases", type=int, default=200, help="data sets, each with options of its own")
    parser.add_argument("--rows", type=int, default=20, help="rows of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=SHOWN, help="other differences that are shown")
    return parser.parse_args()


def _theirs(
    options: argparse.Namespace, folder: Path, runs: list[tuple[dict[str, Any], list[Case]]]
) -> list[list[list[list[Tokens] | str]]]:
    """Return for each row of each case of each run axolotl's rows, or the error that it ends with."""
    request = {
        "tokenizer": str(options.tokenizer.resolve()),
        "date": BASE["template_date"],
        "runs": [
            {"keys": keys, "cases": [{"dataset": case.dataset, "rows": case.rows} for case in cases]}
            for keys, cases in runs
        ],
    }
    (folder / "request.json").write_text(json.dumps(request))
    worker = Path(__file__).with_name("compare_axolotl_worker.py")
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [options.python, str(worker), str(folder / "request.json"), str(folder / "answer.json")],
        check=True,
        env={**environment, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("SHOW_AXOLOTL") else subprocess.DEVNULL,
        cwd=folder,
    )
    answer: list[list[list[list[Tokens] | str]]] = json.loads((folder / "answer.json").read_text())
    return answer


def _ours(
    options: argparse.Namespace, folder: Path, keys: dict[str, Any], cases: list[Case]
) -> list[list[list[Tokens]]]:
    """Return for each row of each case our rows; none where it is rejected."""
    folder.mkdir()
    datasets = []
    for number, case in enumerate(cases):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in case.rows))
        datasets.append({"path": f"{number}.jsonl", **case.dataset})
    config = {**BASE, "base_model": str(options.tokenizer.resolve()), "artifact_store": "store", **keys}
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, "datasets": datasets}))
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "inspect", "run.yaml", "--jsonl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "XDG_CACHE_HOME": str(folder)},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    found: list[list[list[Tokens]]] = [[[] for _ in case.rows] for case in cases]
    for line in done.stdout.splitlines():
        row = json.loads(line)
        found[row["dataset"]][row["row"]].append({name: row[name] for name in ("input_ids", "labels")})
    [rejected] = folder.glob("store/tokenize/*/rejected.jsonl")
    reasons = [json.loads(line) for line in rejected.read_text().splitlines()]
    return found, {(row["dataset"], row["row"]): row["reason"] for row in reasons}


def _pairs(options: argparse.Namespace, ours: Ours, theirs: list[list[list[Tokens] | str]]) -> Iterator[list[Seen]]:
    """Yield for each case what both sides make of its rows."""
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found, reasons = ours
    for number, (mine, other) in enumerate(zip(found, theirs, strict=True)):
        pairs = enumerate(zip(mine, other, strict=True))
        yield [Seen(one, reasons.get((number, row), ""), two, encode) for row, (one, two) in pairs]


def _verdict(case: Case, row: int, seen: Seen) -> str:
    return "identical" if seen.ours == seen.theirs else documented(case, row, seen) or "other"


if __name__ == "__main__":
    main()
