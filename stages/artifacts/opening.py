"""From the address of a store to the store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.artifacts.bucket import BucketPlace
from stages.artifacts.cache import Cache
from stages.artifacts.clients import Access, Client
from stages.artifacts.digests import FileDigests, digest_of
from stages.artifacts.store import Store
from stages.errors import ConfigError, Problem

KINDS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
LEASE_SECONDS = 60.0


def open_store(
    address: str,
    digests: FileDigests | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    cache_bytes: int = 100_000_000_000,
    lease_seconds: float = LEASE_SECONDS,
) -> Store:
    """Return the store at a path or URL; nothing is read or written yet.

    Args:
        address: a folder, `s3://bucket/prefix` or `gs://bucket/prefix`.
        digests: the memory of file digests.
        options: how an object store is reached, in the words of `storage_options`.
        cache: folder for the files of remote stores; None: that of the user.
        cache_bytes: what it may hold.
        lease_seconds: how long a dead machine keeps an artifact that it was making.

    Raises:
        ConfigError: no such kind of place, or its package is missing.
    """
    if "://" not in address or address.startswith("file://"):
        return Store(Path(address.removeprefix("file://")).expanduser(), digests)
    url = urlsplit(address)
    if url.scheme not in KINDS or not url.netloc:
        raise _wrong(address, "a store is a folder, s3://bucket/prefix or gs://bucket/prefix", "Correct the address.")
    if "@" in url.netloc:
        rule = "a URL with credentials in it would be written into logs"
        raise _wrong(f"{url.scheme}://...", rule, "Remove them; the environment or credential files hold them.")
    try:
        access = Access.of(options or {})
    except ValueError as error:
        known = ", ".join(Access.__dataclass_fields__)
        raise _wrong(address, str(error), f"artifact_store_options are {known} and block.") from error
    client = _client(address, KINDS[url.scheme], url.netloc, access)
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft-flow" / "artifacts"
    prefix = url.path.strip("/")
    name = re.sub(r"[^a-z0-9]+", "-", f"{url.netloc}/{prefix}".lower()).strip("-")
    here = root.expanduser().absolute() / f"{name}-{digest_of([url.netloc, prefix, access.endpoint_url])[:8]}"
    place = BucketPlace(
        client,
        address=f"{url.scheme}://{url.netloc}/{prefix}".rstrip("/"),
        prefix=prefix,
        here=here,
        cache=Cache(here.parent, cache_bytes),
        digests=digests,
        lease_seconds=lease_seconds,
    )
    return Store(place)


def _client(address: str, kind: str, bucket: str, access: Access) -> Client:
    try:
        if kind == "s3":
            from stages.artifacts.s3 import S3Client

            return S3Client(bucket, access)
        from stages.artifacts.gcs import GcsClient

        return GcsClient(bucket, access)
    except ImportError as error:
        remedy = f"pip install 'sft-flow[{kind}]'"
        raise _wrong(address, f"it needs a package that is not installed ({error.name})", remedy) from error


def _wrong(address: str, rule: str, remedy: str) -> ConfigError:
    return ConfigError([Problem("configuration", "artifact_store", address, rule, remedy)])
