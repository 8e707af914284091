"""Which local files a data set is made of, by split."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import orjson
import yaml

from configs.schema import DatasetConfig
from stages.fetch.files import FORMATS, DataFile, Format, Splits, data_file, format_of
from stages.fetch.problems import DatasetProblemError
from stages.fetch.splits import DEFAULT_SPLIT

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")  # data/train_sft-00000-of-00004.parquet
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
WILD = re.compile(r"[*?\[]")


def is_local(dataset: DatasetConfig) -> bool:
    """Return whether `path` means this machine and not the Hub: it exists, or has the form of a path or file name."""
    path = dataset.path
    return (
        Path(path).expanduser().exists()
        or _named_format(dataset) is not None
        or path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or bool(WILD.search(path))
        or format_of(Path(path)) is not None
    )


@dataclass(frozen=True)
class LocalFiles:
    """The files of each split, in the order of reading, and data files of the folder that no split has."""

    splits: Splits
    unused: tuple[Path, ...] = ()


def find_local(dataset: DatasetConfig) -> LocalFiles:
    """Return the files that a data set means.

    Raises:
        DatasetProblemError: the files are not there, or it cannot be told which are meant.
    """
    if "://" in dataset.path:
        rule = "rows are read from this machine or from the Hub, not from other places yet"
        raise DatasetProblemError("path", rule, "Copy the files here and name them.")
    root = Path(dataset.path).expanduser()
    ds_type = dataset.ds_type or _named_format(dataset)
    if _named_format(dataset) is not None:
        root = Path()
    if dataset.data_files:
        if not root.is_dir():
            rule = f"it names files of a folder or of a Hub data set, and path ({dataset.path}) is neither"
            raise DatasetProblemError("data_files", rule, "Name the folder in path, or remove data_files.")
        paths = [path for pattern in dataset.data_files for path in _matches(root, pattern, "data_files")]
        return LocalFiles({DEFAULT_SPLIT: _data_files(paths, ds_type)})
    if not root.is_dir():
        paths = [root] if root.is_file() else list(_matches(Path(), str(root), "path"))
        return LocalFiles({DEFAULT_SPLIT: _data_files(paths, ds_type)})
    told = _saved_splits(root) or _declared(root, dataset, ds_type)
    return LocalFiles(told) if told else _by_name(root, ds_type)


def _named_format(dataset: DatasetConfig) -> Format | None:
    """Return the format for `path: json` with data_files, a way of writing that `datasets` knows."""
    if dataset.data_files and not Path(dataset.path).exists():
        return next((name for name in get_args(Format) if name == dataset.path), None)
    return None


def _data_files(paths: list[Path], ds_type: Format | None) -> tuple[DataFile, ...]:
    return tuple(data_file(path, ds_type) for path in paths)


def _matches(root: Path, pattern: str, key: str) -> Iterator[Path]:
    """Yield the files that a path or pattern means: below `root`, or else (as axolotl has it) from here; sorted."""
    for base in (root, Path()):
        base, below = (Path("/"), pattern[1:]) if pattern.startswith("/") else (base, pattern)
        if not WILD.search(pattern):
            found = [base / below] if (base / below).is_file() else []
        else:
            found = sorted(path for path in base.glob(below) if path.is_file())
        if found:
            yield from found
            return
    raise _missing(root, pattern, key)


def _missing(root: Path, pattern: str, key: str) -> DatasetProblemError:
    if WILD.search(pattern):
        return DatasetProblemError(key, f"no file matches {pattern}", "Check the pattern; it is read from here.")
    path = root / pattern
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    remedy = f"There is {path.parent / near[0]}: is it meant?" if near else "Check the path; it is read from here."
    return DatasetProblemError(key, f"there is no file {path}", remedy)


def _saved_splits(root: Path) -> Splits | None:
    """Return the splits of what `datasets` saved to disk, if the folder is that."""
    if (root / "dataset_dict.json").is_file():
        names = orjson.loads((root / "dataset_dict.json").read_bytes())["splits"]
        return {name: _saved(root / name) for name in names}
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        return {DEFAULT_SPLIT: _saved(root)}
    return None


def _saved(folder: Path) -> tuple[DataFile, ...]:
    state = orjson.loads((folder / "state.json").read_bytes())
    return tuple(DataFile(folder / entry["filename"], "arrow") for entry in state["_data_files"])


def _declared(root: Path, dataset: DatasetConfig, ds_type: Format | None) -> Splits | None:
    """Return the splits that the head of README.md declares for `name`, as in a copy of a Hub repository."""
    configs = _readme_head(root).get("configs") or []
    chosen = [entry for entry in configs if entry.get("config_name") == (dataset.name or "default")]
    chosen = chosen or [
        entry for entry in configs if dataset.name is None and (entry.get("default") or len(configs) == 1)
    ]
    if not chosen:
        if dataset.name is None and not configs:
            return None
        known = ", ".join(str(entry.get("config_name")) for entry in configs) or "none"
        raise DatasetProblemError(
            "name", f"README.md of {root} declares these configurations: {known}", "Name one of them."
        )
    declared = chosen[0].get("data_files")
    if not declared:
        return None
    entries = declared if isinstance(declared, list) else [declared]
    splits: dict[str, list[Path]] = {}
    for entry in entries:
        split, patterns = (entry["split"], entry["path"]) if isinstance(entry, dict) else (DEFAULT_SPLIT, entry)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            splits.setdefault(split, []).extend(_matches(root, pattern, "path"))
    return {split: _data_files(paths, ds_type) for split, paths in splits.items()}


def _readme_head(root: Path) -> dict[str, Any]:
    readme = root / "README.md"
    match = re.match(r"---\n(.*?)\n---", readme.read_text(), re.DOTALL) if readme.is_file() else None
    try:
        head = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def _by_name(root: Path, ds_type: Format | None) -> LocalFiles:
    """Return the data files of a folder by the splits that their names, or their folders' names, tell."""
    paths = [path for path in sorted(root.rglob("*")) if _may_be_data(path.relative_to(root)) and path.is_file()]
    if ds_type is None:
        paths = _of_one_format(root, paths)
    else:
        paths = [path for path in paths if format_of(path) == ds_type]
    if not paths:
        rule = f"the folder holds no data files ({ds_type or ', '.join(FORMATS)})"
        raise DatasetProblemError("path", rule, "Check the path, or name the files with data_files.")
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.relative_to(root)) or "", []).append(path)
    unused = splits.pop("", [])
    if not splits:
        return LocalFiles({DEFAULT_SPLIT: _data_files(paths, ds_type)})
    return LocalFiles({split: _data_files(files, ds_type) for split, files in splits.items()}, tuple(unused))


def _may_be_data(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and path.name not in NOT_DATA


def _of_one_format(root: Path, paths: list[Path]) -> list[Path]:
    formats = Counter(found for path in paths if (found := format_of(path)))
    if len(formats) > 1:
        del formats["text"]  # notes and licences beside the data
    if len(formats) > 1:
        told = ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))
        rule = f"the folder holds files of several formats ({told})"
        raise DatasetProblemError("path", rule, "Name those that are meant with data_files.")
    return [path for path in paths if format_of(path) in formats]


def _split_of(path: Path) -> str | None:
    """Return the split that a relative path tells.

    >>> _split_of(Path("data/train_sft-00000-of-00004.parquet")), _split_of(Path("dev/a.jsonl"))
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
