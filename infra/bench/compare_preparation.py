"""Preparing data against the peers: axolotl, TRL and LLaMA-Factory, and the bare tokenizer.

infra/bench/peers.sh PEERS                                          (once: their environments)
python infra/bench/compare_preparation.py --peers PEERS --tokenizer MODEL --chats chats.jsonl \
    --instructions alpaca.jsonl [--rows 50000] [--rounds 3] [--plot infra/docs/preparation.svg]

Each does the same rows from the file to packed training data, as a user starts it, with one process, in turn; medians
of the rounds count. CPU seconds and the peak of memory are those of the process and all its children. A peer that is
not installed is left out. `tokenizer only` gets plain texts, and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
SEQUENCE_LEN = 2048
QUIET = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_VERSION_CHECK": "1",
}
POLL_SECONDS = 0.5
Command = list[str]


def main() -> None:
    """Print the figures as JSON, and a sentence for each kind of data."""
    options = _options()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, data in (("chats", options.chats), ("instructions", options.instructions)):
        if data:
            found[kind] = _compare(kind, Path(data), options)
    print(json.dumps({"rows": options.rows, "rounds": options.rounds, **found}, indent=1))
    for kind, figures in found.items():
        told = ", ".join(
            f"{name} {row['cpu_seconds'] / figures['sft-flow']['cpu_seconds']:.1f}"
            for name, row in figures.items()
            if name != "sft-flow"
        )
        print(f"{kind}: CPU seconds in ours: {told}.")
    if options.plot:
        Path(options.plot).write_text(plot(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--tokenizer", required=True, help="a model folder with its tokenizer")
    parser.add_argument("--chats")
    parser.add_argument("--instructions")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot")
    return parser.parse_args()


def _compare(kind: str, data: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with data.open("rb") as source:
            rows = [line for _, line in zip(range(options.rows), source, strict=False)]
        (folder / "data.jsonl").write_bytes(b"".join(rows))
        commands = _commands(kind, folder, Path(options.peers), Path(options.tokenizer).resolve())
        for _ in range(options.rounds):
            for peer, command in commands.items():
                for made in ("artifacts", "prepared", "saved", "out"):
                    shutil.rmtree(folder / made, ignore_errors=True)
                figures = _measured(command, folder)
                print(kind, peer, figures, file=sys.stderr, flush=True)
                rounds.setdefault(peer, []).append(figures)
    return {
        peer: {name: round(median(one[name] for one in runs), 2) for name in runs[0]} for peer, runs in rounds.items()
    }


def _commands(kind: str, folder: Path, peers: Path, tokenizer: Path) -> dict[str, Command]:
    here = sys.executable
    commands = {"sft-flow": [here, "-m", "flows.cli", "preprocess", _our_yaml(kind, folder, tokenizer)]}
    axolotl, trl, factory = (peers / name / "bin" / "python" for name in ("axolotl", "trl", "llamafactory"))
    if axolotl.exists():
        commands["axolotl"] = [str(axolotl), "-m", "axolotl.cli.preprocess", _axolotl_yaml(kind, folder, tokenizer)]
    script = Path(__file__).with_name("peer_preparation.py")
    if trl.exists():
        commands["TRL"] = [str(trl), str(script), "trl", kind, str(folder), str(tokenizer)]
    if factory.exists():
        commands["LLaMA-Factory"] = [str(factory), str(script), "llamafactory", kind, str(folder), str(tokenizer)]
    commands["tokenizer only"] = [here, str(script), "bare", kind, str(folder), str(tokenizer)]
    return commands


def _our_yaml(kind: str, folder: Path, tokenizer: Path) -> str:
    return _written(
        folder / "ours.yaml", _shared(kind, folder, tokenizer) | {"artifact_store": str(folder / "artifacts")}
    )


def _axolotl_yaml(kind: str, folder: Path, tokenizer: Path) -> str:
    own = {"dataset_prepared_path": str(folder / "prepared"), "bf16": False, "fp16": False, "tf32": False}
    kernels = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
    return _written(folder / "axolotl.yaml", _shared(kind, folder, tokenizer) | own | kernels)


def _shared(kind: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    form = {"type": "chat_template"} if kind == "chats" else {"type": "alpaca"}
    data = {"path": str(folder / "data.jsonl"), "ds_type": "json", **form}
    return {
        "base_model": str(tokenizer),
        "datasets": [data],
        "sequence_len": SEQUENCE_LEN,
        "sample_packing": True,
        "dataset_num_proc": 1,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 0.0002,
        "optimizer": "adamw_torch",
        "output_dir": str(folder / "out"),
    }


def _written(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def _measured(command: Command, folder: Path) -> dict[str, float]:
    """Return wall and CPU seconds of a command with its children, and their peak of memory in MB."""
    log = folder / "log"
    path = os.pathsep.join([str(ROOT), str(Path(command[0]).parent)])
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT) if command[0] == sys.executable else ""}
    environment["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
        peak: list[float] = [0.0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, process.poll))
        watcher.start()
        code = process.wait()
        watcher.join()
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": cpu, "wall_seconds": seconds, "peak_megabytes": peak[0]}


def _watch(pid: int, peak: list[float], ended: Callable[[], int | None]) -> None:
    while ended() is None:
        try:
            head = psutil.Process(pid)
            total = sum(member.memory_info().rss for member in [head, *head.children(recursive=True)])
            peak[0] = max(peak[0], total / 1e6)
        except psutil.NoSuchProcess:
            pass
        time.sleep(POLL_SECONDS)


def plot(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return bars of CPU seconds, a group for each kind of data, as SVG."""
    lines, y = [], 20
    longest = max(row["cpu_seconds"] for figures in found.values() for row in figures.values())
    for kind, figures in found.items():
        lines.append(f'<text x="10" y="{y + 4}" font-weight="bold">{kind}</text>')
        for name, row in figures.items():
            y += 24
            width, colour = 420 * row["cpu_seconds"] / longest, "#2f6f4f" if name == "sft-flow" else "#9aa5b1"
            lines.append(f'<text x="130" y="{y + 4}" text-anchor="end">{name}</text>')
            lines.append(f'<rect x="140" y="{y - 9}" width="{width:.1f}" height="16" fill="{colour}"/>')
            lines.append(f'<text x="{146 + width:.1f}" y="{y + 4}">{row["cpu_seconds"]:.1f} s</text>')
        y += 34
    body = "\n".join(lines)
    style = 'font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y}" {style}>\n{body}\n</svg>\n'


if __name__ == "__main__":
    main()
