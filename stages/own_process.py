"""Modules of ours that run in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from stages.errors import StageError

SOURCE_ROOT = Path(__file__).resolve().parents[1]


def python_path() -> str:
    """Return the PYTHONPATH with which a process finds our modules, whatever its folder is."""
    return os.pathsep.join([str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def answer_of(module: str, request: dict[str, Any], task: str) -> Any:
    """Give a request to a module as JSON on standard input, and return the JSON that it answers.

    Args:
        module: what `python -m` starts.
        request: what it reads.
        task: what the process does, for people: "loads the tokenizer".

    Raises:
        StageError: the process failed; with the last line that it wrote.
    """
    process = subprocess.run(
        [sys.executable, "-m", module],
        input=orjson.dumps(request),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    if process.returncode:
        last = process.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise StageError(f"the process that {task} failed: {''.join(last)}")
    return orjson.loads(process.stdout)
