"""Finding objects behind a URL, and pinning each to its content before a byte of it is read."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from configs.secrets import SIGNATURE, redacted
from stages.remote.explain import PlaceProblemError
from stages.remote.failures import ChangedError
from stages.remote.filesystem import HTTP, open_filesystem
from stages.remote.patience import FINDING
from stages.remote.transfer import head_of, protocol_of

WILD = re.compile(r"[*\[]")
AT_ONCE = 16  # requests for the facts of objects


def is_remote(place: str) -> bool:
    """Return whether a path of the configuration is a URL."""
    return "://" in place


@dataclass(frozen=True)
class RemoteObject:
    """An object as it was when it was found.

    Attributes:
        filesystem: fsspec's.
        path: of the object in it.
        name: its last part, which tells the format.
        shown: its URL without secrets.
        size: bytes; None if the server does not say.
        pin: what identifies its content, JSON-ready; None if the server says nothing that would.
        guard: what makes a read conditional: `etag`, `generation` or `modified`, as the server writes it.
        checksum: (algorithm of hashlib, hex digits) that the store states for the whole object.
    """

    filesystem: Any = field(repr=False, compare=False)
    path: str = field(repr=False)
    name: str
    shown: str
    size: int | None
    pin: dict[str, Any] | None
    guard: dict[str, str]
    checksum: tuple[str, str] | None = None


@dataclass(frozen=True)
class RemoteFolder:
    """A place behind a URL that may hold objects: a bucket's prefix, or a directory that a web server lists."""

    filesystem: Any = field(repr=False)
    root: str = field(repr=False)
    shown: str
    _listed: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def names(self) -> list[str]:
        """Return the names of all objects below, relative, sorted. What would lead out of the folder is refused.

        Raises:
            PlaceProblemError: an object's name leads out of the folder.
        """
        found = FINDING.call(lambda: self._found(self.filesystem.find, self._url("*")[:-1]))
        return self._relative(found)

    def matches(self, pattern: str) -> list[str]:
        """Return the names of the objects that a pattern means, sorted."""
        return self._relative(FINDING.call(lambda: self._found(self.filesystem.glob, self._url(pattern))))

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object, None if there is none."""
        try:
            return FINDING.call(lambda: bytes(self.filesystem.cat_file(self._url(name))))
        except FileNotFoundError:
            return None

    def objects(self, names: Iterable[str]) -> list[RemoteObject]:
        """Return objects by their names, pinned, in the same order; asks for several at once.

        Raises:
            FileNotFoundError: one of them is not there.
        """
        names = list(names)
        with ThreadPoolExecutor(min(AT_ONCE, max(1, len(names)))) as pool:
            return list(pool.map(self._object, names))

    def is_file(self) -> bool:
        """Return whether the URL means one object."""
        if protocol_of(self.filesystem) in HTTP:
            return not self.root.endswith("/")
        try:
            return bool(FINDING.call(lambda: self._facts("")["type"]) == "file")
        except FileNotFoundError:
            return False

    def as_file(self) -> tuple[RemoteFolder, str]:
        """Return the folder around the one object that the URL means, and its name there."""
        above, _, name = self.root.rpartition("/")
        shown, _, _ = self.shown.rpartition("/")
        return RemoteFolder(self.filesystem, above, shown), name

    def _object(self, name: str) -> RemoteObject:
        facts = FINDING.call(lambda: self._facts(name))
        pin, guard, checksum = _identity(protocol_of(self.filesystem), self._url(name), facts)
        shown = redacted(f"{self.shown}/{name}" if name else self.shown)
        plain = PurePosixPath(unquote(urlsplit(shown.removesuffix("?...")).path)).name
        size = None if facts.get("size") is None else int(facts["size"])
        return RemoteObject(self.filesystem, self._url(name), plain, shown, size, pin, guard, checksum)

    def _facts(self, name: str) -> Mapping[str, Any]:
        listed = self._listed.get(self._url(name), {})
        known = listed.get("size") is not None and (listed.get("ETag") or listed.get("generation"))
        return listed if known else head_of(self.filesystem, self._url(name))

    def _url(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def _found(self, search: Any, where: str) -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = search(where, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        files = {path: facts for path, facts in found.items() if facts.get("type") != "directory"}
        self._listed.update(files)
        return list(files)

    def _relative(self, paths: list[str]) -> list[str]:
        root = f"{self.root.rstrip('/')}/"
        names = sorted(path.removeprefix(root) for path in paths if path.startswith(root) and not path.endswith("/"))
        if protocol_of(self.filesystem) in HTTP:  # the links that sort a directory page are no files
            names = [name for name in names if "?" not in name and "#" not in name]
        escaping = next((name for name in names if leaves_folder(unquote(name))), None)
        if escaping is not None:
            rule = f"{self.shown} lists {escaping!r}, which would lie outside of it"
            raise PlaceProblemError(rule, "Do not trust this place.")
        return [name for name in names if name]


def check_unchanged(item: RemoteObject) -> None:
    """Ask again what the object is; for stores that do not heed conditions, and where a checksum differs.

    Raises:
        ChangedError: it is another one now.
    """
    facts = FINDING.call(lambda: head_of(item.filesystem, item.path))
    pin, _, _ = _identity(protocol_of(item.filesystem), item.path, facts)
    if pin != item.pin:
        raise ChangedError("it was written to")


def leaves_folder(name: str) -> bool:
    """Return whether a relative name would lead out of its folder.

    >>> leaves_folder("a/../../b"), leaves_folder("/etc/passwd"), leaves_folder("a/b..c")
    (True, True, False)
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or "\0" in name


def open_folder(url: str, options: Mapping[str, Any]) -> RemoteFolder:
    """Return the place behind a URL; nothing is asked over the network yet. Raises as `open_filesystem`."""
    filesystem, path = open_filesystem(url, options)
    is_http = protocol_of(filesystem) in HTTP
    return RemoteFolder(filesystem, path if is_http else path.rstrip("/"), redacted(url).rstrip("/"))


def _identity(
    protocol: str, url: str, facts: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, str], tuple[str, str] | None]:
    """Return (pin, guard, checksum) of an object.

    ETags of object stores are made of the content, or are new with every upload; a web server's may be size and time,
    so there the URL is a part of the pin.
    """
    size = facts.get("size")
    if protocol in ("gs", "gcs"):
        md5, generation = facts.get("md5Hash"), facts.get("generation")
        content = {"md5": md5} if md5 else {"crc32c": facts.get("crc32c"), "generation": str(generation)}
        checksum = ("md5", _hex(md5)) if md5 else None
        return {**content, "size": size}, {"generation": str(generation)} if generation else {}, checksum
    etag, modified = facts.get("ETag") or facts.get("etag"), facts.get("Last-Modified") or facts.get("LastModified")
    if protocol in HTTP:
        where = {"url": _without_signature(url)}
        strong = etag is not None and not str(etag).startswith("W/")
        guard = {"etag": str(etag)} if strong else {"modified": str(modified)} if modified else {}
        if etag:
            return {**where, "etag": str(etag), "size": size}, guard, None
        if modified and size is not None:
            return {**where, "modified": str(modified), "size": size}, guard, None
        return None, {}, None
    if etag:
        plain = str(etag).strip('"')
        checksum = ("md5", plain) if re.fullmatch(r"[0-9a-f]{32}", plain) else None
        return {"etag": plain, "size": size}, {"etag": str(etag)}, checksum
    if modified or facts.get("mtime"):
        return {"url": url, "modified": str(modified or facts["mtime"]), "size": size}, {}, None
    return None, {}, None


def _without_signature(url: str) -> str:
    """Return a URL as a key may hold it: without user, and of its query what is no signature."""
    parts = urlsplit(url)
    kept = [pair for pair in parts.query.split("&") if pair and not SIGNATURE.match(pair)]
    plain = redacted(parts._replace(query="", fragment="").geturl())
    return f"{plain}?{'&'.join(kept)}" if kept else plain


def _hex(base64_text: str) -> str:
    return base64.b64decode(base64_text).hex()
