"""A right in an object store that one process has at a time, and that a dead machine loses.

The holder writes an object again and again, each time on the condition that it is the one it wrote last. Who waits
looks at whether the object changes: after `seconds` without a change, by its own clock, the holder is dead, and the
object is taken over on the condition that it is still the one that was seen. No two clocks are ever compared.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from stages.artifacts.objects import Objects
from stages.errors import SftError

RENEWALS = 4
"""So many times in the duration of a lease it is renewed."""
MARGIN = 0.8
"""A holder trusts its lease for this share of the duration, so that it stops before another one starts."""
POLL_SECONDS = 1.0
FREE = b'{"holder":null}'
"""What a holder leaves behind."""


@dataclass(frozen=True)
class _Seen:
    version: str
    at: float  # by this machine's clock, which goes on while it sleeps


class Lease:
    """One right; `seconds` is what a dead holder keeps it for."""

    def __init__(self, objects: Objects, name: str, seconds: float) -> None:
        self._objects, self._name, self._seconds = objects, name, seconds
        self._token, self._beat = uuid.uuid4().hex, 0
        self._version: str | None = None
        self._trusted_until = 0.0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew_again_and_again, name=f"lease {name}", daemon=True)

    def acquire(self, *, wait: bool) -> bool:
        """Take the right and keep it; False if another has it and `wait` is False."""
        seen: _Seen | None = None
        while True:
            found = self._objects.load(self._name)
            if found is None:
                taken = self._write(None)
            else:
                content, version = found
                now = clock()
                if seen is None or seen.version != version:
                    seen = _Seen(version, now if seen else now - self._age_of(content))
                free = _is_free(content) or now - seen.at >= _seconds_of(content, self._seconds)
                taken = free and self._write(version)
            if taken:
                self._renewer.start()
                return True
            if not wait:
                return False
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - spreads those who wait

    def release(self) -> None:
        """Give the right back."""
        self._ended.set()
        self._renewer.join()
        if self._version is not None:
            self._objects.swap(self._name, FREE, self._version)

    @property
    def is_lost(self) -> bool:
        """Return whether another one may hold the right by now."""
        return clock() > self._trusted_until

    def _age_of(self, content: bytes) -> float:
        """Return how long the lease has not been renewed, at first sight: by the clock of the store, less a second."""
        return 0.0 if _is_free(content) else max(0.0, self._objects.age(self._name) - 1)

    def _renew_again_and_again(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            try:
                renewed = self._write(self._version)
            except SftError:  # the store does not answer: until the lease has run out there is time to try again
                continue
            if not renewed:
                self._version, self._trusted_until = None, 0.0
                return

    def _write(self, version: str | None) -> bool:
        self._beat += 1
        before = clock()
        content = orjson.dumps({"holder": self._token, "beat": self._beat, "seconds": self._seconds, **_this_process()})
        if not self._objects.swap(self._name, content, version):
            return False
        found = self._objects.load(self._name)
        if found is None or found[0] != content:
            return False
        self._version, self._trusted_until = found[1], before + self._seconds * MARGIN
        return True


def clock() -> float:
    """Return seconds that go on while the machine sleeps and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def is_held(content: bytes) -> bool:
    """Return whether the object of a lease names a holder that is not known to be dead."""
    return not _is_free(content)


def _is_free(content: bytes) -> bool:
    """Return whether nobody holds a lease, or a process of this machine that has ended."""
    record = _read(content)
    if record["holder"] is None:
        return True
    mine = _this_process()
    if any(record.get(name) != mine[name] for name in ("boot", "processes")):
        return False
    try:
        return bool(psutil.Process(record["pid"]).create_time() != record["started"])
    except (psutil.Error, KeyError, TypeError):
        return True


def _seconds_of(content: bytes, default: float) -> float:
    return float(_read(content).get("seconds", default))


def _read(content: bytes) -> dict[str, Any]:
    """Return the record of a lease; what cannot be read is held by somebody unknown."""
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        record = None
    return {"holder": "?", **record} if isinstance(record, dict) else {"holder": "?"}


def _this_process() -> dict[str, Any]:
    """Return what tells a process from every other one: its machine's boot, its process namespace, id and start."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "boot": boot.read_text().strip() if boot.exists() else socket.gethostname(),
        "processes": str(processes.readlink()) if processes.exists() else "",
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
