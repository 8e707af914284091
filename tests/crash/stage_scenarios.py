"""What is killed of the stages that work with a model: tokenize and pack, a training and its end, a merge.

Each begins with a folder that was made once and is copied before every kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, sha256_file
from stages.fetch import STAGE as FETCH
from stages.merge import STAGE as MERGE
from stages.pack import STAGE as PACK
from stages.stage import Context, Progress, Stage, no_progress, run_stage
from stages.tokenize import STAGE as TOKENIZE
from stages.train.checkpoints import is_whole
from stages.train.job import Job, WorkFolder
from stages.train.stage import STAGE as TRAIN
from stages.train.stopping import StopFlag
from tests.crash.scenarios import KEYS, Scenario, artifacts_are_whole, left_in_store, store_of
from tests.tiny import build_model
from tests.train_data import Bench

LENGTHS = [120, 30, 90, 200, 60, 45, 150, 33]
SEQUENCES = [[0, 1], [2], [3], [4, 5], [6], [7, 1], [0], [5]]
TRAINING = {"adapter": "lora", "lora_r": 4, "lora_target_linear": True, "lora_dropout": 0.2, "warmup_steps": 0}
COURSE = {"num_epochs": 50, "max_steps": 12, "save_steps": 2, "logging_steps": 1, "val_set_size": 0.1}
MACHINE = {"bf16": False, "launcher": {"threads": 1}, "dataset_num_proc": 1}


def import_torch() -> None:

    import stages.train.worker  # noqa: F401


def begin_with(name: str, make: Callable[[Path], None], root: Path) -> None:
    """Put a copy of what `make` makes there; paths in it stay right, as the folder is always the same."""
    kept = root.parent / f"kept-{name}"
    if not kept.exists():
        make(root)
        shutil.copytree(root, kept)
    else:
        shutil.copytree(kept, root, dirs_exist_ok=True)


def _run(root: Path) -> RunConfig:
    datasets = [{"path": str(root / "data.jsonl"), "type": "chat_template"}]
    base = {"base_model": str(root / "base"), "datasets": datasets, "sequence_len": 128}
    return RunConfig.model_validate({**KEYS, **base, **TRAINING, **COURSE, **MACHINE, "learning_rate": 0.01})


def _made(root: Path, *stages: Stage, progress: Progress = no_progress) -> Mapping[str, Artifact]:
    """Run stages one after another on what is in the store, and return the artifact of each stage that is there."""
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    store = store_of(root)
    context = Context(_run(root), FileDigests(root / "digests.sqlite"), progress=progress)
    made = {artifact.stage: artifact for artifact in store.artifacts()}
    for stage in stages:
        made[stage.name] = run_stage(stage, context, made, store).artifact
    store.note_run("out", made.values())
    return made


def _make_rows(root: Path) -> None:
    build_model(root / "base")
    turns = ("the quick brown fox", "jumps over the lazy dog")
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{turns[side]} {n}"} for side, role in enumerate(("user", "assistant"))
            ]
        }
        for n in range(40)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _made(root, FETCH)


def tokenize_and_pack(root: Path) -> str:
    return _made(root, TOKENIZE, PACK)["pack"].digest


def _stop(done: float, total: float | None, unit: str, **detail: Any) -> None:
    raise KeyboardInterrupt


def _make_job(root: Path) -> None:
    """Begin a training and stop it; what is left is what the training process starts with."""
    Bench(root, LENGTHS, SEQUENCES)
    try:
        _made(root, TRAIN, progress=_stop)
    except KeyboardInterrupt:
        work = _work(root).root
        for path in [path for path in work.iterdir() if path.name != "job.json"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _work(root: Path) -> WorkFolder:
    [work] = (root / "store" / ".work" / "train").iterdir()
    return WorkFolder(work)


def train_here(root: Path) -> dict[str, str]:
    """Do what one training process does; return the digests of the final files."""
    from stages.train.worker import train

    os.environ.update({"RANK": "0", "LOCAL_RANK": "-1", "XDG_CACHE_HOME": str(root / "cache")})
    work = _work(root)
    job = Job.model_validate_json(work.job.read_bytes())
    if not is_whole(work.done, work.final, job.key):
        work.done.unlink(missing_ok=True)
        assert train(job, StopFlag()) == 0
    facts = json.loads(work.done.read_bytes())["facts"]
    digests = {path.name: sha256_file(path) for path in sorted(work.final.rglob("*")) if path.is_file()}
    return {**digests, "facts": json.dumps(facts, sort_keys=True)}


def checkpoints_are_whole(root: Path) -> list[str]:
    """Tell of checkpoints, and of a final model, that are marked as whole and are not."""
    work = _work(root)
    key = Job.model_validate_json(work.job.read_bytes()).key
    marked = [(path, path.parent) for path in work.root.glob("checkpoint-*/complete.json")]
    marked += [(work.done, work.final)] * work.done.exists()
    return [f"{marker} marks what is not whole" for marker, folder in marked if not is_whole(marker, folder, key)]


def too_many_checkpoints(root: Path) -> list[str]:
    """Tell of checkpoints beyond those that are kept, and of drafts."""
    kept = _run(root).save_total_limit
    found = sorted(path.name for path in _work(root).root.glob("checkpoint-*"))
    return [*(found if kept and len(found) > kept else []), *(str(path) for path in _work(root).root.rglob("*.tmp"))]


def _make_trained(root: Path) -> None:
    _make_job(root)
    train_here(root)


def take_over(root: Path) -> str:
    return _made(root, TRAIN)["train"].digest


def _make_adapter(root: Path) -> None:
    Bench(root, LENGTHS, SEQUENCES)
    _made(root, TRAIN)


def merge_adapter(root: Path) -> str:
    return _made(root, MERGE)["merge"].digest


def left_but_checkpoints(root: Path) -> list[str]:
    """Tell what is left; the checkpoints of a training that a run holds stay, for a longer one."""
    return [path for path in left_in_store(root) if not path.startswith("store/.work/train/") or "/.parts/" in path]


def _scenario(
    name: str,
    make: Callable[[Path], None],
    work: Callable[[Path], Any],
    look: Callable[[Path], list[str]] = artifacts_are_whole,
    leftovers: Callable[[Path], list[str]] = left_but_checkpoints,
) -> Scenario:
    return Scenario(name, partial(begin_with, work.__name__, make), work, look, leftovers, import_torch)


TRAINING_PROCESS = _scenario(
    "train: the training process", _make_job, train_here, checkpoints_are_whole, too_many_checkpoints
)
WITH_MODEL = (
    _scenario("tokenize and pack", _make_rows, tokenize_and_pack),
    TRAINING_PROCESS,
    _scenario("train: taking over what was trained", _make_trained, take_over),
    _scenario("merge: an adapter into its base", _make_adapter, merge_adapter),
)
