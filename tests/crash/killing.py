"""Kills a process at a numbered operation, and lets a fresh process find what that has left.

An operation is whatever the interpreter tells its audit hooks of: opening, renaming, linking, removing a file below the
scenario's folder, making or removing a folder, taking a lock, sending a request; and every flush to disk. The process
is forked from this one, which has done no work of its own, and gets SIGKILL just before its n-th operation, or, where
what counts is done in foreign code, after some time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gcsfs
from aiobotocore.client import AioBaseClient

ON_PATHS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime"}
ALWAYS = {"fcntl.flock", "http.client.send", "http.client.connect"}


@dataclass(frozen=True)
class Ended:
    """How a process ended: `killed`, or with what its work returned, after `operations`."""

    killed: bool
    result: Any
    operations: int


class Counter:
    """Counts the operations of this process, and kills it before the one with number `point`."""

    def __init__(self, root: Path, point: int | None) -> None:
        self._root, self._point, self.seen = str(root), point, 0

    def begin(self) -> None:
        sys.addaudithook(self._hear)
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            self._count()
            flush(descriptor)

        os.fsync = fsync
        self._count_calls(AioBaseClient, "_make_api_call")  # s3fs and gcsfs send past the interpreter's hooks
        self._count_calls(gcsfs.GCSFileSystem, "_request")

    def _count_calls(self, owner: type, name: str) -> None:
        request = getattr(owner, name)

        async def counted(*arguments: Any, **named: Any) -> Any:
            self._count()
            return await request(*arguments, **named)

        setattr(owner, name, counted)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ALWAYS or (event in ON_PATHS and self._is_ours(arguments)):
            self._count()

    def _is_ours(self, arguments: tuple[Any, ...]) -> bool:
        return any(isinstance(place, str) and place.startswith(self._root) for place in arguments[:2])

    def _count(self) -> None:
        self.seen += 1
        if self.seen == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


def run_forked(
    work: Callable[[Path], Any], root: Path, point: int | None = None, *, seconds: float | None = None
) -> Ended:
    """Run `work(root)` in a process of its own, killed before its operation number `point`, or after so many seconds.

    Raises:
        AssertionError: the work raised an error.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _work(work, root, point, write)
    os.close(write)
    killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL)) if seconds is not None else None
    if killer:
        killer.start()
    with os.fdopen(read, "rb") as answers:
        text = answers.read()
    if killer:
        killer.cancel()
        killer.join()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by signal {os.WTERMSIG(status)}"
        return Ended(True, None, 0)
    answer = json.loads(text)
    assert "error" not in answer, answer["error"]
    return Ended(False, answer["result"], answer["operations"])


def _work(work: Callable[[Path], Any], root: Path, point: int | None, write: int) -> None:
    try:
        counter = Counter(root, point)
        counter.begin()
        answer: dict[str, Any] = {"result": work(root), "operations": counter.seen}
    except BaseException:  # noqa: BLE001  the parent raises it
        answer = {"error": traceback.format_exc()}
    os.write(write, json.dumps(answer).encode())
    os._exit(0)
