"""From a YAML file and command-line overrides to a `RunConfig`, or to all that is wrong with them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from configs.axolotl import ATTENTION, EXPERTS, PLUGINS
from configs.classify import classify_sections, classify_top, key_uses, notice_empty
from configs.document import Document, KeyPath, dotted, drop_nulls, in_order, read_document
from configs.errors import ConfigError, KeyUse, Problem
from configs.explain import explain
from configs.overrides import apply_override
from configs.precision import read_precision
from configs.schema import DatasetConfig, PromptConfig, RunConfig
from configs.sharding import FSDP_KEYS, read_deepspeed, read_fsdp


@dataclass(frozen=True)
class LoadedRun:
    """A valid configuration, what it says of keys without effect, what became of each key, and where it came from."""

    run: RunConfig
    notices: tuple[Problem, ...]
    path: Path
    keys: tuple[KeyUse, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    lenient: bool = False

    def place(self, key: str) -> str:
        """Return where a dotted key stands (`run.yaml:12:3`), or the nearest thing around it, or the file."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, str(self.path))


def load_run(path: Path, overrides: Sequence[str] = (), *, lenient: bool = False) -> LoadedRun:
    """Return the configuration of a run.

    Args:
        path: the YAML file.
        overrides: `key=value`, with dots into sections and list positions: `datasets.0.split=train[:10%]`.
        lenient: unknown keys are notices, not problems, and have no effect.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document = read_document(path)
    for override in overrides:
        apply_override(document, override)
    drop_nulls(document)
    uses = tuple(key_uses(document.values))
    _check_strict(document, overrides)
    _read_plugins(document)
    read_precision(document)
    classify_top(document)
    _read_attention(document)
    _read_experts(document)
    _read_pretraining(document)
    _read_sharding(document, path.resolve().parent)
    classify_sections(document, lenient=lenient)
    notice_empty(document)
    run: RunConfig | None = None
    try:
        run = RunConfig.model_validate(document.values)
    except ValidationError as error:
        explain(document, error)
    if run is None or document.problems:
        raise ConfigError(in_order(document.problems), uses)
    if run.save_only_model and run.sharding != "none":
        remedy = "Remove it, or lower save_total_limit."
        document.notice(("save_only_model",), True, "has no effect with weights in shards", remedy)
    places = {dotted(place): where for place, where in document.places.items()}
    return LoadedRun(_with_paths(run, path.resolve().parent), tuple(document.notices), path, uses, places, lenient)


def _read_plugins(document: Document) -> None:
    """Turn on what a listed plugin turns on, and refuse those that would do something else."""
    listed = document.values.get("plugins", [])
    for position, name in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(name, str):
            continue  # the schema says that it should be text
        if name not in PLUGINS:
            remedy = f"Remove it. Understood are {', '.join(known.rpartition('.')[2] for known in PLUGINS)}."
            document.problem(("plugins", position), name, "code of this plugin is not run here", remedy)
        elif PLUGINS[name] in RunConfig.model_fields:
            document.values.setdefault(PLUGINS[name], True)


def _check_strict(document: Document, overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that are not in the file where it says `strict: true`."""
    if document.values.get("strict") is not True:
        return
    for override in overrides:
        key = override.partition("=")[0].split(".")[0]
        if key not in document.keys:
            rule = "with strict: true only keys of the file can be overridden"
            document.problem((key,), None, rule, "Add it to the file, or remove strict.")


def _read_attention(document: Document) -> None:
    """Read other names of attention implementations; without a name the fastest that is there is taken."""
    name = document.values.get("attn_implementation")
    if not isinstance(name, str) or name not in ATTENTION:
        return
    read_as, why = ATTENTION[name]
    if why:
        document.notice(("attn_implementation",), name, f"is read as {read_as or 'auto'}: {why}", "")
    del document.values["attn_implementation"]
    if read_as:
        document.values["attn_implementation"] = read_as


def _read_experts(document: Document) -> None:
    """Leave the way in which experts are computed to transformers where a kernel of axolotl's is named."""
    name = document.values.get("experts_implementation")
    if name in EXPERTS:
        document.notice(("experts_implementation",), name, "is read as transformers' own: the result is the same", "")
        del document.values["experts_implementation"]


def _read_pretraining(document: Document) -> None:
    """Bring `pretraining_dataset` into the words of `datasets`: text, read as far as `max_steps` goes."""
    given = document.values.pop("pretraining_dataset", None)
    if not given:
        return
    if document.values.get("datasets"):
        rule = "datasets and pretraining_dataset exclude each other"
        document.problem(("pretraining_dataset",), None, rule, "Keep one of them.")
        return
    datasets = []
    for number, item in enumerate(given if isinstance(given, list) else [given]):
        place: KeyPath = ("pretraining_dataset", number)
        entry = dict(item) if isinstance(item, dict) else {"path": item}
        kind, column = entry.pop("type", "pretrain"), entry.pop("text_column", "text")
        if kind not in ("pretrain", "completion"):
            document.problem((*place, "type"), kind, "only text is read here", "Use datasets for other types.")
        if entry.pop("skip", None):
            document.problem((*place, "skip"), None, "this is not done here", "Instead: split: train[1000:].")
        datasets.append({**entry, "type": "completion", "field": column})
        document.places[("datasets", number)] = document.place(place)
    document.values |= {"datasets": datasets, "streaming": True}


def _read_sharding(document: Document, folder: Path) -> None:
    """Bring FSDP into the words of FSDP2, and DeepSpeed's file into the configuration."""
    fsdp = read_fsdp(document.values)
    for key, value, what in fsdp.notices:
        document.notice(tuple(key.split(".")), value, what, "")
    for key, value, rule, remedy in fsdp.problems:
        document.problem((key,), value, rule, remedy)
    for key in FSDP_KEYS:
        document.values.pop(key, None)
    if fsdp.config is not None:
        document.values["fsdp_config"] = fsdp.config
    name = document.values.get("deepspeed")
    if not isinstance(name, str):
        return
    try:
        document.values["deepspeed"], said = read_deepspeed(name, folder)
        if said:
            document.notice(("deepspeed",), name, said, "")
    except ValueError as error:
        rule, _, remedy = str(error).partition("; ")
        document.problem(("deepspeed",), name, rule, f"{remedy[:1].upper()}{remedy[1:]}.")
        del document.values["deepspeed"]


def _with_paths(run: RunConfig, folder: Path) -> RunConfig:
    """Read a relative path from here, as axolotl does, or from beside the YAML file if it is only there."""

    def found(name: str) -> str:
        beside = folder / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    def found_template(text: str | None) -> str | None:
        return found(text) if text and len(text) < 4096 and "\n" not in text and "{" not in text else text

    def found_type(kind: str | PromptConfig | None) -> str | PromptConfig | None:
        if not isinstance(kind, str):
            return kind
        if kind.endswith(".py"):
            return found(kind)
        module = "/".join(kind.split(".")) + ".py"
        beside_only = re.fullmatch(r"[\w.]{1,200}", kind) and not Path(module).exists() and (folder / module).is_file()
        return str(folder / module) if beside_only else kind

    def found_sources(datasets: Sequence[DatasetConfig]) -> tuple[DatasetConfig, ...]:
        return tuple(
            dataset.model_copy(
                update={
                    "path": found(dataset.path),
                    "type": found_type(dataset.type),
                    "chat_template_jinja": found_template(dataset.chat_template_jinja),
                }
            )
            for dataset in datasets
        )

    return run.model_copy(
        update={
            "base_model": found(run.base_model),
            "tokenizer_config": found(run.tokenizer_config) if run.tokenizer_config else None,
            "lora_model_dir": found(run.lora_model_dir) if run.lora_model_dir else None,
            "resume_from_checkpoint": found(resumed)
            if isinstance(resumed := run.resume_from_checkpoint, str)
            else None,
            "chat_template_jinja": found_template(run.chat_template_jinja),
            "datasets": found_sources(run.datasets),
            "test_datasets": found_sources(run.test_datasets),
        }
    )
