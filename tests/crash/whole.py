"""Whole runs, `sft run`, killed at random moments and started again; also on machines whose disk is lost with them."""

from __future__ import annotations

import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil

from tests.conftest import prefect_server
from tests.crash.killing import run_forked
from tests.crash.laboratory import Tally
from tests.crash.remote_scenarios import empty, left_in_bucket, remote_is_whole
from tests.crash.scenarios import artifacts_are_whole
from tests.crash.stage_scenarios import left_but_checkpoints
from tests.project import Project, descendants
from tests.store_servers import Where

FILES = ("out/merged/model.safetensors", "out/merged/tokenizer.json", "out/adapter_model.safetensors")
COURSE: dict[str, Any] = {"save_steps": 1, "max_steps": 6}


def kill_whole_runs(where: Where | None, folder: Path, deadline: float, seed: int) -> Tally:
    """Kill a run one to three times, finish it, and compare the model with that of an undisturbed run.

    With a place in a bucket the store is there, and with every second kill the machine's disk is lost: its cache, its
    work, and the output folder. All report to one Prefect server, whose start would take half of the time.
    """
    home = folder / "prefect"
    home.mkdir(exist_ok=True)
    with prefect_server(home) as api:
        return _kill(where, folder, {"PREFECT_API_URL": api}, deadline, seed)


def _kill(where: Where | None, folder: Path, environment: dict[str, str], deadline: float, seed: int) -> Tally:
    tally = Tally(f"sft run{', store in a bucket, disks lost' if where else ''}: at random moments")
    original = folder / "original"
    shutil.rmtree(original, ignore_errors=True)
    run_forked(partial(_create, where), original)
    reference, seconds = _finish(_machine(original, folder / "project", where, environment))
    rng = random.Random(seed)
    while time.monotonic() + 2 * seconds < deadline:
        project = _machine(original, folder / "project", where, environment)
        for _ in range(rng.randint(1, 3)):
            process = project.start("run", "run.yaml")
            time.sleep(rng.uniform(0.05, 1.0) * seconds)
            children = descendants(process.pid)
            tally.kills += process.poll() is None
            process.kill()
            process.communicate()
            tally.wrong += [f"{child} outlived its run" for child in psutil.wait_procs(children, timeout=30)[1]]
            tally.wrong += _look(where, project.folder)
            if where and rng.random() < 0.5:
                _lose_disk(project.folder)
        found, took = _finish(project)
        tally.recovery.append(took)
        tally.wrong += _look(where, project.folder)
        tally.wrong += run_forked(partial(_left, where), project.folder).result
        if found != reference:
            tally.wrong.append(f"kill {tally.kills}: the model differs from that of an undisturbed run")
    return tally


def _create(where: Where | None, folder: Path) -> None:
    store: dict[str, Any] = {}
    if where:
        store = {"artifact_store": where.address, "artifact_store_options": {"endpoint_url": where.server.url}}
    Project.create(folder, rows=40, **COURSE, **store)


def _machine(original: Path, folder: Path, where: Where | None, environment: dict[str, str]) -> Project:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    if where:
        run_forked(partial(empty, where), folder)
    return Project(folder, {"XDG_CACHE_HOME": str(folder / "cache"), **environment})


def _lose_disk(folder: Path) -> None:
    for name in ("cache", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _look(where: Where | None, folder: Path) -> list[str]:
    look = partial(remote_is_whole, where) if where else artifacts_are_whole
    return [f"a reader sees: {line}" for line in run_forked(look, folder).result]


def _left(where: Where | None, folder: Path) -> list[str]:
    left = left_in_bucket(where, folder) if where else left_but_checkpoints(folder)
    return [f"left over: {name}" for name in left]


def _finish(project: Project) -> tuple[list[bytes], float]:
    began = time.monotonic()
    done = project.sft("run", "run.yaml", "--json", seconds=600)
    assert len(orjson.loads(done.out)["stages"]) == 6
    return [(project.folder / name).read_bytes() for name in FILES], time.monotonic() - began
