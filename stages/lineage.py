"""What a model is made of, by name and pin: its base model and its data sets, as the artifacts' keys have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from configs.schema import RunConfig
from configs.secrets import redacted
from stages.artifacts import Artifact, digest_of


@dataclass(frozen=True)
class Origin:
    """A base model or a data set.

    Attributes:
        name: Hub id, or the last name of a path or URL.
        hub: whether it is on the Hub.
        pin: its commit there, else a digest of what identifies its files.
    """

    name: str
    hub: bool
    pin: str

    @property
    def shown(self) -> str:
        """Return the pin in words."""
        return f"commit {self.pin}" if self.hub else f"content {self.pin[:16]}"


def base_of(run: RunConfig, artifacts: Mapping[str, Artifact]) -> Origin:
    """Return the base model that was trained."""
    return _origin(run.base_model, artifacts["train"].facts["base_model"])


def sources_of(run: RunConfig, artifacts: Mapping[str, Artifact]) -> list[Origin]:
    """Return the data sets, those for training first."""
    fetched = artifacts["fetch"].manifest.inputs["datasets"]
    return [_origin(source.path, entry["source"]) for source, entry in zip(run.sources, fetched, strict=True)]


def _origin(name: str, content: dict[str, Any]) -> Origin:
    if "commit" in content:
        return Origin(name, True, content["commit"])
    return Origin(PurePosixPath(redacted(name).rstrip("/")).name, False, digest_of(content))
