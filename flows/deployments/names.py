"""What the deployments of a run are called."""

from __future__ import annotations

import re
from pathlib import Path

from configs.schema import RunConfig


def deployment_name(run: RunConfig, path: Path) -> str:
    """Return the name that the deployments of a run begin with: `orchestration.name`, else the file's (my-run-7b)."""
    return run.orchestration.name or re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "run"
