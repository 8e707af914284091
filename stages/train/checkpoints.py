"""Checkpoints that are whole: an end marker with the digest of every file, written last.

<work>/checkpoint-40/                 written by all processes
<work>/checkpoint-40/complete.json    then by the first one: without it there is no checkpoint
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts import sha256_file
from stages.artifacts.place import flush

MARKER = "complete.json"
PREFIX = "checkpoint-"


def seal(folder: Path, *, key: str, step: int, resumable: bool = True) -> None:
    """Flush every file of a folder to disk and mark the folder as whole; `resumable`: a training can go on from it."""
    _flush_folder(folder)
    write_whole(folder / MARKER, {"key": key, "step": step, "resumable": resumable, "files": describe(folder)})
    flush(folder)
    flush(folder.parent)


def seal_final(marker: Path, folder: Path, *, key: str, facts: dict[str, Any]) -> None:
    """Flush the final files to disk and write the end marker of the training, with their digests and its facts."""
    _flush_folder(folder)
    write_whole(marker, {"key": key, "facts": facts, "files": describe(folder)})


def newest_checkpoint(work: Path, key: str) -> Path | None:
    """Return the newest whole and resumable checkpoint of `key`; remove those newer than it that are not whole."""
    for folder in sorted(work.glob(f"{PREFIX}*"), key=step_of, reverse=True):
        if not is_whole(folder / MARKER, folder, key):
            shutil.rmtree(folder)
        elif is_resumable(folder):
            return folder
    return None


def is_resumable(folder: Path) -> bool:
    """Return whether a training can go on from a checkpoint, as its marker says; False if it was removed meanwhile."""
    try:
        return bool(orjson.loads((folder / MARKER).read_bytes()).get("resumable", True))
    except FileNotFoundError:
        return False


def rotate(work: Path, keep: int, *, best: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and that of the step `best`. Call it when the newest is marked."""
    for folder in sorted(work.glob(f"{PREFIX}*"), key=step_of)[:-keep]:
        if step_of(folder) == best:
            continue
        (folder / MARKER).unlink(missing_ok=True)  # first, so that half of a checkpoint never looks whole
        shutil.rmtree(folder)


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint folder, from its name."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file below a folder, without its marker."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }


def is_whole(marker: Path, folder: Path, key: str) -> bool:
    """Return whether a marker belongs to `key` and the files of a folder are those it lists, byte for byte."""
    try:
        record = orjson.loads(marker.read_bytes())
        return bool(record["key"] == key and record["files"] == describe(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_whole(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file so that it is there with all its content or not at all, even after a power cut."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    flush(draft)
    draft.replace(path)
    flush(path.parent)


def _flush_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
