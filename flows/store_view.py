"""`sft artifacts`: the store as a person or a script sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.load import load_run
from flows.command import write_json
from stages.artifacts import Artifact, Store
from stages.artifacts import verify as verification
from stages.artifacts.collect import collect, removable
from stages.artifacts.opening import open_store
from stages.errors import ConfigError, Problem
from stages.stage import open_run
from tasks.blocks import with_blocks

_UNITS = ("B", "KB", "MB", "GB", "TB")


def open_named(address: str, config: Path | None) -> Store:
    """Return the store at an address, or that of a run with its options."""
    if config is not None:
        return open_run(with_blocks(load_run(config).run))[1]
    return open_store(address)


def ls(store: Store, stage: str | None, *, as_json: bool) -> None:
    """List the artifacts."""
    rows = [_row(artifact) for artifact in store.artifacts(stage)]
    if as_json:
        write_json({"artifacts": rows})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "key", "files", "size", "seconds"):
        table.add_column(name, justify="left" if name in ("stage", "key") else "right")
    for row in rows:
        table.add_row(row["stage"], row["key"][:12], str(row["files"]), size(row["bytes"]), f"{row['seconds']:.1f}")
    Console().print(table)


def show(store: Store, prefix: str, *, as_json: bool) -> None:
    """Show one artifact: its manifest."""
    artifact = _only(store, prefix)
    document = {
        "path": artifact.address,
        "digest": artifact.digest,
        **artifact.manifest.model_dump(mode="json"),
    }
    if as_json:
        write_json(document)
    else:
        Console().print_json(data=document)


def verify(store: Store, prefix: str, *, repair: bool, as_json: bool) -> None:
    """Read every byte; exit with 1 if something is missing, damaged or orphaned, and was not repaired."""
    checked, findings = verification.verify(store, prefix)
    removed = verification.repair(store, findings) if repair else []
    damaged = [finding for finding in findings if finding.kind == "damaged"]
    orphaned = [finding for finding in findings if finding.kind == "orphaned"]
    if as_json:
        write_json(
            {
                "checked": checked,
                "damaged": [_finding(finding) for finding in damaged],
                "orphaned": [_finding(finding) for finding in orphaned],
                "removed": [finding.name for finding in removed],
            }
        )
    else:
        for finding in findings:
            Console().print(
                f"[red]{finding.kind}[/red] {finding.stage} {finding.key[:12]}: {finding.problem}", soft_wrap=True
            )
        Console().print(
            f"{checked} artifacts read, {len(damaged)} files missing or damaged, {len(orphaned)} files orphaned"
        )
        if removed:
            Console().print("Removed; the next run that needs a damaged artifact makes it again.")
        elif findings:
            Console().print("`sft artifacts verify --repair` removes them, and the next run makes again what it needs.")
    if len(removed) < len(findings):
        sys.exit(1)


def _finding(finding: verification.Finding) -> dict[str, str]:
    return {"stage": finding.stage, "key": finding.key, "problem": finding.problem}


def gc(store: Store, days: float, forget: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Remove what no run refers to, or say what would be removed."""
    released = frozenset(forget)
    found = removable(store, days=days, forget=released)
    if not dry_run:
        found = collect(store, found, released)
    total = sum(item.size for item in found)
    if as_json:
        rows = [{"path": item.address, "bytes": item.size, "why": item.why} for item in found]
        write_json({"removed": [] if dry_run else rows, "removable": rows, "bytes": total})
        return
    for item in found:
        Console().print(f"{item.address}  {size(item.size)}  {item.why}", soft_wrap=True, highlight=False)
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
        "path": artifact.address,
    }


def _only(store: Store, prefix: str) -> Artifact:
    found = [artifact for artifact in store.artifacts() if artifact.key.startswith(prefix)]
    if len(found) != 1:
        rule = f"{len(found)} artifacts of {store.place.address} have a key that begins so"
        raise ConfigError([Problem("command line", "key", prefix, rule, "`sft artifacts ls` lists the keys.")])
    return found[0]
