"""`sft artifacts`: the store as a person or a script sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.command import write_json
from stages.artifacts import Artifact, Store, sha256_file
from stages.artifacts.collect import collect, removable
from stages.errors import ConfigError, Problem

_UNITS = ("B", "KB", "MB", "GB", "TB")


def ls(root: Path, stage: str | None, *, as_json: bool) -> None:
    """List the artifacts."""
    rows = [_row(artifact) for artifact in Store(root).artifacts(stage)]
    if as_json:
        write_json({"artifacts": rows})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "key", "files", "size", "seconds"):
        table.add_column(name, justify="left" if name in ("stage", "key") else "right")
    for row in rows:
        table.add_row(row["stage"], row["key"][:12], str(row["files"]), size(row["bytes"]), f"{row['seconds']:.1f}")
    Console().print(table)


def show(root: Path, prefix: str, *, as_json: bool) -> None:
    """Show one artifact: its manifest."""
    artifact = _only(root, prefix)
    document = {
        "path": str(artifact.folder),
        "digest": artifact.digest,
        **artifact.manifest.model_dump(mode="json"),
    }
    if as_json:
        write_json(document)
    else:
        Console().print_json(data=document)


def verify(root: Path, prefix: str, *, as_json: bool) -> None:
    """Read every byte; exit with 1 if something is missing or damaged."""
    checked, damaged = 0, []
    for artifact in Store(root).artifacts():
        if artifact.key.startswith(prefix):
            checked += 1
            found = artifact.damaged(sha256_file)
            damaged += [{"stage": artifact.stage, "key": artifact.key, "problem": what} for what in found]
    if as_json:
        write_json({"checked": checked, "damaged": damaged})
    else:
        for item in damaged:
            Console().print(f"[red]damaged[/red] {item['stage']} {item['key'][:12]}: {item['problem']}", soft_wrap=True)
        Console().print(f"{checked} artifacts read, {len(damaged)} files missing or damaged")
        if damaged:
            Console().print(
                "The next run finds missing files by itself; for the others: sft artifacts gc, or --refresh."
            )
    if damaged:
        sys.exit(1)


def gc(root: Path, days: float, forget: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Remove what no run refers to, or say what would be removed."""
    store, released = Store(root), frozenset(forget)
    found = removable(store, days=days, forget=released)
    if not dry_run:
        collect(store, found, released)
    total = sum(item.size for item in found)
    if as_json:
        rows = [{"path": str(item.folder), "bytes": item.size, "why": item.why} for item in found]
        write_json({"removed": [] if dry_run else rows, "removable": rows, "bytes": total})
        return
    for item in found:
        Console().print(f"{item.folder}  {size(item.size)}  {item.why}", soft_wrap=True, highlight=False)
    Console().print(f"{size(total)} {'could be' if dry_run else 'were'} freed in {len(found)} folders")


def size(count: float) -> str:
    """Return bytes as a person says them.

    >>> size(12), size(34_500_000)
    ('12 B', '34.5 MB')
    """
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def _row(artifact: Artifact) -> dict[str, Any]:
    return {
        "stage": artifact.stage,
        "key": artifact.key,
        "digest": artifact.digest,
        "files": len(artifact.manifest.files),
        "bytes": sum(entry.size for entry in artifact.manifest.files),
        "seconds": artifact.manifest.volatile.get("seconds", 0.0),
        "path": str(artifact.folder),
    }


def _only(root: Path, prefix: str) -> Artifact:
    found = [artifact for artifact in Store(root).artifacts() if artifact.key.startswith(prefix)]
    if len(found) != 1:
        rule = f"{len(found)} artifacts of {root} have a key that begins so"
        raise ConfigError([Problem("command line", "key", prefix, rule, "`sft artifacts ls` lists the keys.")])
    return found[0]
