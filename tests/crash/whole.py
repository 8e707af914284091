"""Whole runs, `sft run`, killed with all their processes at random moments and started again."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import orjson

from tests.crash.laboratory import Tally
from tests.project import Project, end_tree

FILES = ("out/merged/model.safetensors", "out/merged/tokenizer.json", "out/adapter_model.safetensors")


def kill_whole_runs(folder: Path, deadline: float, most: int) -> Tally:
    """Kill a run once or twice, finish it, and compare the model with that of an undisturbed run."""
    tally = Tally("sft run: train and flow, killed at random moments")
    original = Project.create(folder / "original", rows=40, save_steps=1, max_steps=6)
    reference, seconds = _finish(_copy(original, folder / "reference"))
    rng = random.Random(0)
    while tally.kills < most and time.monotonic() + 2 * seconds < deadline:
        project = _copy(original, folder / "killed")
        for _ in range(rng.randint(1, 2)):
            process = project.start("run", "run.yaml")
            time.sleep(rng.uniform(0.05, 1.0) * seconds)
            if process.poll() is None:
                tally.kills += 1
            end_tree(process)
        found, took = _finish(project)
        tally.recovery.append(took)
        if found != reference:
            tally.wrong.append(f"kill {tally.kills}: the model differs from that of an undisturbed run")
    return tally


def _copy(original: Project, folder: Path) -> Project:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.folder, folder)
    return Project(folder, {"XDG_CACHE_HOME": str(folder / "cache")})


def _finish(project: Project) -> tuple[list[bytes], float]:
    began = time.monotonic()
    done = project.sft("run", "run.yaml", "--json", seconds=600)
    assert len(orjson.loads(done.out)["stages"]) == 6
    return [(project.folder / name).read_bytes() for name in FILES], time.monotonic() - began
