"""Which files a data set is made of, by split: on this machine or behind a URL."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, get_args
from urllib.parse import urlsplit

import orjson
import yaml

from configs.schema import DatasetConfig
from configs.secrets import redacted
from stages.fetch.files import FORMATS, DataFile, Format, Reading, Splits, data_file, format_of
from stages.fetch.folders import WILD, Folder, LocalFolder, UrlFolder, inside
from stages.fetch.origins import FileOrigin, reading_errors
from stages.fetch.problems import DatasetProblemError
from stages.fetch.splits import DEFAULT_SPLIT
from stages.remote import is_remote, open_folder
from stages.remote.filesystem import HTTP

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")  # data/train_sft-00000-of-00004.parquet
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def is_files(dataset: DatasetConfig) -> bool:
    """Return whether `path` means files and not the Hub: it exists, or has the form of a path, file name or URL."""
    path = dataset.path
    return (
        Path(path).expanduser().exists()
        or _named_format(dataset) is not None
        or path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or bool(WILD.search(path))
        or format_of(path) is not None
    )


@dataclass(frozen=True)
class Found:
    """The files of each split, in the order of reading, and names of data files of the folder that no split has."""

    splits: Splits
    unused: tuple[str, ...] = ()


def find_files(dataset: DatasetConfig) -> Found:
    """Return the files that a data set means, each pinned to its content.

    Raises:
        DatasetProblemError: the files are not there, or it cannot be told which are meant.
        TransientError: their store does not answer now.
    """
    reading = Reading(dataset.ds_type or _named_format(dataset), dataset.max_decompression_ratio)
    if dataset.data_files:
        return _named_files(dataset, reading)
    if is_remote(dataset.path):
        return _behind_url(dataset, reading)
    root = Path(dataset.path).expanduser()
    if not root.is_dir():
        named = LocalFolder(Path()).files([str(root)]) if root.is_file() else _matches(LocalFolder(Path()), str(root))
        return Found({DEFAULT_SPLIT: _data_files(named or _missing(str(root), "path"), reading)})
    return _of_folder(LocalFolder(root), dataset, reading)


def _behind_url(dataset: DatasetConfig, reading: Reading) -> Found:
    """Return the files of a URL: of one object, of a pattern, or of all that lies below it."""
    place = _open(dataset.path, dataset)
    found = _url_files(dataset.path, dataset, "path", reading)
    if found:
        return Found({DEFAULT_SPLIT: found})
    return _of_folder(UrlFolder(place), dataset, reading)


def _open(url: str, dataset: DatasetConfig) -> Any:
    with reading_errors(redacted(url)):
        return open_folder(url, dataset.storage_options)


def _url_files(url: str, dataset: DatasetConfig, key: str, reading: Reading) -> tuple[DataFile, ...]:
    """Return the files that the URL of an object or a pattern means; none if it is a folder's."""
    place = _open(url, dataset)
    is_pattern = "*" in url or "[" in url or ("?" in url and not url.startswith(HTTP))
    if is_pattern:
        above, _, _ = re.split(r"[*?\[]", url, maxsplit=1)[0].rpartition("/")
        folder = UrlFolder(_open(above, dataset))
        names = folder.matches(url[len(above) + 1 :])
        if not names:
            raise DatasetProblemError(key, f"nothing matches {redacted(url)}", "Check the pattern.")
        return _data_files(folder.files(names), reading)
    with reading_errors(redacted(url)):
        is_file = place.is_file() and (not url.startswith(HTTP) or _is_data_name(url, reading))
    if not is_file:
        return ()
    folder, name = place.as_file()
    return _data_files(UrlFolder(folder).files([name]), reading)


def _is_data_name(url: str, reading: Reading) -> bool:
    """Return whether a web address is one of a file: a server does not say whether it is a directory."""
    return format_of(urlsplit(url).path) is not None or reading.ds_type is not None


def _of_folder(folder: Folder, dataset: DatasetConfig, reading: Reading) -> Found:
    told = _saved_splits(folder, reading) or _declared(folder, dataset, reading)
    return Found(told) if told else _by_name(folder, reading)


def _named_files(dataset: DatasetConfig, reading: Reading) -> Found:
    """Return the files that data_files names: below `path`, or (as axolotl has it) from here, or by their own URLs."""
    files: list[DataFile] = []
    for pattern in dataset.data_files:
        if is_remote(pattern):
            found = _url_files(pattern, dataset, "data_files", reading)
            if not found:
                raise DatasetProblemError("data_files", f"there is no file {redacted(pattern)}", "Check it.")
            files += found
        elif is_remote(dataset.path):
            folder = UrlFolder(_open(dataset.path, dataset))
            names = folder.matches(inside(folder, pattern))
            if not names:
                raise DatasetProblemError("data_files", f"nothing matches {pattern}", "Check the pattern.")
            files += _data_files(folder.files(names), reading)
        else:
            files += _data_files(_named_here(dataset, pattern), reading)
    return Found({DEFAULT_SPLIT: tuple(files)})


def _named_here(dataset: DatasetConfig, pattern: str) -> tuple[FileOrigin, ...]:
    root = Path() if _named_format(dataset) is not None else Path(dataset.path).expanduser()
    if not root.is_dir():
        rule = f"it names files of a folder or of a Hub data set, and path ({dataset.path}) is neither"
        raise DatasetProblemError("data_files", rule, "Name the folder in path, or remove data_files.")
    below = _matches(LocalFolder(root), pattern)
    return below or _matches(LocalFolder(Path()), pattern) or _missing(str(root / pattern), "data_files", pattern)


def _named_format(dataset: DatasetConfig) -> Format | None:
    """Return the format for `path: json` with data_files, a way of writing that `datasets` knows."""
    if dataset.data_files and not Path(dataset.path).exists():  # not a folder of that name
        return next((name for name in get_args(Format) if name == dataset.path), None)
    return None


def _data_files(origins: Iterable[FileOrigin], reading: Reading) -> tuple[DataFile, ...]:
    return tuple(data_file(origin, reading) for origin in origins)


def _matches(folder: LocalFolder, pattern: str) -> tuple[FileOrigin, ...]:
    """Return the files of this machine that a pattern means, sorted: below a folder, or by an absolute path."""
    if pattern.startswith("/"):
        folder, pattern = LocalFolder(Path("/")), pattern[1:]
    return folder.files(folder.matches(pattern))


def _missing(place: str, key: str, pattern: str | None = None) -> NoReturn:
    if WILD.search(pattern or place):
        rule = f"no file matches {pattern or place}"
        raise DatasetProblemError(key, rule, "Check the pattern; it is read from here.")
    path = Path(place)
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    remedy = f"There is {path.parent / near[0]}: is it meant?" if near else "Check the path; it is read from here."
    raise DatasetProblemError(key, f"there is no file {path}", remedy)


def _saved_splits(folder: Folder, reading: Reading) -> Splits | None:
    """Return the splits of what `datasets` saved to disk, if the folder is that."""
    listed = _read_json(folder, "dataset_dict.json")
    if listed is not None:
        names = [inside(folder, str(name)) for name in listed.get("splits", [])]
        return {name: _saved(folder, f"{name}/", reading) for name in names}
    if folder.read("dataset_info.json") is not None and folder.read("state.json") is not None:
        return {DEFAULT_SPLIT: _saved(folder, "", reading)}
    return None


def _saved(folder: Folder, below: str, reading: Reading) -> tuple[DataFile, ...]:
    state = _read_json(folder, f"{below}state.json")
    if state is None:
        rule = f"{folder.shown} was not saved completely: {below}state.json is not there"
        raise DatasetProblemError("path", rule, "Save it again.")
    names = [below + inside(folder, str(entry["filename"])) for entry in state.get("_data_files", [])]
    return tuple(DataFile(origin, "arrow", most_ratio=reading.most_ratio) for origin in folder.files(names))


def _read_json(folder: Folder, name: str) -> dict[str, Any] | None:
    content = folder.read(name)
    if content is None:
        return None
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None  # web servers that have a page for every address answer with that
    return value if isinstance(value, dict) else None


def _declared(folder: Folder, dataset: DatasetConfig, reading: Reading) -> Splits | None:
    """Return the splits that the head of README.md declares for `name`, as in a copy of a Hub repository."""
    configs = _readme_head(folder).get("configs") or []
    chosen = [entry for entry in configs if entry.get("config_name") == (dataset.name or "default")]
    chosen = chosen or [
        entry for entry in configs if dataset.name is None and (entry.get("default") or len(configs) == 1)
    ]
    if not chosen:
        if dataset.name is None and not configs:
            return None
        known = ", ".join(str(entry.get("config_name")) for entry in configs) or "none"
        raise DatasetProblemError(
            "name", f"README.md of {folder.shown} declares these configurations: {known}", "Name one of them."
        )
    declared = chosen[0].get("data_files")
    if not declared:
        return None
    entries = declared if isinstance(declared, list) else [declared]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, patterns = (entry["split"], entry["path"]) if isinstance(entry, dict) else (DEFAULT_SPLIT, entry)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            names = folder.matches(inside(folder, pattern))
            if not names:
                rule = f"README.md of {folder.shown} declares {pattern}, and there is no such file"
                raise DatasetProblemError("path", rule, "Complete the copy, or name the files with data_files.")
            splits.setdefault(split, []).extend(names)
    return {split: _data_files(folder.files(names), reading) for split, names in splits.items()}


def _readme_head(folder: Folder) -> dict[str, Any]:
    readme = folder.read("README.md")
    match = re.match(r"---\n(.*?)\n---", readme.decode(errors="replace"), re.DOTALL) if readme is not None else None
    try:
        head = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, RecursionError):
        return {}
    return head if isinstance(head, dict) else {}


def _by_name(folder: Folder, reading: Reading) -> Found:
    """Return the data files of a folder by the splits that their names, or their folders' names, tell."""
    names = [name for name in folder.names() if _may_be_data(PurePosixPath(name))]
    if reading.ds_type is None:
        names = _of_one_format(names)
    else:
        names = [name for name in names if format_of(name) == reading.ds_type]
    if not names:
        rule = f"the folder holds no data files ({reading.ds_type or ', '.join(FORMATS)})"
        raise DatasetProblemError("path", rule, "Check the path, or name the files with data_files.")
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(_split_of(PurePosixPath(name)) or "", []).append(name)
    unused = splits.pop("", [])
    if not splits:
        return Found({DEFAULT_SPLIT: _data_files(folder.files(names), reading)})
    return Found({split: _data_files(folder.files(names), reading) for split, names in splits.items()}, tuple(unused))


def _may_be_data(path: PurePosixPath) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and path.name not in NOT_DATA


def _of_one_format(names: list[str]) -> list[str]:
    formats = Counter(found for name in names if (found := format_of(name)))
    if len(formats) > 1:
        del formats["text"]  # notes and licences beside the data
    if len(formats) > 1:
        told = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        rule = f"the folder holds files of several formats ({told})"
        raise DatasetProblemError("path", rule, "Name those that are meant with data_files.")
    return [name for name in names if format_of(name) in formats]


def _split_of(path: PurePosixPath) -> str | None:
    """Return the split that a relative path tells.

    >>> _split_of(PurePosixPath("data/train_sft-00000-of-00004.parquet")), _split_of(PurePosixPath("dev/a.jsonl"))
    ('train_sft', 'validation')
    """
    shard = SHARD.match(path.name)
    if shard and path.parent.name == "data":
        return shard["split"]
    for part in (path.name, *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z0-9]+", part.lower()))
        for split, keywords in KEYWORDS.items():
            if words & set(keywords):
                return split
    return None
