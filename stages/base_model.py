"""The base model and its tokenizer: where their files are, and what identifies their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from configs.schema import RunConfig
from configs.secrets import redacted
from stages.artifacts import FileDigests, digest_of, sha256_file
from stages.errors import ConfigError, Problem, TransientError
from stages.model_conversion import Conversion
from stages.model_overrides import overridden
from stages.remote import RemoteFolder, RemoteObject, is_remote, open_folder
from stages.remote.download import cache_folder, fetch_to
from stages.remote.explain import PlaceProblemError, explained
from stages.remote.failures import is_of_a_client, said
from stages.remote.patience import ASKING, READING

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
"""What a model folder is made of. Other weights (pickles, GGUF) are turned into safetensors first, or refused."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DOWNLOADS_AT_ONCE = 4


@dataclass(frozen=True)
class ModelSource:
    """A model or tokenizer as the configuration names it.

    Attributes:
        name: Hub id, folder or URL, as written.
        commit: the commit on the Hub that `revision` resolved to; None for a folder.
        place: the folder behind a URL; None for one of this machine and the Hub.
        conversion: what makes safetensors of its files; None if they are.
        overrides: other values for its `config.json`.
    """

    name: str
    commit: str | None
    place: RemoteFolder | None = None
    conversion: Conversion | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """Return the name that adapters and reports carry: the Hub id, or the folder's last name."""
        return self.name if self.commit else PurePosixPath(redacted(self.name).rstrip("/")).name

    def at(self, content: dict[str, Any]) -> ModelSource:
        """Return it as `content` says it was: at its commit, though the branch may have moved since."""
        return replace(self, commit=content.get("commit"))

    def folder(self, patterns: tuple[str, ...]) -> Path:
        """Return a local folder with the files that match, downloading them if they are not on this machine yet.

        Raises:
            ConfigError: the files may not be read, or cannot be converted.
            TransientError: the Hub, or a store, cannot be reached now.
        """
        folder = self._plain_folder(patterns) if self.conversion is None else self._converted(self.conversion)
        return overridden(folder, self.overrides) if self.overrides else folder

    def content(self, patterns: tuple[str, ...], digests: FileDigests) -> dict[str, Any]:
        """Return what identifies the files that match: the commit, or the pin or digest of each file of a folder."""
        changed = {"config": dict(self.overrides)} if self.overrides else {}
        if self.conversion is None:
            return {**self._plain_content(patterns, digests), **changed}
        plain = self._plain_content(self.conversion.files(), digests)
        return {**plain, "conversion": self.conversion.inputs(), **changed}

    def _converted(self, conversion: Conversion) -> Path:
        wanted = conversion.files()
        content = [self._plain_content(wanted), conversion.inputs()]
        return conversion.converted(digest_of(content), lambda: self._plain_folder(wanted))

    def _plain_folder(self, patterns: tuple[str, ...]) -> Path:
        if self.place is not None:
            return self._downloaded(self.place, patterns)
        if self.commit is None:
            return Path(self.name)
        commit = self.commit

        def download() -> str:
            return str(huggingface_hub.snapshot_download(self.name, revision=commit, allow_patterns=list(patterns)))

        try:
            return Path(READING.call(download))
        except GatedRepoError as error:
            rule = "this model is gated: the Hub gives its files only to accounts that have accepted its terms"
            remedy = (
                "Accept them on the model's page, and set the environment variable HF_TOKEN to that account's token."
            )
            raise ConfigError([Problem("configuration", "base_model", self.name, rule, remedy)]) from error
        except Exception as error:
            if not _is_of_the_hub(error):
                raise
            raise TransientError(f"{self.name}: the download from the Hub failed: {said(error)}") from None

    def _plain_content(self, patterns: tuple[str, ...], digests: FileDigests | None = None) -> dict[str, Any]:
        if self.commit is not None:
            return {"hub": self.name, "commit": self.commit}
        if self.place is not None:
            return {"files": {item.name: item.pin for item in _objects(self.place, patterns)}}
        folder, sha256 = Path(self.name), sha256_file if digests is None else digests.sha256
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        return {"files": {path.name: sha256(path) for path in paths}}

    def _downloaded(self, place: RemoteFolder, patterns: tuple[str, ...]) -> Path:
        """Return a folder of this machine, named by the content of all files, that holds those that match."""
        everything = _objects(place, (*MODEL_FILES, *PICKLED, "*.gguf"))
        folder = cache_folder() / "models" / digest_of([[item.name, item.pin] for item in everything])
        wanted = [item for item in everything if _matches(item.name, patterns)]
        with explained(place.shown), ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            list(pool.map(lambda item: fetch_to(folder / item.name, item, READING), wanted))
        return folder


def find_model(run: RunConfig) -> ModelSource:
    """Return the base model, with the values that the run has for its configuration. Raises as `find_weights`."""
    return replace(find_weights(run), overrides=run.overrides_of_model_config)


def find_weights(run: RunConfig) -> ModelSource:
    """Return the base model as it is.

    Raises:
        ConfigError: there is no such folder and no such model on the Hub, or its weights are pickles.
        TransientError: it cannot be reached and the Hub's cache on this machine does not have the model.
    """
    name, gguf_file = _gguf_in(run.base_model, run.gguf_file)
    source, names = _find(name, run.model_revision, "base_model", run)
    if gguf_file is not None:
        if names is not None and gguf_file not in names:
            near = ", ".join(name for name in names if name.endswith(".gguf")) or "none"
            rule = f"there is no such file in {redacted(name)}; GGUF files there: {near}"
            raise ConfigError([Problem("configuration", "gguf_file", gguf_file, rule, "Name one of them.")])
        return replace(source, conversion=Conversion("gguf", gguf_file, run.trust_remote_code))
    if names is not None and only_pickled(names):
        if not run.allow_pickled_weights:
            rule = "its weights are pickles (*.bin, *.pt), which can run code when they are loaded"
            remedy = "Name a model in safetensors, or, if you trust it, set allow_pickled_weights: true."
            raise ConfigError([Problem("configuration", "base_model", run.base_model, rule, remedy)])
        return replace(source, conversion=Conversion("pickle", "", run.trust_remote_code))
    return source


def trained_model(run: RunConfig, content: dict[str, Any]) -> ModelSource:
    """Return the base model whose content this is: its commit, though the branch may have moved since."""
    if "commit" not in content:
        return find_model(run)
    source = ModelSource(content["hub"], content["commit"], overrides=content.get("config", {}))
    kept = content.get("conversion")
    return source if kept is None else replace(source, conversion=Conversion.of(kept, run.trust_remote_code))


def find_tokenizer(run: RunConfig) -> ModelSource:
    """Return the tokenizer: `tokenizer_config`, else the base model's. Raises as `find_weights`."""
    if run.tokenizer_config is None:
        return find_weights(run)
    return _find(run.tokenizer_config, None, "tokenizer_config", run)[0]


def find_adapter(run: RunConfig) -> ModelSource | None:
    """Return the adapter whose training goes on, if there is one. Raises as `find_weights`."""
    return None if run.lora_model_dir is None else _find(run.lora_model_dir, None, "lora_model_dir", run)[0]


def _gguf_in(name: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Return (folder or Hub id, GGUF file) where the file itself is named."""
    if gguf_file is None and name.lower().endswith(".gguf"):
        folder, _, file = name.rpartition("/")
        return folder or ".", file
    return name, gguf_file


def _find(name: str, revision: str | None, key: str, run: RunConfig) -> tuple[ModelSource, list[str] | None]:
    """Return the source, and the names of its files if they are known."""
    if is_remote(name):
        return _find_remote(name, key, run)
    if Path(name).is_dir():
        return ModelSource(name, None), sorted(path.name for path in Path(name).iterdir())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(
            [Problem("configuration", key, name, "there is no such folder", "Check the path; it is read from here.")]
        )
    try:
        info = ASKING.call(lambda: huggingface_hub.model_info(name, revision=revision))
        return ModelSource(name, info.sha), [sibling.rfilename for sibling in info.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        rule = "there is no such folder, and no such model (or revision) on the Hub that this account can read"
        remedy = "Check the name and model_revision; for a gated model accept its terms and set HF_TOKEN."
        raise ConfigError([Problem("configuration", key, name, rule, remedy)]) from error
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        return ModelSource(name, _cached_commit(name, revision, error)), None


def _find_remote(url: str, key: str, run: RunConfig) -> tuple[ModelSource, list[str]]:
    try:
        with explained(redacted(url)):
            place = open_folder(url, run.base_model_storage_options)
            names = place.matches("*")
    except PlaceProblemError as error:
        raise ConfigError([Problem("configuration", key, url, error.rule, error.remedy)]) from None
    if not names:
        rule, remedy = "there are no files there", "Check the URL; it names the folder that holds config.json."
        raise ConfigError([Problem("configuration", key, url, rule, remedy)])
    return ModelSource(url, None, place), names


def _objects(place: RemoteFolder, patterns: tuple[str, ...]) -> list[RemoteObject]:
    with explained(place.shown):
        return place.objects([name for name in place.matches("*") if _matches(name, patterns)])


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def only_pickled(names: Sequence[str]) -> bool:
    """Return whether a model's only weights are pickles.

    >>> only_pickled(["config.json", "pytorch_model.bin"]), only_pickled(["training_args.bin", "model.safetensors"])
    (True, False)
    """
    return any(_matches(name, PICKLED) for name in names) and not _any_safe(names)


def _any_safe(names: Sequence[str]) -> bool:
    return any(name.endswith(".safetensors") for name in names)


def _is_of_the_hub(error: Exception) -> bool:
    """Return whether an error is one of asking the Hub: an answer, no answer, or no permission to ask."""
    return isinstance(error, HfHubHTTPError | OfflineModeIsEnabled | OSError) or is_of_a_client(error)


def _cached_commit(name: str, revision: str | None, error: Exception) -> str:
    """Return the commit that the Hub's cache on this machine has for a revision."""
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=["config.json"], local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise TransientError(
            f"{name}: the Hub cannot be reached, and it is not on this machine: {said(error)}"
        ) from None
    return Path(folder).name
