"""Where a model can be published: a folder, or any URL that fsspec knows. What its failures mean."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import fsspec

from stages.errors import ConfigError, Problem, SftError, StageError, TransientError
from stages.remote.explain import PlaceProblemError
from stages.remote.filesystem import open_filesystem
from stages.remote.patience import READING

BLOCK = 8 << 20  # bytes read at once
DRAFT = ".sft-tmp-"
NOT_PERSISTENT = ("memory", "data", "http", "https")
WRONG_TARGET = (errno.EINVAL, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""Errors that say that the target itself is wrong; S3 file systems use EINVAL for bucket names and the like."""
WILL_NOT_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Moved = Callable[[int], None]
"""Is told after each block how many bytes were moved."""


class Target(Protocol):
    """A place with files; a name is a relative POSIX path."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""

    def sha256(self, name: str, moved: Moved) -> str | None:
        """Return the digest of a file's bytes as read from there, None if there is none."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""

    def stage(self, source: Path, name: str, moved: Moved) -> str | None:
        """Bring a file near under a temporary name and return its digest as read back; None: this target cannot."""

    def place(self, source: Path, name: str, moved: Moved) -> None:
        """Give a file its name: the staged one, else by sending it now."""

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""

    def clear(self, names: Iterable[str]) -> None:
        """Remove the temporary files that a try with these names, killed perhaps, has left."""

    def held(self) -> AbstractContextManager[None]:
        """Keep other publications of this machine away from the place, where that is possible."""


class FolderTarget:
    """A folder of this machine's file systems: files are copied beside their place and then renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        path = self._root / name
        return path.stat().st_size if path.is_file() else None

    def sha256(self, name: str, moved: Moved) -> str | None:
        """Return the digest of a file's bytes, None if there is none."""
        path = self._root / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return digest_of_stream(file, moved)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""
        path = self._root / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        draft = self._draft(name)
        with draft.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        self._rename(draft, name)

    def stage(self, source: Path, name: str, moved: Moved) -> str | None:
        """Copy a file to a temporary name in its folder, onto the disk, and return its digest as read back."""
        draft = self._draft(name)
        shutil.copyfile(source, draft)  # a copy, not a link: who edits the published file must not edit the artifact
        with draft.open("rb") as file:
            os.fsync(file.fileno())
            return digest_of_stream(file, moved)

    def place(self, source: Path, name: str, moved: Moved) -> None:
        """Give the staged file its name."""
        self._rename(self._draft(name), name)

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        (self._root / name).unlink(missing_ok=True)

    def clear(self, names: Iterable[str]) -> None:
        """Remove the temporary files that a try with these names, killed perhaps, has left."""
        for folder in {(self._root / name).parent for name in names}:
            for path in folder.glob(f"{DRAFT}*"):
                path.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and hold a lock on it; waits while another publication has it."""
        self._root.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._root, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems do not lock folders
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _draft(self, name: str) -> Path:
        final = self._root / name
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(DRAFT + final.name)

    def _rename(self, draft: Path, name: str) -> None:
        draft.replace(self._root / name)
        folder = os.open(draft.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RemoteTarget:
    """A place behind a URL: an object appears whole under its name when it has been sent."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem, self._root = filesystem, root.rstrip("/")

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None if there is none."""
        self._filesystem.invalidate_cache()
        try:
            return int(READING.call(lambda: self._filesystem.info(self._path(name)))["size"])
        except FileNotFoundError:
            return None

    def sha256(self, name: str, moved: Moved) -> str | None:
        """Return the digest of a file's bytes as they come back, None if there is none."""
        self._filesystem.invalidate_cache()

        def digest() -> str:
            with self._filesystem.open(self._path(name), "rb", block_size=BLOCK, cache_type="readahead") as file:
                return digest_of_stream(file, moved)

        try:
            return READING.call(digest)
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""
        try:
            return bytes(READING.call(lambda: self._filesystem.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        READING.call(lambda: self._filesystem.pipe_file(self._path(name), content))

    def stage(self, source: Path, name: str, moved: Moved) -> str | None:
        """Do nothing: there are no cheap renames."""
        return None

    def place(self, source: Path, name: str, moved: Moved) -> None:
        """Send a file."""
        READING.call(lambda: self._filesystem.put_file(str(source), self._path(name), callback=_Sent(moved)))

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:
            READING.call(lambda: self._filesystem.rm_file(self._path(name)))
        except FileNotFoundError:
            return

    def clear(self, names: Iterable[str]) -> None:
        """Do nothing: there are no temporary files."""

    def held(self) -> AbstractContextManager[None]:
        """Do nothing: object stores have no locks."""
        return nullcontext()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class _Sent(fsspec.Callback):  # type: ignore[misc]
    """Passes on what fsspec tells of a file being sent."""

    def __init__(self, moved: Moved) -> None:
        super().__init__()
        self._sent = moved

    def relative_update(self, inc: int = 1) -> None:
        """Hear that `inc` further bytes were sent."""
        self._sent(inc)


def open_target(where: str, options: Mapping[str, Any] | None = None) -> Target:
    """Return the target of a folder path or URL, reached with storage `options`; nothing is read or written yet.

    Raises:
        ConfigError: no such kind of place, or its package is missing.
    """
    folder = local_folder(where)
    if folder is not None:
        return FolderTarget(folder)
    protocol = urlsplit(where).scheme
    if protocol in NOT_PERSISTENT or protocol not in fsspec.available_protocols():
        raise _wrong(where, f"{protocol}:// is not a place that can keep a model", "Use a folder, s3:// or gs://.")
    if urlsplit(where).password:
        raise _wrong(protocol + "://...", "a URL with a password in it would be written into logs and records",
                     "Remove it, and let the environment or the usual credential files hold it.")  # fmt: skip
    try:
        return RemoteTarget(*open_filesystem(where, options or {}))
    except PlaceProblemError as error:
        raise _wrong(where, error.rule, error.remedy) from error


def local_folder(where: str) -> Path | None:
    """Return the folder that a path or file:// URL means, None for a place behind another URL."""
    if where.startswith("file://"):
        return Path(urlsplit(where).path)
    return None if "://" in where else Path(where).expanduser()


def digest_of_stream(file: BinaryIO, moved: Moved) -> str:
    """Return the SHA-256 of what a file gives, in constant memory."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
        moved(len(block))
    return digest.hexdigest()


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what a file system raises into our errors: the target is wrong, it can pass, or it will not."""
    try:
        yield
    except SftError:
        raise
    except Exception as error:
        raise explain(where, error) from error


def explain(where: str, error: Exception) -> Exception:
    """Return our error for what a file system raised; an error that is no file system's comes back as it is."""
    libraries = {type_.__module__.partition(".")[0] for type_ in type(error).__mro__}
    said = f"{type(error).__name__}: {error}"
    number = error.errno if isinstance(error, OSError) else None
    wrong = PermissionError | FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError
    if isinstance(error, wrong) or number in WRONG_TARGET or "Credential" in type(error).__name__:
        remedy = "Check that the folder or bucket exists and that you may write there, and which credentials are used."
        return _wrong(where, f"the target cannot be written ({said})", remedy)
    if number in WILL_NOT_PASS:
        return StageError(f"publish to {where}: {said}. Free space there and run again; the merged model is kept.")
    if isinstance(error, OSError | TimeoutError) or libraries & NETWORK_LIBRARIES:
        return TransientError(f"publish to {where}: {said}. The merged model is kept; run again to send it.")
    return error


NETWORK_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "adlfs", "azure", "urllib3", "requests"}


def _wrong(where: str, rule: str, remedy: str) -> ConfigError:
    return ConfigError([Problem("configuration", "publish.to (or output_dir)", where, rule, remedy)])
