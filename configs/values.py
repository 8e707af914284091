"""What the values of a configuration may be: kinds that several of its sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from configs.secrets import redacted

Train = Literal["all", "turn", "last", "none"]


class Section(BaseModel):
    """A part of the configuration: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=str | tuple[str, ...])]


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    block = options.get("block")
    if block is not None and (not isinstance(block, str) or block.count("/") != 1):
        raise ValueError("block names a Prefect block as type/name; write, for example, block: secret/training-data")
    return options


StorageOptions = Annotated[dict[str, Any], AfterValidator(_checked_options), Field(exclude=True, repr=False)]
"""How to reach a place behind a URL. May hold secrets: it is in no key, and dumped and shown nowhere."""
Place = Annotated[str, PlainSerializer(redacted, return_type=str)]
"""A path or URL; dumped without the secrets that a URL may hold."""
Places = Annotated[Strings, PlainSerializer(lambda names: [redacted(name) for name in names], return_type=list)]
OPTIONS_HELP = (
    "How to reach %s: endpoint_url, region, profile, anonymous, block (Prefect block, type/name), and what the fsspec "
    "file system knows. Credentials come from the usual chains. Never written anywhere."
)

_BYTES = r"(\d+\.?\d*) ?([KMGT]?)(i?)B"
_Written = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=f"^{_BYTES}$")]


def _as_bytes(value: Any) -> Any:
    """Read 50GB (powers of 1000) or 50GiB (of 1024) as a number of bytes."""
    match = re.fullmatch(_BYTES, value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit or " "))


ByteCount = Annotated[int, Field(ge=0), BeforeValidator(_as_bytes, json_schema_input_type=_Written)]
"""A number of bytes, or a text as 50GB."""


def _as_no(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


NoIsText = BeforeValidator(_as_no)
"""Reads a bare `no` as the text that it is."""


def _as_pairs(value: Any) -> Any:
    """Read "betas=0.9,eps=1e-6" as a mapping of names to words."""
    if not isinstance(value, str):
        return value
    return {name.strip(): word.strip() for name, _, word in (pair.partition("=") for pair in value.split(",")) if name}


Pairs = Annotated[dict[str, Any], BeforeValidator(_as_pairs, json_schema_input_type=str | dict[str, Any])]
"""Names and values: a mapping, or a text as "betas=0.9,eps=1e-6"."""
