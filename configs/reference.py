"""The reference page of the configuration, made from the schema: `sft schema --markdown`."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.keys import key_class, known_keys, section_names
from configs.schema import RunConfig

UNITS: dict[str, str] = {
    # key -> what its number counts
    "artifact_cache_size": "bytes",
    "batch_size": "sequences",
    "dataset_num_proc": "processes",
    "dataloader_num_workers": "processes",
    "dp_replicate_size": "copies",
    "dp_shard_size": "processes",
    "eval_batch_size": "sequences",
    "eval_sequence_len": "tokens",
    "eval_steps": "steps, or a share below 1",
    "generation_max_new_tokens": "tokens",
    "gradient_accumulation_steps": "passes",
    "logging_steps": "steps",
    "loss_watchdog_patience": "steps",
    "loss_watchdog_threshold": "loss",
    "max_steps": "steps",
    "micro_batch_size": "sequences",
    "min_sample_len": "tokens",
    "num_epochs": "epochs",
    "num_generation_samples": "prompts",
    "profiler_steps": "steps",
    "profiler_steps_start": "steps",
    "save_steps": "steps, or a share below 1",
    "save_total_limit": "checkpoints",
    "saves_per_epoch": "per epoch",
    "evals_per_epoch": "per epoch",
    "sequence_len": "tokens",
    "val_set_size": "rows, or a share below 1",
    "warmup_ratio": "share of all steps",
    "warmup_steps": "steps",
    "launcher.processes": "processes",
    "launcher.threads": "threads",
    "orchestration.interval": "seconds",
    "orchestration.watch": "seconds",
    "fsdp_config.min_num_params": "parameters",
}
BAR, LESS = "\\|", "&lt;"
HEAD = """\
# Configuration reference

Made by `sft schema --markdown`; a test keeps it current. For editors there is a JSON schema: `sft schema > schema.json`
writes it, and `# yaml-language-server: $schema=schema.json` as the first line of the YAML names it.

A key belongs to one of four classes. `sft validate run.yaml` says which class each key of a file has.

* **acted on**: the keys of the first part, by theme. Those marked *no effect* are checked, and change nothing.
* **[replaced by](#replaced-by)**: an old name, read as the new one, with a notice.
* **[accepted without effect](#accepted-without-effect)**: each with the reason, and a notice when it is used.
* **[refused](#refused)**: an error that says what to do instead.

Any other key is an error that names the nearest known ones (`--lenient`: a notice). `key:` without a value is no key.
Values are set, in this order, by: the default, the file, `key=value` or `--key value` on the command line
(`datasets.0.split=test` reaches inside; the position after the last adds an entry).
"""


def markdown() -> str:
    """Return the page."""
    parts = [HEAD, "## Acted on\n"]
    for theme, keys in _themes():
        parts.append(f"### {theme}\n")
        parts.append(_table(RunConfig, keys, ""))
    for names, model in _sections().values():
        titles = ", ".join(f"`{_written(name)}`" for name in names)
        parts.append(f"### {titles}\n\n{inspect.cleandoc(model.__doc__ or '')}\n")
        parts.append(_table(model, list(model.model_fields), f"{names[0]}."))
    for kind, title, column in (
        ("replaced by", "Replaced by", "the new key"),
        ("without effect", "Accepted without effect", "reason"),
        ("refused", "Refused", "instead"),
    ):
        parts.append(f"## {title}\n\n| keys | {column} |\n|---|---|")
        parts += [f"| {keys} | {text} |" for text, keys in _by_text(kind)]
        parts.append("")
    return "\n".join(parts)


def _themes() -> Iterator[tuple[str, list[str]]]:
    """Yield (heading, keys) as the schema groups its fields under comments."""
    theme, keys = "", list[str]()
    for line in inspect.getsource(RunConfig).splitlines():
        if heading := re.fullmatch(r"    # (\w[\w ,]+)", line):
            if keys:
                yield theme, keys
            theme, keys = heading[1], []
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in RunConfig.model_fields:
            keys.append(field[1])
    yield theme, keys


def _sections() -> dict[str, tuple[list[str], type[BaseModel]]]:
    """Return the sections below the top, those that are alike together."""
    found: dict[str, tuple[list[str], type[BaseModel]]] = {}
    for name, model in section_names():
        if name:
            found.setdefault(model.__name__, ([], model))[0].append(name)
    return found


def _table(model: type[BaseModel], keys: list[str], prefix: str) -> str:
    lines = ["| key | type | default | unit | |", "|---|---|---|---|---|"]
    for key in keys:
        info = model.model_fields[key]
        found = key_class(prefix.rstrip("."), key)
        text = (info.description or "") if found is None or found.kind == "acted on" else f"*No effect*: {found.text}."
        cells = [f"`{key}`", _type(info), _default(info), UNITS.get(f"{prefix}{key}", ""), text]
        lines.append(f"| {' | '.join(cell.replace('|', BAR).replace('<', LESS) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _type(info: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in _limits(info.metadata)
        for kind, name, sign in ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
        if isinstance(limit, kind)
    ]
    return " ".join([_type_name(info.annotation), *limits])


def _limits(metadata: list[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from (item.metadata if isinstance(item, FieldInfo) else [item])


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in arguments if part is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {bool: "true/false", int: "integer", float: "number", str: "text"}.get(annotation, "any")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is None or value in ((), {}, "") or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _by_text(kind: str) -> Iterator[tuple[str, str]]:
    """Yield (text, the keys that share it) of a class, as the tables are written."""
    groups: dict[str, list[str]] = {}
    for section in ["", "datasets", "fsdp_config", "pretraining_dataset"]:
        for key in known_keys(section):
            found = key_class(section, key)
            is_field = any(name == section and key in model.model_fields for name, model in section_names())
            if found is not None and found.kind == kind and not is_field:
                text = f"`{found.text}`" if kind == "replaced by" else found.text
                groups.setdefault(text, []).append(f"`{_written(section)}.{key}`" if section else f"`{key}`")
    for text, keys in groups.items():
        yield text, ", ".join(keys)


def _written(section: str) -> str:
    """Return a section's name as one of its keys is addressed: `datasets[].type`."""
    return re.sub(r"^(datasets|test_datasets|lr_groups|pretraining_dataset)", r"\1[]", section)
