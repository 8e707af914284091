"""Google Cloud Storage by its own client. Conditions are `ifGenerationMatch`, with 0 for an absent object."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    NotFound,
    PreconditionFailed,
    RequestRangeNotSatisfiable,
    Unauthorized,
)
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from stages.artifacts.clients import ABSENT, Access, Meaning
from stages.artifacts.place import Stored

PART = 16 << 20  # bytes
ALLOWANCE: dict[str, Any] = {"timeout": (10, 60), "retry": DEFAULT_RETRY.with_timeout(30)}  # seconds
FIELDS = "items(name,size,updated),nextPageToken"
LOOPBACK = ("http://127.0.0.1", "http://localhost", "http://[::1]")
PASSING_STATUS = (408, 429, 500, 502, 503, 504)


class GcsClient:
    """One bucket, by the requests of a store. Credentials are the application default ones."""

    errors: tuple[type[Exception], ...] = (
        GoogleAPICallError,
        GoogleAuthError,
        DataCorruption,
        requests.RequestException,
    )

    def __init__(self, bucket: str, access: Access) -> None:
        given: dict[str, Any] = {}
        if access.endpoint_url:
            given["client_options"] = {"api_endpoint": access.endpoint_url}
        if access.project:
            given["project"] = access.project
        if isinstance(access.token, Mapping):
            given["credentials"] = service_account.Credentials.from_service_account_info(access.token)
            given.setdefault("project", access.token.get("project_id"))
        elif access.token and access.token != "anon":  # noqa: S105  gcsfs's word for: without one
            given = {"project": "unnamed", **given, "credentials": Credentials(access.token)}
        elif access.anonymous or access.token or (access.endpoint_url or "").startswith(LOOPBACK):
            given |= {"credentials": AnonymousCredentials(), "project": "anonymous"}
        self._bucket = storage.Client(**given).bucket(bucket)

    def get(self, name: str) -> tuple[bytes, str]:
        """Return the content of a small object, and its generation."""
        blob = self._bucket.blob(name)
        content = blob.download_as_bytes(**ALLOWANCE)
        return bytes(content), str(blob.generation)

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        return bytes(self._bucket.blob(name).download_as_bytes(start=start, end=end - 1, **ALLOWANCE))

    def put(self, name: str, content: bytes, version: str | None = None) -> None:
        """Write a small object; with a version (`ABSENT`: none), only if the present one has it."""
        condition = {} if version is None else {"if_generation_match": 0 if version == ABSENT else int(version)}
        self._bucket.blob(name).upload_from_string(content, checksum="crc32c", **condition, **ALLOWANCE)

    def send(self, source: Path, name: str) -> None:
        """Write an object from a file, a large one in parts; the server compares its checksum."""
        blob = self._bucket.blob(name, chunk_size=PART)
        blob.upload_from_filename(str(source), checksum="crc32c", **ALLOWANCE)

    def is_same(self, source: Path, name: str) -> bool:
        """Return whether the object's MD5 is that of the file; composed objects have none."""
        blob = self._bucket.blob(name)
        blob.reload(**ALLOWANCE)
        with source.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
        return bool(blob.size == source.stat().st_size and blob.md5_hash == base64.b64encode(md5).decode())

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose names begin so."""
        for blob in self._bucket.list_blobs(prefix=prefix, fields=FIELDS, **ALLOWANCE):
            yield Stored(blob.name, int(blob.size), blob.updated.timestamp())

    def delete(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        try:
            self._bucket.blob(name).delete(**ALLOWANCE)
        except NotFound:
            return

    def meaning(self, error: Exception) -> Meaning:
        """Return what an error of Google's client, or of a connection, means."""
        known: list[tuple[type[Exception] | tuple[type[Exception], ...], Meaning]] = [
            ((NotFound, RequestRangeNotSatisfiable), "absent"),
            (PreconditionFailed, "taken"),
            ((Forbidden, Unauthorized, DefaultCredentialsError), "refused"),
        ]
        for types, meaning in known:
            if isinstance(error, types):
                return meaning
        if isinstance(error, GoogleAPICallError):
            return "passing" if error.code in PASSING_STATUS else "wrong"
        return "passing"
