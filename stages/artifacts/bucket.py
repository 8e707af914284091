"""A store in a bucket of an object store, with a cache of its files on this machine.

Everything is written by conditional requests. A server that accepts them but does not keep to them is found out by a
probe before the first write; there, a write is read back after a while, and the last of several writers counts.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from stages.artifacts.cache import PARTIAL, Cache
from stages.artifacts.clients import ABSENT, Client, Meaning
from stages.artifacts.digests import FileDigests, sha256_file
from stages.artifacts.lease import FREE, Lease, is_held
from stages.artifacts.manifest import FileEntry
from stages.artifacts.place import FolderPlace, Stored
from stages.errors import ConfigError, DamagedArtifactError, Problem, StoreError, TransientError
from stages.remote.failures import retry_after, said

BLOCK = 16 << 20  # bytes read by one request
LEASES = ".leases"
CLOCK = ".clock"
PROBES = ".probes"
PATIENCE_SECONDS = 180.0
"""How long a request is tried again when that can help: longer than a minute of throttling, or a server's restart."""
FIRST_PATIENCE_SECONDS = 30.0
"""The same until the store has answered once: a wrong address is not to be waited for."""
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.25, 20.0
SETTLE_SECONDS = (0.5, 1.0)
"""Where conditions are not enforced, writers that met have all written by then."""
SENDS = 3

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Absent(Exception):  # noqa: N818 - an answer, not a failure
    """There is no such object."""


class Taken(Exception):  # noqa: N818 - an answer, not a failure
    """The condition of a request does not hold."""


class BucketPlace:
    """A prefix in a bucket. A right is a lease; on one machine, processes stand in line for it by a lock."""

    lanes = 8
    is_remote = True

    def __init__(
        self,
        client: Client,
        *,
        address: str,
        prefix: str,
        here: Path,
        cache: Cache,
        digests: FileDigests | None,
        lease_seconds: float,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.address, self.here = address, here
        self._client, self._prefix, self._cache, self._digests = client, prefix, cache, digests
        self._local = FolderPlace(here)
        self._lease_seconds, self._patience = lease_seconds, patience
        self._leases: dict[str, Lease] = {}
        self._brought: dict[str, str] = {}  # name -> SHA-256 of what lies here
        self._damaged: dict[str, tuple[str, Stored | None]] = {}  # name -> SHA-256 of what came, instead of the right
        self._enforced: bool | None = None  # not tried yet
        self._answered = False

    # Small objects

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, None if there is none."""
        found = self.load(name)
        return None if found is None else found[0]

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, whatever was there."""
        self._write(name, lambda: self._client.put(self._key(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object if there is none of that name; return whether it was written."""
        return self.swap(name, content, None)

    def load(self, name: str) -> tuple[bytes, str] | None:
        """Return content and version of a small object, None if there is none."""
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
            present = self._content(name)  # the answer to a first try may have been lost on its way
            return present == content
        return True

    def remove(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        with suppress(Absent):
            self._do(name, lambda: self._client.delete(self._key(name)))

    def clear(self, folder: str) -> None:
        """Remove every object below a folder."""
        for stored in self.files(folder):
            self.remove(stored.name)

    def files(self, folder: str = "") -> list[Stored]:
        """Return every object below a folder."""
        found = self._list(f"{folder}/" if folder else "")
        for stored in found:
            if stored.name in self._damaged and self._damaged[stored.name][1] != stored:
                del self._damaged[stored.name]  # somebody has written it again
        return found

    def touch(self, name: str) -> None:
        """Write an empty marker."""
        self.write(name, b"")

    def now(self) -> float:
        """Return the time by the clock of the object store: that of an object written now."""
        self.write(CLOCK, uuid.uuid4().bytes)
        return next(stored.modified for stored in self._list(CLOCK))

    # Data files

    def put(self, source: Path, name: str, entry: FileEntry) -> None:
        """Send a file, verify it, and keep it in the cache under its name."""
        self.send(source, name, entry)
        target = self.here / name
        self._pin(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        self._brought[name] = entry.sha256
        self._damaged.pop(name, None)
        self._cache.grown(entry.size)

    def send(self, source: Path, name: str, entry: FileEntry) -> None:
        """Send a file and compare what the server has: by the server's own digest, or by reading it back.

        Raises:
            TransientError: it arrives with other bytes, again and again.
        """
        key = self._key(name)
        with suppress(Absent):
            if self._do(name, lambda: self._client.is_same(source, key)):
                return
        for _ in range(SENDS):
            self._write(name, lambda: self._client.send(source, key))
            with suppress(Absent):
                if self._do(name, lambda: self._client.is_same(source, key)) or self.sha256(name) == entry.sha256:
                    return
        raise TransientError(f"{self._at(name)}: it was sent {SENDS} times and arrived with other bytes each time.")

    def bring(self, name: str, entry: FileEntry) -> Path:
        """Return where a data file lies in the cache, bringing it if it does not lie there whole.

        Raises:
            DamagedArtifactError: it is missing, or its bytes are not those that were written.
        """
        target = self.here / name
        self._pin(name)
        if self._brought.get(name) == entry.sha256 and target.is_file():
            return target
        with self._local.hold(f"bring-{entry.sha256[:2]}"):
            if not self._is_here(target, entry):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._with_room(lambda: self._download(name, entry, target))
                self._cache.grown(entry.size)
        self._brought[name] = entry.sha256
        return target

    def keep(self, name: str, content: bytes) -> None:
        """Write a small file into the cache, beside what was brought."""
        self._local.write(name, content)

    def noticed(self, name: str) -> str | None:
        """Return the SHA-256 of a file that came with other bytes than those written, else None."""
        return self._damaged[name][0] if name in self._damaged else None

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of an object as it is read now, block by block."""
        digest, size = hashlib.sha256(), self._size(name)
        for start in range(0, size, BLOCK):
            digest.update(self._block(name, start, min(start + BLOCK, size)))
        return digest.hexdigest()

    # Rights

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lease that one process of all machines has at a time; False if it is taken and `wait` is False."""
        with self._local.hold(name, wait=wait) as is_first:
            lease = Lease(self, f"{LEASES}/{name}", self._lease_seconds)
            if not is_first or not lease.acquire(wait=wait):
                yield False
                return
            self._leases[name] = lease
            try:
                yield True
            finally:
                del self._leases[name]
                with suppress(TransientError, StoreError):  # it runs out by itself
                    lease.release()

    def taken(self) -> set[str]:
        """Return the rights that somebody holds now, the dead included whose lease has not run out."""
        oldest = self.now() - self._lease_seconds
        fresh = [stored.name for stored in self.files(LEASES) if stored.modified >= oldest]
        return {name.removeprefix(f"{LEASES}/") for name in fresh if is_held(self.read(name) or FREE)}

    def confirm(self, name: str) -> None:
        """Make sure that a lease has not run out.

        Raises:
            TransientError: it has, and another machine may be at the same work.
        """
        lease = self._leases.get(name)
        if lease is not None and lease.is_lost:
            raise TransientError(
                f"{self.address}: the lease on {name} ran out (this machine was asleep, or the store did not answer "
                "for too long), so another machine may be making the same artifact. Run again: it is reused, or the "
                "work is continued."
            )

    def age(self, name: str) -> float:
        """Return the seconds since an object was written, by the clock of the object store alone."""
        return self.now() - next((stored.modified for stored in self._list(name) if stored.name == name), self.now())

    # How it is done

    def _download(self, name: str, entry: FileEntry, target: Path) -> None:
        """Continue or begin a download, and give the file its name when its digest is right."""
        partial = self.here / PARTIAL / entry.sha256
        partial.parent.mkdir(parents=True, exist_ok=True)
        sha256 = ""
        for _ in range(2):  # what an earlier process has left may be of another content
            try:
                self._append(name, entry.size, partial)
            except Absent:
                break
            sha256 = sha256_file(partial)
            if sha256 == entry.sha256:
                partial.replace(target)
                return
            partial.unlink()
        content = self._content(name) if entry.volatile else None
        if content is None:
            there = next((stored for stored in self._list(name) if stored.name == name), None)
            self._damaged[name] = (sha256 or "missing", there)
            what = "its bytes are not those that were written (SHA-256 differs)" if sha256 else "missing"
            raise DamagedArtifactError(f"{self._at(name)}: {what}. Run again: it is made again.")
        partial.write_bytes(content)  # a log of the other of two producers: as good as this one's
        partial.replace(target)

    def _pin(self, name: str) -> None:
        stage, key = name.split("/")[:2]
        if not stage.startswith("."):
            self._cache.pin(self.here, f"{stage}/{key}")

    def _append(self, name: str, size: int, partial: Path) -> None:
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            for start in range(file.tell(), size, BLOCK):
                file.write(self._block(name, start, min(start + BLOCK, size)))

    def _block(self, name: str, start: int, end: int) -> bytes:
        def request() -> bytes:
            block = self._client.get_range(self._key(name), start, end)
            if len(block) != end - start:
                raise ConnectionError(f"{len(block)} bytes came instead of {end - start}")
            return block

        return self._do(name, request)

    def _with_room(self, work: Callable[[], None]) -> None:
        """Write to the cache; when the disk is full, empty it of what is not in use and try once more."""
        try:
            try:
                work()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._cache.empty()
                work()
        except OSError as error:
            raise StoreError(
                f"{self.here}: {error.strerror}. Files of {self.address} are brought here; free space, or set "
                "artifact_cache to a folder on another disk. What came so far is kept."
            ) from error

    def _is_here(self, target: Path, entry: FileEntry) -> bool:
        if not target.is_file() or target.stat().st_size != entry.size:
            return False
        sha256 = sha256_file(target) if self._digests is None else self._digests.sha256(target)
        return sha256 == entry.sha256

    def _size(self, name: str) -> int:
        size = next((stored.size for stored in self._list(name) if stored.name == name), None)
        if size is None:
            raise Absent
        return size

    def _content(self, name: str) -> bytes | None:
        try:
            return self._do(name, lambda: self._client.get(self._key(name)))[0]
        except Absent:
            return None

    def _list(self, prefix: str) -> list[Stored]:
        cut = len(self._key(""))
        try:
            found = self._do(prefix, lambda: list(self._client.list(self._key(prefix))))
        except Absent:
            return []
        return [Stored(stored.name[cut:], stored.size, stored.modified) for stored in found]

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}"

    def _keeps_conditions(self) -> bool:
        """Return whether the server keeps to conditions, tried once in a process."""
        if self._enforced is None:
            self._enforced = self._probe(f"{PROBES}/{uuid.uuid4().hex}")
            if not self._enforced:
                logger.warning(
                    "%s does not enforce conditional writes: two runs that start together may do the same work twice. "
                    "Artifacts are safe: each write is read back, and equal work is stored once.",
                    self.address,
                )
        return self._enforced

    def _probe(self, name: str) -> bool:
        """Return whether a second create, and an update of what was updated meanwhile, are refused."""
        key = self._key(name)
        try:
            self._write(name, lambda: self._client.put(key, b"1", ABSENT))
            if self._is_accepted(name, b"2", ABSENT):
                return False
            version = self._do(name, lambda: self._client.get(key))[1]
            return self._is_accepted(name, b"3", version) and not self._is_accepted(name, b"4", version)
        except (Taken, StoreError):
            return False
        finally:
            self.remove(name)

    def _is_accepted(self, name: str, content: bytes, version: str) -> bool:
        try:
            self._do(name, lambda: self._client.put(self._key(name), content, version))
        except (Taken, Absent):
            return self._content(name) == content
        return True

    def _swap_and_look(self, name: str, content: bytes, version: str | None) -> bool:
        present = self._content(name)
        if (None if present is None else hashlib.sha256(present).hexdigest()) != version:
            return present == content
        self.write(name, content)
        time.sleep(random.uniform(*SETTLE_SECONDS))  # noqa: S311 - not for secrets
        return self._content(name) == content

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
                        f"{self._at(name)}: no answer for {time.monotonic() - started:.0f} seconds "
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
            remedy = "Check that the bucket exists, which credentials are used, and what they may do there."
            return ConfigError([Problem("configuration", "artifact_store", self._at(name), said(error), remedy)])
        return StoreError(f"{self._at(name)}: {said(error)}")
