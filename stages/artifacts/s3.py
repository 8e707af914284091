"""S3 by boto3. Conditions are `If-None-Match: *` and `If-Match: <ETag>`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from stages.artifacts.clients import ABSENT, Access, Meaning
from stages.artifacts.place import Stored

PART = 16 << 20  # bytes
MOST_PARTS = 9_000  # of the 10,000 that S3 allows
CODES: dict[str, Meaning] = {
    "NoSuchKey": "absent",
    "404": "absent",
    "NotFound": "absent",
    "InvalidRange": "absent",
    "PreconditionFailed": "taken",
    "412": "taken",
    "ConditionalRequestConflict": "passing",
    "AccessDenied": "refused",
    "403": "refused",
    "401": "refused",
    "InvalidAccessKeyId": "refused",
    "SignatureDoesNotMatch": "refused",
    "ExpiredToken": "refused",
    "InvalidToken": "refused",
    "NoSuchBucket": "refused",
    "BadDigest": "passing",
    "InvalidDigest": "passing",
    "XAmzContentSHA256Mismatch": "passing",
    "RequestTimeout": "passing",
    "RequestTimeTooSkewed": "refused",
    "SlowDown": "passing",
    "InternalError": "passing",
}


class S3Client:
    """One bucket, by the requests of a store. Credentials come from boto3's usual chain."""

    errors: tuple[type[Exception], ...] = (BotoCoreError, ClientError, S3UploadFailedError)

    def __init__(self, bucket: str, access: Access) -> None:
        session = boto3.Session(
            profile_name=access.profile,
            region_name=access.region,
            aws_access_key_id=access.key,
            aws_secret_access_key=access.secret,
            aws_session_token=access.token,
        )
        unsigned: dict[str, Any] = {"signature_version": UNSIGNED} if access.anonymous else {}
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
            **unsigned,
        )
        self._s3 = session.client("s3", endpoint_url=access.endpoint_url, config=config)
        self._bucket = bucket

    def get(self, name: str) -> tuple[bytes, str]:
        """Return the content of a small object, and its ETag."""
        answer = self._s3.get_object(Bucket=self._bucket, Key=name)
        return bytes(answer["Body"].read()), str(answer["ETag"])

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        answer = self._s3.get_object(Bucket=self._bucket, Key=name, Range=f"bytes={start}-{end - 1}")
        return bytes(answer["Body"].read())

    def put(self, name: str, content: bytes, version: str | None = None) -> None:
        """Write a small object; with a version (`ABSENT`: none), only if the present one has it."""
        condition = {} if version is None else {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}
        self._s3.put_object(Bucket=self._bucket, Key=name, Body=content, **condition)

    def send(self, source: Path, name: str) -> None:
        """Write an object from a file, a large one in parts; the server compares the checksum of each part."""
        part = _part_bytes(source)
        config = TransferConfig(multipart_threshold=part + 1, multipart_chunksize=part, max_concurrency=4)
        self._s3.upload_file(str(source), self._bucket, name, Config=config)

    def is_same(self, source: Path, name: str) -> bool:
        """Return whether the object's ETag is the one that the file's bytes give, sent by `send`."""
        answer = self._s3.head_object(Bucket=self._bucket, Key=name)
        return bool(answer["ContentLength"] == source.stat().st_size and answer["ETag"] == etag_of(source))

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose names begin so."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield Stored(item["Key"], item["Size"], item["LastModified"].timestamp())

    def delete(self, name: str) -> None:
        """Remove an object; it may be gone already."""
        self._s3.delete_object(Bucket=self._bucket, Key=name)

    def meaning(self, error: Exception) -> Meaning:
        """Return what an error of boto3, or of a connection, means."""
        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, ClientError):
            error = error.__context__
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in CODES:
                return CODES[code]
            by_status: dict[int, Meaning] = {403: "refused", 401: "refused", 404: "absent", 412: "taken"}
            return by_status.get(status, "passing" if status in (408, 409, 429) or status >= 500 else "wrong")
        if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return "refused"
        return "passing"


def etag_of(path: Path) -> str:
    """Return the ETag that S3 gives a file sent by `send`: its MD5, or the MD5 of those of its parts."""
    part = _part_bytes(path)
    with path.open("rb") as file:
        digests = [_md5(block) for block in iter(lambda: file.read(part), b"")] or [_md5(b"")]
    if len(digests) == 1:
        return f'"{digests[0].hex()}"'
    return f'"{_md5(b"".join(digests)).hex()}-{len(digests)}"'


def _part_bytes(path: Path) -> int:
    return max(PART, -(-path.stat().st_size // MOST_PARTS))


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()
