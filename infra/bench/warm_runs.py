"""`sft plan` and a fully reused `sft run` with a store of many artifacts, against the start of Python and the imports.

python infra/bench/warm_runs.py --tokenizer FOLDER [--artifacts 1000] [--rounds 3]

The run goes until `pack`, so that nothing has to be trained for it; its artifacts lie among others of the same stages.
CPU and wall seconds, medians of the rounds in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from stages.artifacts import Store

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("fetch", "tokenize", "pack")


def main() -> None:
    """Print the figures as JSON, and a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--artifacts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = _write_run(folder, Path(options.tokenizer).resolve())
        sft = [sys.executable, "-m", "flows.cli"]
        commands = {
            "python": [sys.executable, "-c", "pass"],
            "help": [*sft, "--help"],
            "plan": [*sft, "plan", config],
            "reused_run": [*sft, "run", config, "--until", "pack"],
        }
        _seconds(commands["reused_run"], folder)  # makes what is then reused
        _fill(Store(folder / "artifacts"), options.artifacts)
        _seconds(commands["plan"], folder)
        runs = [{kind: _seconds(command, folder) for kind, command in commands.items()} for _ in range(options.rounds)]
    found = {
        kind: {figure: round(median(run[kind][figure] for run in runs), 2) for figure in ("cpu", "wall")}
        for kind in commands
    }
    print(json.dumps({"artifacts": options.artifacts, **found}))
    print(
        f"With {options.artifacts} artifacts in the store a plan takes {found['plan']['cpu']:.1f} CPU seconds and a "
        f"reused run {found['reused_run']['cpu']:.1f}; `sft --help` takes {found['help']['cpu']:.1f}."
    )


def _write_run(folder: Path, tokenizer: Path) -> str:
    rows = [{"instruction": f"add {n} and {n}", "output": str(2 * n)} for n in range(500)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = {
        "base_model": str(tokenizer),
        "datasets": [{"path": str(folder / "data.jsonl"), "type": "alpaca"}],
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.0001,
        "sample_packing": True,
        "artifact_store": str(folder / "artifacts"),
        "output_dir": str(folder / "out"),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return str(folder / "run.yaml")


def _fill(store: Store, artifacts: int) -> None:
    """Add artifacts of other runs: the manifests of this one, with another input."""
    for number in range(artifacts // len(STAGES)):
        for stage in STAGES:
            like = store.newest(stage)
            assert like is not None
            with store.writer(stage, {**like.manifest.inputs, "other": number}, {}) as writer:
                writer.write("data", b"data")
                writer.commit(facts=like.facts)


def _seconds(command: list[str], folder: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


if __name__ == "__main__":
    main()
