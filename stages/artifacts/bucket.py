"""A store in a bucket of an object store, with a cache of its files on this machine."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.artifacts.cache import PARTIAL, Cache
from stages.artifacts.clients import Client
from stages.artifacts.digests import FileDigests, sha256_file
from stages.artifacts.lease import FREE, Lease, is_held
from stages.artifacts.manifest import FileEntry
from stages.artifacts.objects import Absent, Objects
from stages.artifacts.place import FolderPlace, Stored
from stages.errors import DamagedArtifactError, StoreError, TransientError

BLOCK = 16 << 20  # bytes read by one request
LEASES = ".leases"
SENDS = 3


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
    ) -> None:
        self.address, self.here = address, here
        self._objects = Objects(client, address=address, prefix=prefix)
        self._local, self._cache, self._digests = FolderPlace(here), cache, digests
        self._lease_seconds = lease_seconds
        self._leases: dict[str, Lease] = {}
        self._brought: dict[str, str] = {}  # name -> SHA-256 of what lies here
        self._damaged: dict[str, tuple[str, Stored | None]] = {}  # name -> SHA-256 of what came, instead of the right

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, None if there is none."""
        return self._objects.read(name)

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, whatever was there."""
        self._objects.write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object if there is none of that name; return whether it was written."""
        return self._objects.swap(name, content, None)

    def remove(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        self._objects.remove(name)

    def clear(self, folder: str) -> None:
        """Remove every object below a folder."""
        for stored in self.files(folder):
            self.remove(stored.name)

    def files(self, folder: str = "") -> list[Stored]:
        """Return every object below a folder."""
        found = self._objects.files(f"{folder}/" if folder else "")
        for stored in found:
            if stored.name in self._damaged and self._damaged[stored.name][1] != stored:
                del self._damaged[stored.name]  # somebody has written it again
        return found

    def touch(self, name: str) -> None:
        """Write an empty marker."""
        self.write(name, b"")

    def now(self) -> float:
        """Return the time by the clock of the object store."""
        return self._objects.now()

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
        if self._objects.is_same(source, name):
            return
        for _ in range(SENDS):
            self._objects.send(source, name)
            if self._objects.is_same(source, name) or self.sha256(name) == entry.sha256:
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
        """Return the SHA-256 of an object as it is read now, block by block; "" if it is gone."""
        size = next((stored.size for stored in self._objects.files(name) if stored.name == name), None)
        if size is None:
            return ""
        digest = hashlib.sha256()
        for start in range(0, size, BLOCK):
            digest.update(self._objects.read_range(name, start, min(start + BLOCK, size)))
        return digest.hexdigest()

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lease that one process of all machines has at a time; False if it is taken and `wait` is False."""
        with self._local.hold(name, wait=wait) as is_first:
            lease = Lease(self._objects, f"{LEASES}/{name}", self._lease_seconds)
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
        content = self._objects.read(name) if entry.volatile else None
        if content is None:
            there = next((stored for stored in self._objects.files(name) if stored.name == name), None)
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
                file.write(self._objects.read_range(name, start, min(start + BLOCK, size)))

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
        size = next((stored.size for stored in self._objects.files(name) if stored.name == name), None)
        if size is None:
            raise Absent
        return size

    def _at(self, name: str) -> str:
        return f"{self.address}/{name}"
