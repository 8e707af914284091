"""Storage options that a Prefect block holds, put where the configuration names the block.

Understood are blocks that hold options as a mapping (`secret`, `remote-file-system`), and those of prefect-aws and
prefect-gcp with credentials (`aws-credentials`, `minio-credentials`, `gcp-credentials`). Options that stand beside
`block` in the configuration win over the block's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

from configs.schema import RunConfig
from stages.errors import ConfigError, Problem

OPTIONS = ("storage_options", "base_model_storage_options", "artifact_store_options")
AWS = {"key": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token",
       "profile": "profile_name", "region": "region_name"}  # fmt: skip


def names_blocks(run: RunConfig) -> bool:
    """Return whether any storage options name a block."""
    return _replaced(run, "", lambda key, options: {}) is not run


def with_blocks(run: RunConfig) -> RunConfig:
    """Return the configuration with the options of every block that it names.

    Raises:
        ConfigError: there is no such block, or it holds no options.
    """
    found: RunConfig = _replaced(run, "", _options_of)
    return found


def _replaced(section: Any, place: str, options_of: Any) -> Any:
    """Return a section in which each mapping of options that names a block is another; itself if there is none."""
    update: dict[str, Any] = {}
    for key in type(section).model_fields:
        value, inner = getattr(section, key), f"{place}.{key}".lstrip(".")
        if key in OPTIONS and isinstance(value, dict) and "block" in value:
            update[key] = options_of(inner, value)
        elif isinstance(value, BaseModel):
            update[key] = _replaced(value, inner, options_of)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            update[key] = tuple(_replaced(item, f"{inner}.{number}", options_of) for number, item in enumerate(value))
    changed = {key: value for key, value in update.items() if value != getattr(section, key)}
    return section.model_copy(update=changed) if changed else section


def _options_of(key: str, options: dict[str, Any]) -> dict[str, Any]:
    from prefect.blocks.core import Block  # seconds, and only needed where a block is named

    name = options["block"]
    try:
        loaded = Block.load(name)
        block = asyncio.run(loaded) if asyncio.iscoroutine(loaded) else loaded
    except Exception as error:  # noqa: BLE001  the client raises what its server, its type or the network gives it
        rule = f"Prefect's server has no such block that can be read ({type(error).__name__})"
        remedy = "Create it there (type/name), and set PREFECT_API_URL to that server."
        raise ConfigError([Problem("configuration", f"{key}.block", name, rule, remedy)]) from None
    found = _held(block)
    if found is None:
        rule = f"a block of type {type(block).__name__} holds no storage options"
        remedy = "Use a secret or remote-file-system block with a mapping, or aws-credentials or gcp-credentials."
        raise ConfigError([Problem("configuration", f"{key}.block", name, rule, remedy)])
    return {**found, **{name: value for name, value in options.items() if name != "block"}}


def _held(block: Any) -> dict[str, Any] | None:
    """Return the options that a block holds, in the words of `storage_options`."""
    for value in (block.get() if callable(getattr(block, "get", None)) else None, getattr(block, "settings", None)):
        if isinstance(value, dict):
            return {name: _plain(inner) for name, inner in value.items()}
    if hasattr(block, "aws_access_key_id"):
        found = {name: _plain(getattr(block, of, None)) for name, of in AWS.items()}
        endpoint = getattr(getattr(block, "aws_client_parameters", None), "endpoint_url", None)
        return {name: value for name, value in {**found, "endpoint_url": endpoint}.items() if value}
    if hasattr(block, "service_account_info"):
        info, project = _plain(block.service_account_info), getattr(block, "project", None)
        return {name: value for name, value in {"token": info, "project": project}.items() if value}
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes) or hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    return value
