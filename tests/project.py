"""A small run that is real in everything: a folder with a tiny model, chats, a YAML file, and `sft` to start it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml

from tests.tiny import build_model

WORDS = "the quick brown fox jumps over the lazy dog what is capital of France Paris hello world how are you".split()


@dataclass
class Project:
    """A working folder of a user."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, *, rows: int = 60, **changes: Any) -> Project:
        """Write the model, the data and run.yaml."""
        project = cls(folder)
        build_model(folder / "base")
        project.write_rows(rows)
        project.configure(**changes)
        return project

    def write_rows(self, rows: int, *, seed: int = 0) -> None:
        rng = random.Random(seed)
        lines = []
        for _ in range(rows):
            turns = [
                {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))}
                for role in ("user", "assistant") * rng.randint(1, 2)
            ]
            lines.append(orjson.dumps({"messages": turns}))
        (self.folder / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    def configure(self, **changes: Any) -> None:
        config: dict[str, Any] = {
            "base_model": "base",
            "datasets": [{"path": "data.jsonl", "type": "chat_template"}],
            "sequence_len": 128,
            "sample_packing": True,
            "val_set_size": 0.1,
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "lora_target_linear": True,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_epochs": 2,
            "learning_rate": 0.01,
            "bf16": False,
            "logging_steps": 1,
            "output_dir": "out",
            "artifact_store": "store",
            "launcher": {"threads": 1},
        }
        config.update(changes)
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        environment.setdefault("PREFECT_HOME", str(self.folder / ".prefect"))
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def sft(self, *arguments: str, expect: int = 0, seconds: float = 240) -> Done:
        """Run a command to its end and check its exit code."""
        started = time.monotonic()
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            end_tree(process)
            raise
        done = Done(process.returncode, out, err.decode(), time.monotonic() - started)
        assert done.code == expect, f"exit code {done.code}, not {expect}\n{done.err}"
        return done

    def run(self, *arguments: str) -> dict[str, Any]:
        """`sft run run.yaml --json`: the document that it ends with."""
        return self.sft("run", "run.yaml", *arguments, "--json").json()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: bytes
    err: str
    seconds: float

    def json(self) -> Any:
        return orjson.loads(self.out)


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["status"] for stage in document["stages"]}


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_tree(process: subprocess.Popen[bytes]) -> None:
    for child in descendants(process.pid):
        child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
