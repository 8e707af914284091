"""S3 and Google Cloud Storage by their own clients, behind the few requests that a store is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from stages.artifacts.place import Stored

Meaning = Literal["absent", "taken", "refused", "passing", "wrong"]
"""What a failed request means: no such object; a condition does not hold; no permission; may pass; our mistake."""

ABSENT = ""
"""The version of an object that is not there."""


ALIASES = {"anon": "anonymous", "username": "key", "password": "secret"}
"""Words of s3fs for the same."""


@dataclass(frozen=True)
class Access:
    """How an object store is reached.

    Attributes:
        endpoint_url: URL of the service, where it is not Amazon's or Google's.
        region, profile: of the AWS configuration.
        anonymous: whether requests carry no credentials.
        key, secret, token: credentials in place of the usual chains; Google's `token` is an access token, or the
            mapping of a service account's key file.
        project: Google's, where the credentials do not name one.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | Mapping[str, Any] | None = field(default=None, repr=False)
    project: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Access:
        """Return what storage options say.

        Raises:
            ValueError: one of them is not known; its value is not in the text.
        """
        given = {ALIASES.get(name, name): value for name, value in options.items() if name != "block"}
        unknown = [name for name in given if name not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not an option of a store")
        return cls(**given)


class Client(Protocol):
    """The requests; each raises what its library raises, and `meaning` explains it."""

    errors: tuple[type[Exception], ...]
    """What its library raises."""

    def get(self, name: str) -> tuple[bytes, str]:
        """Return the content of a small object, and its version."""

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""

    def put(self, name: str, content: bytes, version: str | None = None) -> None:
        """Write a small object; with a version (`ABSENT`: none), only if the present one has it."""

    def send(self, source: Path, name: str) -> None:
        """Write an object from a file."""

    def is_same(self, source: Path, name: str) -> bool:
        """Return whether the server knows a digest of the object and it is that of the file."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield the objects whose names begin so."""

    def delete(self, name: str) -> None:
        """Remove an object; it may be gone already."""

    def meaning(self, error: Exception) -> Meaning:
        """Return what an error of the library, or of a connection, means."""
