"""The base model and its tokenizer: where their files are, and what identifies their content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from configs.schema import RunConfig
from stages.artifacts import FileDigests
from stages.errors import ConfigError, Problem, TransientError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",  # AutoTokenizer asks it for the tokenizer's class
)
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.py")
"""What a model folder is made of; pickled weights (*.bin, *.pt) are never loaded."""


@dataclass(frozen=True)
class ModelSource:
    """A model or tokenizer as the configuration names it.

    Attributes:
        name: Hub id or folder, as written.
        commit: the commit on the Hub that `revision` resolved to; None for a folder.
    """

    name: str
    commit: str | None

    def at(self, content: dict[str, Any]) -> ModelSource:
        """Return it as `content` says it was: at its commit, though the branch may have moved since."""
        return ModelSource(self.name, content.get("commit"))

    def folder(self, patterns: tuple[str, ...]) -> Path:
        """Return a local folder with the files that match, downloading them if they are not on this machine yet.

        Raises:
            TransientError: the Hub cannot be reached now.
        """
        if self.commit is None:
            return Path(self.name)
        try:
            return Path(
                huggingface_hub.snapshot_download(self.name, revision=self.commit, allow_patterns=list(patterns))
            )
        except (HfHubHTTPError, OSError) as error:
            raise TransientError(f"{self.name}: the download from the Hub failed: {error}") from error

    def content(self, patterns: tuple[str, ...], digests: FileDigests) -> dict[str, Any]:
        """Return what identifies the files that match: the commit, or the digest of each file of a folder."""
        if self.commit is not None:
            return {"hub": self.name, "commit": self.commit}
        folder = Path(self.name)
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        return {"files": {path.name: digests.sha256(path) for path in paths}}


def find_model(run: RunConfig) -> ModelSource:
    """Return the base model.

    Raises:
        ConfigError: there is no such folder and no such model on the Hub.
        TransientError: the Hub cannot be reached and its cache on this machine does not have the model.
    """
    return _find(run.base_model, run.model_revision, "base_model")


def find_tokenizer(run: RunConfig) -> ModelSource:
    """Return the tokenizer: `tokenizer_config`, else the base model's. Raises as `find_model`."""
    if run.tokenizer_config is None:
        return find_model(run)
    return _find(run.tokenizer_config, None, "tokenizer_config")


def find_adapter(run: RunConfig) -> ModelSource | None:
    """Return the adapter whose training goes on, if there is one. Raises as `find_model`."""
    return None if run.lora_model_dir is None else _find(run.lora_model_dir, None, "lora_model_dir")


def _find(name: str, revision: str | None, key: str) -> ModelSource:
    if Path(name).is_dir():
        return ModelSource(name, None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(
            [Problem("configuration", key, name, "there is no such folder", "Check the path; it is read from here.")]
        )
    try:
        return ModelSource(name, huggingface_hub.model_info(name, revision=revision).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        rule = "there is no such folder, and no such model (or revision) on the Hub that this account can read"
        remedy = "Check the name and model_revision; for a gated model accept its terms and set HF_TOKEN."
        raise ConfigError([Problem("configuration", key, name, rule, remedy)]) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        return ModelSource(name, _cached_commit(name, revision, error))


def _cached_commit(name: str, revision: str | None, error: Exception) -> str:
    """Return the commit that the Hub's cache on this machine has for a revision."""
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=["config.json"], local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise TransientError(f"{name}: the Hub cannot be reached, and it is not on this machine: {error}") from error
    return Path(folder).name
