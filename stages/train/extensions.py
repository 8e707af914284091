"""Operators that DeepSpeed compiles at the first training on a machine, and the lock that a killed compilation leaves.

PyTorch guards each compilation with a file named `lock` and waits for as long as it is there. A process that was killed
in the middle leaves it, and every later training on that machine would wait for ever, without a word.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from stages.remote.download import cache_folder

FOLDER = "TORCH_EXTENSIONS_DIR"


@contextmanager
def compiled_operators() -> Iterator[None]:
    """Keep compiled operators in a folder of ours, free of locks that nobody holds, while a training runs.

    Trainings share a lock on the folder for as long as they live: whoever has it alone knows that any other is stale.
    A folder that the user has named in the environment is left as it is.
    """
    if FOLDER in os.environ:
        yield
        return
    folder = cache_folder() / "torch-extensions" / torch.__version__
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[FOLDER] = str(folder)
    with (folder / ".in-use").open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_locks(folder)
        except BlockingIOError:
            pass  # others train: what they compile is theirs
        fcntl.flock(held, fcntl.LOCK_SH)
        yield


def _remove_locks(folder: Path) -> None:
    for lock in folder.glob("*/lock"):
        lock.unlink(missing_ok=True)
