"""Under which licence a base model or a data set is, as its own card says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import orjson
import yaml
from huggingface_hub import RepoCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

from stages.base_model import ModelSource

CARD = "README.md"


@dataclass(frozen=True)
class Licence:
    """A licence as the Hub's cards have it.

    Attributes:
        id: `apache-2.0`, `llama3.2`, `other`; None if it is not known.
        name, link: what cards with `other` say.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None

    @property
    def shown(self) -> str:
        """Return it in words."""
        return self.name or self.id or "not known"


def licence_of_model(source: ModelSource) -> Licence:
    """Return the licence of a base model: from its card, else from its `config.json`."""
    if source.commit is not None:
        return licence_on_hub(source.name, source.commit, "model")
    if source.place is not None:
        return Licence()
    folder, licence = Path(source.name), Licence()
    with suppress(OSError):
        licence = _licence_in((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    if licence.id is None:
        with suppress(OSError, ValueError):
            licence = _licence(orjson.loads((folder / "config.json").read_bytes()))
    return licence


def licence_on_hub(repo: str, commit: str, kind: str) -> Licence:
    """Return the licence of a commit of a repository: from its card, which is asked for once; unknown without one.

    Args:
        repo: owner and name.
        commit: which one; its card never changes.
        kind: "model" or "dataset".
    """
    known = huggingface_hub.try_to_load_from_cache(repo, CARD, revision=commit, repo_type=kind)
    if known is None:
        with suppress(EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError):
            known = huggingface_hub.hf_hub_download(repo, CARD, revision=commit, repo_type=kind)
    return _licence_in(Path(known).read_text(encoding="utf-8")) if isinstance(known, str) else Licence()


def _licence_in(card: str) -> Licence:
    with suppress(ValueError, yaml.YAMLError):  # whatever people write there
        return _licence(RepoCard(card, ignore_metadata_errors=True).data.to_dict())
    return Licence()


def _licence(said: dict[str, Any]) -> Licence:
    found = said.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    name, link = (said.get(key) for key in ("license_name", "license_link"))
    return Licence(*(value if isinstance(value, str) and value else None for value in (found, name, link)))
