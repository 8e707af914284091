"""A base model with other values in its `config.json`: a folder of links to its files, which any stage reads like it.

<cache>/sft-flow/models/<digest of the folder's path and of the values>/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from stages.artifacts import digest_of
from stages.remote.download import cache_folder


def overridden(folder: Path, values: Mapping[str, Any]) -> Path:
    """Return a folder with the files of a model and these values in its configuration."""
    source = folder.resolve()
    if not (source / "config.json").is_file():
        return folder  # what is wrong with it is said by who reads it
    final = cache_folder() / "models" / digest_of([str(source), dict(values)])
    final.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        link = final / path.name
        if path.name != "config.json" and not link.exists():
            draft = final / f".{path.name}.link"
            draft.unlink(missing_ok=True)
            draft.symlink_to(path)
            draft.replace(link)
    config = orjson.loads((source / "config.json").read_bytes())
    draft = final / ".config.json"
    draft.write_bytes(orjson.dumps(with_values(config, values), option=orjson.OPT_INDENT_2))
    draft.replace(final / "config.json")
    return final


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with other values; those of a part (`text_config`) take the place of its own, one by one.

    >>> with_values({"text_config": {"a": 1, "b": 2}, "c": 3}, {"text_config": {"b": 4}, "c": None})
    {'text_config': {'a': 1, 'b': 4}, 'c': None}
    """
    changed = dict(config)
    for key, value in values.items():
        is_part = key.endswith("_config") and isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
        changed[key] = with_values(config[key], value) if is_part else value
    return changed
