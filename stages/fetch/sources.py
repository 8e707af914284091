"""Where the rows of a data set come from: files here or behind URLs, or a commit of a Hub repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from configs.schema import DatasetConfig
from stages.artifacts import FileDigests
from stages.fetch.files import Splits, checked
from stages.fetch.hub import find_on_hub
from stages.fetch.layout import find_files, is_files
from stages.fetch.problems import problems_of
from stages.fetch.splits import DEFAULT_SPLIT, SplitPart, parse_split


class Origin(Protocol):
    """Where the files of the splits are."""

    def content(self, names: list[str], digests: FileDigests) -> dict[str, Any]:
        """Return what identifies the content of the splits `names`, JSON-ready."""

    def splits(self, names: list[str]) -> Splits:
        """Return the files of the splits `names`."""


@dataclass(frozen=True)
class FilesOrigin:
    """Files on this machine, or behind URLs."""

    files: Splits

    def content(self, names: list[str], digests: FileDigests) -> dict[str, Any]:
        """Return the pin of each file of the splits, in the order of reading, and how it is read."""
        return {
            "files": {
                name: [{**file.reading, **file.origin.content(digests)} for file in self.files[name]] for name in names
            }
        }

    def splits(self, names: list[str]) -> Splits:
        """Return the files of the splits `names`."""
        return {name: checked(names, self.files)[name] for name in names}


@dataclass(frozen=True)
class Source:
    """The rows that one entry of `datasets` means: slices of splits, one after the other."""

    parts: tuple[SplitPart, ...]
    origin: Origin
    unused: tuple[str, ...] = ()  # data files of a folder that belong to no split

    @property
    def names(self) -> list[str]:
        """Return the splits that are read, each once."""
        return list(dict.fromkeys(part.name for part in self.parts))

    @property
    def split(self) -> str:
        """Return the split expression in its one way of writing."""
        return "+".join(map(str, self.parts))

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """Return what identifies the content, JSON-ready."""
        return self.origin.content(self.names, digests)

    def splits(self) -> Splits:
        """Return the files of the splits that are read.

        Raises:
            DatasetProblemError: there is no such split.
            TransientError: the Hub cannot be reached now.
        """
        return self.origin.splits(self.names)


def find_source(place: str, dataset: DatasetConfig) -> Source:
    """Return the source of a data set; `place` is its key, `datasets.0`.

    Raises:
        ConfigError: there is no such file, split or Hub data set.
        TransientError: the Hub, or a store, cannot be reached now.
    """
    with problems_of(place, dataset):
        parts = parse_split(dataset.split or DEFAULT_SPLIT)
        if not is_files(dataset):
            return Source(parts, find_on_hub(dataset))
        found = find_files(dataset)
        source = Source(parts, FilesOrigin(found.splits), found.unused)
        source.splits()
        return source
