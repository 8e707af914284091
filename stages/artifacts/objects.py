"""Objects below a prefix in a bucket: requests with patience, and writes on a condition.

A server that accepts conditions and does not keep to them is found out by a probe before the first such write; there, a
write is read back after a while, and the last of several writers counts.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from stages.artifacts.clients import ABSENT, Client, Meaning
from stages.artifacts.place import PROBES, Stored
from stages.errors import ConfigError, Problem, StoreError, TransientError
from stages.remote.failures import retry_after, said

CLOCK = ".clock"
PATIENCE_SECONDS = 180.0
"""How long a request is tried again when that can help: longer than a minute of throttling, or a server's restart."""
FIRST_PATIENCE_SECONDS = 30.0
"""The same until the store has answered once: a wrong address is not to be waited for."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.25, 20.0
SETTLE_SECONDS = (0.5, 1.0)
"""Where conditions are not enforced, writers that met have all written by then."""

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Absent(Exception):  # noqa: N818 - an answer, not a failure
    """There is no such object."""


class Taken(Exception):  # noqa: N818 - an answer, not a failure
    """The condition of a request does not hold."""


class Objects:
    """The objects of a store, by their names in it.

    Every method raises ConfigError if the server refuses it, TransientError if the server does not answer for longer
    than we are patient, StoreError for another failure.
    """

    def __init__(self, client: Client, *, address: str, prefix: str) -> None:
        self._client, self._address, self._prefix = client, address, prefix
        self._patience = PATIENCE_SECONDS
        self._enforced: bool | None = None  # not tried yet
        self._answered = False

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, None if there is none."""
        try:
            return self._do(name, lambda: self._client.get(self._key(name)))[0]
        except Absent:
            return None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`.

        Raises:
            Absent: there is no such object, or it is shorter.
        """

        def request() -> bytes:
            block = self._client.get_range(self._key(name), start, end)
            if len(block) != end - start:
                raise ConnectionError(f"{len(block)} bytes came instead of {end - start}")
            return block

        return self._do(name, request)

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, whatever was there."""
        self._write(name, lambda: self._client.put(self._key(name), content))

    def send(self, source: Path, name: str) -> None:
        """Write an object from a file."""
        self._write(name, lambda: self._client.send(source, self._key(name)))

    def is_same(self, source: Path, name: str) -> bool:
        """Return whether an object is there of which the server knows a digest that is the file's."""
        try:
            return self._do(name, lambda: self._client.is_same(source, self._key(name)))
        except Absent:
            return False

    def load(self, name: str) -> tuple[bytes, str] | None:
        """Return content and version of a small object, for `swap`; None if there is none."""
        try:
            content, version = self._do(name, lambda: self._client.get(self._key(name)))
        except Absent:
            return None
        return content, version if self._keeps_conditions() else hashlib.sha256(content).hexdigest()

    def swap(self, name: str, content: bytes, version: str | None) -> bool:
        """Write an object if the present one has that version (None: there is none); return whether it was written."""
        if not self._keeps_conditions():
            return self._swap_and_look(name, content, version)
        try:
            if version is None:
                self._write(name, lambda: self._client.put(self._key(name), content, ABSENT))
            else:
                self._do(name, lambda: self._client.put(self._key(name), content, version))
        except (Taken, Absent):
            return self.read(name) == content  # the answer to a first try may have been lost on its way
        return True

    def remove(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        with suppress(Absent):
            self._do(name, lambda: self._client.delete(self._key(name)))

    def files(self, prefix: str) -> list[Stored]:
        """Return the objects whose names begin so."""
        cut = len(self._key(""))
        try:
            found = self._do(prefix, lambda: list(self._client.list(self._key(prefix))))
        except Absent:
            return []
        return [Stored(stored.name[cut:], stored.size, stored.modified) for stored in found]

    def now(self) -> float:
        """Return the time by the clock of the object store: that of an object written now."""
        self.write(CLOCK, uuid.uuid4().bytes)
        return next(stored.modified for stored in self.files(CLOCK))

    def age(self, name: str) -> float:
        """Return the seconds since an object was written, by the clock of the object store alone."""
        written = next((stored.modified for stored in self.files(name) if stored.name == name), None)
        return 0.0 if written is None else self.now() - written

    def _keeps_conditions(self) -> bool:
        """Return whether the server keeps to conditions, tried once in a process."""
        if self._enforced is None:
            self._enforced = self._probe(f"{PROBES}/{uuid.uuid4().hex}")
            if not self._enforced:
                logger.warning(
                    "%s does not enforce conditional writes: two runs that start together may do the same work twice. "
                    "Artifacts are safe: each write is read back, and equal work is stored once.",
                    self._address,
                )
        return self._enforced

    def _probe(self, name: str) -> bool:
        """Return whether a second create, and an update of what was updated meanwhile, are refused."""
        try:
            if not self._is_accepted(name, b"1", ABSENT) or self._is_accepted(name, b"2", ABSENT):
                return False
            version = self._do(name, lambda: self._client.get(self._key(name)))[1]
            return self._is_accepted(name, b"3", version) and not self._is_accepted(name, b"4", version)
        except StoreError:
            return False
        finally:
            self.remove(name)

    def _is_accepted(self, name: str, content: bytes, version: str) -> bool:
        try:
            self._do(name, lambda: self._client.put(self._key(name), content, version))
        except (Taken, Absent):
            return self.read(name) == content
        return True

    def _swap_and_look(self, name: str, content: bytes, version: str | None) -> bool:
        present = self.read(name)
        if (None if present is None else hashlib.sha256(present).hexdigest()) != version:
            return present == content
        self.write(name, content)
        time.sleep(random.uniform(*SETTLE_SECONDS))  # noqa: S311 - not for secrets
        return self.read(name) == content

    def _write(self, name: str, request: Callable[[], None]) -> None:
        """Do as `_do` for a request that fails with "absent" only if the bucket is."""
        try:
            self._do(name, request)
        except Absent as error:
            raise self._explained(name, "refused", FileNotFoundError("there is no such bucket")) from error

    def _do(self, name: str, request: Callable[[], Answer]) -> Answer:
        """Return the answer to a request, which is tried again with growing, random delays where that can help.

        Raises:
            Absent, Taken: what the server answered.
            ConfigError: the server refuses it.
            TransientError: it does not answer for longer than we are patient.
            StoreError: another failure.
        """
        failures: tuple[type[Exception], ...] = (*self._client.errors, ConnectionError, TimeoutError)
        started, delay = time.monotonic(), FIRST_DELAY_SECONDS
        patience = self._patience if self._answered else min(self._patience, FIRST_PATIENCE_SECONDS)
        while True:
            try:
                answer = request()
                self._answered = True
                return answer
            except failures as error:
                meaning = self._client.meaning(error)
                if meaning != "passing":
                    self._answered = True
                    raise self._explained(name, meaning, error) from error
                pause = max(delay * random.uniform(0.5, 1.5), retry_after(error))  # noqa: S311 - no secret
                if time.monotonic() + pause - started > patience:
                    raise TransientError(
                        f"{self._address}/{name}: no answer for {time.monotonic() - started:.0f} seconds "
                        f"({said(error)}). What was finished is kept; run again later."
                    ) from error
            time.sleep(pause)
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    def _explained(self, name: str, meaning: Meaning, error: Exception) -> Exception:
        if meaning == "absent":
            return Absent(name)
        if meaning == "taken":
            return Taken(name)
        if meaning == "refused":
            text = said(error).rstrip(".")
            remedy = (
                "Set this machine's clock: a server refuses requests that are dated minutes before or after its own."
                if "TooSkewed" in text
                else "Check that the bucket exists, which credentials are used, and what they may do there."
            )
            return ConfigError([Problem("configuration", "artifact_store", f"{self._address}/{name}", text, remedy)])
        return StoreError(f"{self._address}/{name}: {said(error)}")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name
