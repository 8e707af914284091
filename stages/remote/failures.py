"""What an object store's client raises: whether it can pass, when to ask again, and how it is said.

Each client has exceptions of its own, and fsspec translates some of them into OSErrors and keeps the rest as causes; so
the whole chain is looked at.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from configs.secrets import redacted

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
PASSING_CODES = frozenset(
    {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"}
    | {"TooManyRequests", "BadDigest", "RequestTimeTooSkewed", "XAmzContentSHA256Mismatch", "IncompleteBody"}
)
REFUSALS = ("NoCredentials", "PartialCredentials", "DefaultCredentialsError", "ProfileNotFound", "ParamValidation",
            "OfflineMode", "LocalEntryNotFound", "RepositoryNotFound", "RevisionNotFound", "GatedRepo")  # fmt: skip
CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "adlfs", "azure", "urllib3", "requests", "httpx",
           "httpx2", "httpcore", "httpcore2", "s3fs", "fsspec", "ssl", "socket", "asyncio"}  # fmt: skip
NEVER_PASSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class ChangedError(Exception):
    """The object is not the one that was pinned any more."""


class DamagedError(Exception):
    """The bytes that arrived are not those that the store says it has."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, if it does."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(link, "status", None) or getattr(response, "status_code", None)
            if type(link).__name__ == "HttpError":  # of gcsfs; aiohttp has a `code` for what never was an answer
                status = status or getattr(link, "code", None)
        if isinstance(status, int) or (isinstance(status, str) and status.isdecimal()):
            return int(status)
    return None


def retry_after(error: BaseException, now: datetime | None = None) -> float:
    """Return the seconds for which the server asks to be left alone; 0 if it does not say."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        headers: Any = getattr(link, "headers", None) or getattr(response, "headers", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        said = headers.get("Retry-After") or headers.get("retry-after") if headers else None
        if said:
            return _seconds(str(said), now or datetime.now(UTC))
    return 0.0


def can_pass(error: BaseException) -> bool:
    """Return whether asking again can help."""
    refusal = any(name in type(link).__name__ for link in _chain(error) for name in REFUSALS)
    if isinstance(error, ChangedError) or refusal:
        return False
    if isinstance(error, DamagedError | TimeoutError | ConnectionError | EOFError):
        return True
    if getattr(error, "errno", None) in NEVER_PASSES or _code(error) in PASSING_CODES:
        return _code(error) in PASSING_CODES
    status = status_of(error)
    if status is not None:
        return status in PASSING_STATUS
    refused = FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError
    if isinstance(error, refused) or "Forbidden" in str(error):
        return False
    return isinstance(error, OSError) or is_of_a_client(error)


def is_of_a_client(error: BaseException) -> bool:
    """Return whether an error comes from a store's client, and not from a mistake of ours."""
    modules = {type_.__module__.partition(".")[0] for link in _chain(error) for type_ in type(link).__mro__}
    return bool(modules & CLIENTS)


def said(error: BaseException) -> str:
    """Return an error in one line without secrets: its type and text."""
    text = " ".join(str(error).split()) or "no further text"
    return redacted(f"{type(error).__name__}: {text[:300]}")


def _code(error: BaseException) -> str | None:
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return str(code) if code is not None else None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(8):  # a chain may be a circle
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _seconds(text: str, now: datetime) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0
