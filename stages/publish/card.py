"""The model card: README.md of a published model, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.schema import DatasetConfig, RunConfig
from configs.secrets import redacted
from stages.artifacts import Artifact
from stages.base_model import trained_model
from stages.formats import is_chat
from stages.lineage import Origin, base_of, sources_of
from stages.publish.licence import Licence, licence_of_model, licence_on_hub
from stages.report.curves import number
from stages.report.page import health_of, percent, samples_of

CARD = "README.md"
TEMPLATE = "card.md"
SAMPLES = 3
"""Answers that are shown."""
NOT_SHOWN = ("launcher", "orchestration", "publish", "artifact_store", "artifact_cache", "artifact_cache_size")
"""Sections that say where and when, and nothing of what was trained."""

Artifacts = Mapping[str, Artifact]


def sealed(text: str) -> bytes:
    """Return a card with a last line that tells later whether somebody changed it."""
    return f"{text}\n{_seal(text)}\n".encode()


def is_untouched(card: bytes) -> bool:
    """Return whether a card is one of ours, as it was written."""
    text, _, last = card.decode("utf-8", "replace").removesuffix("\n").rpartition("\n")
    return last == _seal(text)


def _seal(text: str) -> str:
    return (
        f"<!-- written by sft-flow; one that was changed is never overwritten: {sha256(text.encode()).hexdigest()} -->"
    )


def render_card(
    run: RunConfig, artifacts: Artifacts, variables: Mapping[str, Any] | None = None, *, settings: bool = True
) -> str:
    """Return the card; the same text for the same run, artifacts and cards of what they are made of.

    Args:
        run: the configuration.
        artifacts: by stage name, fetch to merge.
        variables: what inference has to set for prompts to be those of the training.
        settings: whether the configuration is in it, with keys that change nothing of the model.
    """
    base, sources = base_of(run, artifacts), sources_of(run, artifacts)
    licence = licence_of_model(trained_model(run, artifacts["train"].facts["base_model"]))
    name = f"{PurePosixPath(base.name).name}, fine-tuned"
    asked = {**run.chat_template_kwargs, **(variables or {})}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701  no HTML
    environment.filters["cell"] = _cell
    text = environment.get_template(TEMPLATE).render(
        title=name,
        summary=_summary(run, base, artifacts),
        chats=any(is_chat(source) for source in run.sources),
        variables="".join(f", {key}={value!r}" for key, value in asked.items()),
        prompts=list(_prompts(run, asked)),
        data=list(_data(run, sources, artifacts)),
        masks=list(_masks(run)),
        training=list(_training(run, artifacts)),
        metrics=list(_metrics(artifacts)),
        samples=_samples(run, artifacts["train"]),
        base=base,
        licence=licence,
        lineage=[artifacts[stage] for stage in ("fetch", "tokenize", "pack", "train", "merge")],
        settings=_settings(run) if settings else None,
    )
    return f"---\n{_metadata(run, name, base, sources, licence, artifacts)}\n---\n\n{redacted(text)}"


def _metadata(
    run: RunConfig, name: str, base: Origin, sources: list[Origin], licence: Licence, artifacts: Artifacts
) -> str:
    eval_loss = artifacts["train"].facts["eval_loss"]
    data = dict.fromkeys(source.name for source in sources if source.hub)
    held_out = EvalResult(
        task_type="text-generation",
        dataset_type=sources[0].name,
        dataset_name="held-out rows",
        metric_type="loss",
        metric_value=eval_loss,
    )
    card = ModelCardData(
        base_model=base.name if base.hub else None,
        datasets=list(data) or None,
        license=licence.id,
        license_name=licence.name,
        license_link=licence.link,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sft", "sft-flow", *([run.adapter] if run.adapter else [])],
        model_name=name,
        eval_results=None if eval_loss is None else [held_out],
    )
    return str(card)


def _summary(run: RunConfig, base: Origin, artifacts: Artifacts) -> str:
    packed = artifacts["pack"].facts["train"]
    how = f"a {run.adapter} adapter, merged" if run.adapter else "all weights"
    return f"{base.name}, fine-tuned ({how}) on {number(packed['rows'])} rows by sft-flow."


def _prompts(run: RunConfig, asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a user has to know of each kind of prompt."""
    chats = [source for source in run.sources if is_chat(source)]
    if chats and run.publish is not None and run.publish.allow_prompt_difference:
        yield "Prompts are not certain to be those of the training: publish.allow_prompt_difference was set."
    elif chats:
        yield (
            "Prompts of rows that were trained on, rendered by this chat template with a generation prompt, are token "
            "for token those of the training. It was compared before the model was published."
        )
    if chats and asked:
        yield f"They were rendered with {', '.join(f'`{key}={value!r}`' for key, value in asked.items())}."
    for source in run.sources:
        if not is_chat(source):
            yield f"`{_name_of(source)}` has no chat template: its prompts are written as {_type_of(source)} says."


def _data(run: RunConfig, sources: list[Origin], artifacts: Artifacts) -> Iterator[list[str]]:
    counted = artifacts["tokenize"].facts["datasets"]
    for source, origin, counts in zip(run.sources, sources, counted, strict=True):
        licence = licence_on_hub(origin.name, origin.pin, "dataset") if origin.hub else Licence()
        rows, tokens = number(counts["rows_written"]), number(counts["tokens"])
        yield [origin.name, origin.shown, licence.shown, _type_of(source), rows, tokens, percent(counts)]


def _masks(run: RunConfig) -> Iterator[str]:
    """Yield what has a label in each data set."""
    for source in run.sources:
        if run.train_on_inputs:
            yield f"`{_name_of(source)}`: prompts and answers are trained."
        elif is_chat(source):
            roles = ", ".join(source.roles_to_train) or "no role"
            yield f"`{_name_of(source)}`: trained are the turns of {roles}; end tokens: {source.train_on_eos}."
        else:
            yield f"`{_name_of(source)}`: trained is what {_type_of(source)} says."


def _training(run: RunConfig, artifacts: Artifacts) -> Iterator[tuple[str, str]]:
    facts, packed = artifacts["train"].facts, artifacts["pack"].facts
    yield "steps", f"{number(facts['steps'])} ({number(facts['epochs'])} passes over the data)"
    batch = run.sequences_per_pass * run.passes_per_step * facts["world_size"]
    yield "sequences of a step", f"{number(batch)}, of at most {number(packed['sequence_len'])} tokens"
    yield "trained tokens", number(facts["trained_tokens_seen"])
    yield "learning rate", f"{run.learning_rate:g}, {run.lr_scheduler}"
    yield "optimizer", run.optimizer
    yield "precision", facts["precision"]
    if facts["quantization"]:
        yield "base model in training", "4 bits" if facts["quantization"].get("load_in_4bit") else "8 bits"
    if run.adapter:
        yield "adapter", f"rank {run.lora_r}, alpha {run.lora_alpha}"


def _metrics(artifacts: Artifacts) -> Iterator[tuple[str, str]]:
    facts = artifacts["train"].facts
    yield "training loss", f"{number(facts['first_loss'])} at the first step, {number(facts['final_loss'])} at the end"
    held_out = facts["eval_loss"]
    yield "loss on held-out rows", "nothing was held out" if held_out is None else number(held_out)
    for row in health_of(artifacts["train"]):
        yield f"health: {row['row'].replace('_', ' ')}", f"{row['status']}. {row['text']}"
    if facts["kind"] == "adapter":
        bound = orjson.loads(artifacts["merge"].path("merge.json").read_bytes())["bounds"]["logits"]
        yield "merged", f"logits compared with base + adapter: no more than {number(bound)} apart (RMS over RMS)"


def _samples(run: RunConfig, train: Artifact) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = samples_of(train)[:SAMPLES]
    return [({**before, "source": _name_of(run.sources[before["dataset"]])}, after) for before, after in found]


def _settings(run: RunConfig) -> str:
    shown = run.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude=set(NOT_SHOWN))
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()


def _name_of(source: DatasetConfig) -> str:
    return PurePosixPath(source.shown.rstrip("/")).name


def _type_of(source: DatasetConfig) -> str:
    return source.type if isinstance(source.type, str) else "the configuration" if source.type else "its own tokens"


def _cell(value: object) -> str:
    """Return a text that does not end its cell of a table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
