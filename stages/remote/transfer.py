"""One request to a store: the facts of an object, or its bytes from an offset on, if it is still the one that is meant.

fsspec reads ranges, but not on condition that the object is unchanged (`If-Match`), and it gathers a body before it
gives it; so the request is made here, with the session and the credentials of its file systems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fsspec.asyn

from stages.remote.failures import ChangedError, DamagedError

BLOCK = 1 << 18  # bytes that are in memory at once, per object
ANSWER_TO_OTHER_METHODS = (400, 401, 403, 405, 501)
"""What servers say to HEAD where they only know GET: presigned links, small application servers."""

Sink = Callable[[bytes], Any]


def protocol_of(filesystem: Any) -> str:
    """Return the name of a file system's protocol."""
    protocol = filesystem.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


def head_of(filesystem: Any, path: str) -> Mapping[str, Any]:
    """Return the facts of an object, freshly asked for: size, type, ETag and the like.

    Raises:
        FileNotFoundError: there is none.
    """
    kind = protocol_of(filesystem)
    if kind in ("http", "https"):
        facts: Mapping[str, Any] = fsspec.asyn.sync(filesystem.loop, _http_facts, filesystem, path)
        return facts
    filesystem.invalidate_cache()
    facts = filesystem.info(path)
    return facts


def states_checksum(filesystem: Any, path: str) -> bool:
    """Return whether an ETag that looks like an MD5 is one; that of an object encrypted with a key of KMS is not."""
    if protocol_of(filesystem) not in ("s3", "s3a"):
        return True
    bucket, key, _ = filesystem.split_path(path)
    answer = filesystem.call_s3("head_object", Bucket=bucket, Key=key)
    return "kms" not in str(answer.get("ServerSideEncryption", "")) and "SSECustomerAlgorithm" not in answer


def receive(filesystem: Any, path: str, start: int, size: int | None, guard: Mapping[str, str], sink: Sink) -> None:
    """Give the bytes of an object from `start` on to `sink`, block by block as they arrive.

    Raises:
        ChangedError: the object is another than the one whose `guard` this is.
        DamagedError: fewer bytes came than the object has.
    """
    counted = _Counted(sink)
    kind = protocol_of(filesystem)
    if kind in ("s3", "s3a"):
        fsspec.asyn.sync(filesystem.loop, _from_s3, filesystem, path, start, guard, counted)
    elif kind in ("gs", "gcs"):
        fsspec.asyn.sync(filesystem.loop, _from_gcs, filesystem, path, start, guard, counted)
    elif kind in ("http", "https"):
        fsspec.asyn.sync(filesystem.loop, _from_http, filesystem, path, start, guard, counted)
    else:
        with filesystem.open(path, "rb", block_size=BLOCK, cache_type="readahead") as file:
            file.seek(start)
            while block := file.read(BLOCK):
                counted(block)
    if size is not None and start + counted.total != size:
        raise DamagedError(f"{start + counted.total:,} bytes came instead of {size:,}")


class _Counted:
    def __init__(self, sink: Sink) -> None:
        self._sink, self.total = sink, 0

    def __call__(self, block: bytes) -> None:
        self._sink(block)
        self.total += len(block)


async def _http_facts(filesystem: Any, url: str) -> dict[str, Any]:
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    headers = {"Accept-Encoding": "identity", **options.pop("headers", {})}
    async with session.head(filesystem.encode_url(url), allow_redirects=True, headers=headers, **options) as answer:
        if answer.status not in ANSWER_TO_OTHER_METHODS:
            filesystem._raise_not_found_for_status(answer, url)
            return _facts_of(answer.headers)
    headers["Range"] = "bytes=0-0"
    async with session.get(filesystem.encode_url(url), headers=headers, **options) as answer:
        filesystem._raise_not_found_for_status(answer, url)
        return _facts_of(answer.headers)


def _facts_of(headers: Mapping[str, str]) -> dict[str, Any]:
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length")
    facts = {name: headers[name] for name in ("ETag", "Last-Modified") if headers.get(name)}
    return {**facts, "type": "file", "size": int(size) if size and size.isdecimal() else None}


async def _from_http(filesystem: Any, url: str, start: int, guard: Mapping[str, str], sink: Sink) -> None:
    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    headers = {"Accept-Encoding": "identity", **options.pop("headers", {}), **_conditions(guard)}
    if start:
        headers["Range"] = f"bytes={start}-"
    async with session.get(filesystem.encode_url(url), headers=headers, **options) as answer:
        if answer.status in (412, 416):
            raise ChangedError("it was changed or shortened")
        filesystem._raise_not_found_for_status(answer, url)
        _check_unchanged(answer.headers, guard)
        skip = start if answer.status == 200 else 0  # a server that knows no ranges begins at the beginning
        async for block in answer.content.iter_chunked(BLOCK):
            if skip < len(block):
                sink(block[skip:])
            skip = max(0, skip - len(block))


def _conditions(guard: Mapping[str, str]) -> dict[str, str]:
    names = {"etag": "If-Match", "modified": "If-Unmodified-Since"}
    return {names[kind]: value for kind, value in guard.items() if kind in names}


def _check_unchanged(headers: Mapping[str, str], guard: Mapping[str, str]) -> None:
    """Compare what the answer says of the object: not every server heeds a condition."""
    names = {"etag": "ETag", "modified": "Last-Modified"}
    for kind, value in guard.items():
        found = headers.get(names.get(kind, ""))
        if found is not None and found != value:
            raise ChangedError(f"its {names[kind]} was {value} and is {found}")


async def _from_s3(filesystem: Any, path: str, start: int, guard: Mapping[str, str], sink: Sink) -> None:
    bucket, key, _ = filesystem.split_path(path)
    options: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
    if "etag" in guard:
        options["IfMatch"] = guard["etag"]
    try:
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, **options)
    except OSError as error:
        response = getattr(error.__cause__, "response", {})
        if response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (412, 416):
            raise ChangedError("it was changed or shortened") from None
        raise
    async with answer["Body"] as body:
        while block := await body.read(BLOCK):
            sink(block)


async def _from_gcs(filesystem: Any, path: str, start: int, guard: Mapping[str, str], sink: Sink) -> None:
    await filesystem._set_session()
    asked = {"Range": f"bytes={start}-"} if start else {}
    conditions = {"ifGenerationMatch": guard["generation"]} if "generation" in guard else {}
    async with filesystem.session.get(
        url=filesystem.url(path), params=filesystem._get_params(conditions), headers=filesystem._get_headers(asked)
    ) as answer:
        if answer.status in (412, 416):
            raise ChangedError("it was changed or shortened")
        if answer.status == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        found = answer.headers.get("x-goog-generation")
        if found and found != guard.get("generation", found):
            raise ChangedError("it is of another generation")
        skip = start if answer.status == 200 else 0
        async for block in answer.content.iter_chunked(BLOCK):
            if skip < len(block):
                sink(block[skip:])
            skip = max(0, skip - len(block))
