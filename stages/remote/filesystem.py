"""The fsspec file system of a URL, with `storage_options` in words that are the same for every store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec

from stages.remote.explain import PlaceProblemError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
HTTP = ("http", "https")
NO_HIERARCHY_PROBE = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return (file system, path in it) of a URL; nothing is asked over the network yet.

    Args:
        url: with a scheme.
        options: endpoint_url, region, profile, anonymous, and whatever the file system takes.

    Raises:
        PlaceProblemError: no such scheme, a package is missing, or an option that the file system does not take.
    """
    protocol = urlsplit(url).scheme
    if protocol not in fsspec.available_protocols():
        raise PlaceProblemError(f"{protocol}:// is not known", "Use s3://, gs://, https:// or a local path.")
    if protocol in ("gs", "gcs") and ("endpoint_url" in options or os.environ.get("STORAGE_EMULATOR_HOST")):
        os.environ.setdefault(NO_HIERARCHY_PROBE, "false")  # its probe by gRPC waits a minute where there is no Google
    try:
        filesystem = fsspec.filesystem(protocol, **client_options(protocol, options))
        if protocol in ("s3", "s3a"):
            filesystem.retries = 1  # `Patience` asks again: two layers of retries would multiply
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'sft-flow[{extra}]'" if extra else "Install the package that fsspec names."
        raise PlaceProblemError(f"{protocol}:// needs a package that is not installed ({error})", remedy) from error
    except (TypeError, ValueError) as error:
        raise PlaceProblemError(f"{protocol}:// does not take these storage_options: {error}", "Check them.") from None
    return filesystem, filesystem._strip_protocol(url)


def client_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the file system of a protocol.

    >>> client_options("s3", {"region": "eu-west-1", "anonymous": True})["client_kwargs"]
    {'region_name': 'eu-west-1'}
    """
    left = {name: value for name, value in options.items() if name != "block"}
    anonymous, region = left.pop("anonymous", None), left.pop("region", None)
    if protocol in ("s3", "s3a"):
        if anonymous is not None:
            left["anon"] = anonymous
        if region is not None:
            left["client_kwargs"] = {**left.get("client_kwargs", {}), "region_name": region}
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}}, **left}
    if protocol in ("gs", "gcs"):
        if anonymous:
            left["token"] = "anon"  # noqa: S105  the word for: without one
        return left
    if protocol in HTTP:
        import aiohttp  # comes with fsspec's http file system, which is only needed here

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)  # seconds; of a stall, not in all
        client = {"timeout": timeout, "auto_decompress": False, **left.pop("client_kwargs", {})}
        return {**left, "client_kwargs": client}
    return left
