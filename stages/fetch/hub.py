"""Data sets on the Hub, pinned to a commit: `datasets` tells their files, which are read like local ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from configs.schema import DatasetConfig
from stages.artifacts import FileDigests
from stages.errors import TransientError
from stages.fetch.files import DataFile, Reading, Splits, checked, data_file
from stages.fetch.problems import DatasetProblemError
from stages.remote.failures import is_of_a_client, said
from stages.remote.objects import leaves_folder
from stages.remote.patience import ASKING, READING

COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = re.compile(r"hf://datasets/(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<path>.+)")


@dataclass(frozen=True)
class HubOrigin:
    """A commit of a Hub data set."""

    dataset: DatasetConfig
    commit: str

    def content(self, names: list[str], digests: FileDigests) -> dict[str, Any]:
        """Return the commit, and what chooses files of it."""
        chosen = {"name": self.dataset.name, "data_files": self.dataset.data_files, "ds_type": self.dataset.ds_type}
        return {
            "hub": self.dataset.path,
            "commit": self.commit,
            **{key: value for key, value in chosen.items() if value},
        }

    def splits(self, names: list[str]) -> Splits:
        """Return the files of the splits `names`; each is downloaded when it is its turn to be read.

        Raises:
            DatasetProblemError: the repository has no such split, configuration or files.
            TransientError: the Hub cannot be reached now.
        """
        urls = checked(names, self._urls())
        return {name: tuple(self._file(url) for url in urls[name]) for name in names}

    def _urls(self) -> dict[str, list[str]]:
        import datasets  # takes a second: only who reads from the Hub waits for it

        with _hub_errors(self.dataset):
            builder = datasets.load_dataset_builder(
                self.dataset.path,
                self.dataset.name,
                revision=self.commit,
                data_files=list(self.dataset.data_files) or None,
            )
        return {str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()}

    def _file(self, url: str) -> DataFile:
        match = FILE.fullmatch(url)
        if match is None or leaves_folder(match["path"]):
            rule = f"{url} is not a plain file of a data set on the Hub"
            raise DatasetProblemError("path", rule, "Unpack it, or name other files with data_files.")
        origin = HubFile(match["repo"], match["commit"], match["path"], self.dataset)
        return data_file(origin, Reading(self.dataset.ds_type, self.dataset.max_decompression_ratio))


@dataclass(frozen=True)
class HubFile:
    """A file of a commit of a data set on the Hub."""

    repo: str
    commit: str
    path: str
    dataset: DatasetConfig

    @property
    def name(self) -> str:
        """Return its last name."""
        return PurePosixPath(self.path).name

    @property
    def shown(self) -> str:
        """Return repository and path."""
        return f"{self.repo}/{self.path}"

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """Return its commit and path."""
        return {"hub": self.repo, "commit": self.commit, "path": self.path}

    def bring(self, stopped: Event | None = None) -> Path:
        """Return it in the Hub's cache on this machine; a download continues where the last try was."""
        with _hub_errors(self.dataset):
            return Path(READING.call(self._download))

    def _download(self) -> str:
        path: str = huggingface_hub.hf_hub_download(self.repo, self.path, repo_type="dataset", revision=self.commit)
        return path

    def release(self) -> None:
        """Do nothing: the cache is the Hub client's."""

    def changeable(self) -> Path | None:
        """Return nothing: the files of a commit do not change."""
        return None


def find_on_hub(dataset: DatasetConfig) -> HubOrigin:
    """Return a data set of the Hub at the commit that its revision means now.

    Raises:
        DatasetProblemError: there is no such data set or revision.
        TransientError: the Hub cannot be reached now.
    """
    if dataset.revision and COMMIT.fullmatch(dataset.revision):
        return HubOrigin(dataset, dataset.revision)
    with _hub_errors(dataset):
        info = ASKING.call(lambda: huggingface_hub.dataset_info(dataset.path, revision=dataset.revision))
        return HubOrigin(dataset, info.sha)


@contextmanager
def _hub_errors(dataset: DatasetConfig) -> Iterator[None]:
    """Tell what the configuration got wrong from what can pass."""
    try:
        yield
    except RevisionNotFoundError as error:
        rule = f"{dataset.path} on the Hub has no such branch, tag or commit"
        raise DatasetProblemError("revision", rule, "Check the revision, or remove it for main.") from error
    except RepositoryNotFoundError as error:
        rule = "there is no such file or folder here, and no such data set on the Hub that this account can read"
        remedy = "Check the name; for a gated or private one accept its terms and set HF_TOKEN."
        raise DatasetProblemError("path", rule, remedy) from error
    except (EntryNotFoundError, FileNotFoundError) as error:
        key = "data_files" if dataset.data_files else "path"
        raise DatasetProblemError(
            key, f"{dataset.path} on the Hub has no such data files: {error}", "Check it."
        ) from error
    except ValueError as error:
        rule = f"the files of {dataset.path} cannot be told: {error}"
        raise DatasetProblemError("name" if dataset.name else "path", rule, "Set name or data_files.") from error
    except Exception as error:
        if not isinstance(error, OSError) and not is_of_a_client(error):
            raise
        raise TransientError(
            f"{dataset.path}: the Hub cannot be reached: {said(error)}. With a commit as revision, rows in the store "
            "are reused without it."
        ) from None  # a traceback is logged, and may hold a signed address
