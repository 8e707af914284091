"""report.html: what was trained, how it went and how to repeat it, as one page that needs nothing else."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.report.curves import Chart, Point, Series, draw, number
from stages.report.templating import HERE, pages_in
from stages.train.metrics import read_metrics

REPORT = "report.html"
HEALTH = "health.json"
SAMPLES = "samples.jsonl"
SETTINGS = "sft-run.yaml"
"""The effective configuration, beside the report: what its command to repeat reads."""
TELLING = 0.05  # a change of the loss by less than this share is not called one
EDGE = 0.1  # share of the logged steps at either end whose mean is compared

Record = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """How the training went: `tone` is "good", "bad" or "open"."""

    tone: str
    headline: str
    detail: str


@dataclass(frozen=True)
class Row:
    """A line of a table: what, how much, and a remark."""

    name: str
    value: str
    remark: str = ""


def write_report(folder: Path, run: RunConfig, artifacts: Mapping[str, Artifact]) -> Path:
    """Write `report.html` into a folder, whole or not at all, and return its path; `artifacts` are by stage name."""
    path = folder / REPORT
    draft = path.with_name(f".{REPORT}.tmp")
    draft.write_text(render(run, artifacts), encoding="utf-8")
    return draft.replace(path)


def render(run: RunConfig, artifacts: Mapping[str, Artifact]) -> str:
    """Return the page; the same text for the same run and artifacts."""
    records = read_metrics(artifacts["train"].path("metrics.jsonl"))
    health = health_of(artifacts["train"])
    shown = run.model_dump(mode="json")  # without the secrets that addresses may hold
    return (
        pages_in(HERE)
        .get_template(REPORT)
        .render(
            title=f"{Path(shown['base_model']).name} · {'LoRA adapter' if run.adapter else 'full fine-tuning'}",
            run=shown,
            verdict=with_health(judge(records), health),
            health=health,
            samples=samples_of(artifacts["train"]),
            figures=key_figures(artifacts),
            charts=charts_of(records),
            data=data_rows(artifacts),
            sources=source_rows(run, artifacts),
            rejected=rejected_rows(artifacts),
            training=training_rows(records, artifacts),
            published=artifacts["publish"].facts if "publish" in artifacts else None,
            settings=settings_of(run),
            lineage=[*artifacts.values()],
            command=shlex.join(["sft", "run", f"{run.output_dir}/{SETTINGS}"]),
        )
    )


def settings_of(run: RunConfig) -> str:
    """Return the configuration as YAML: what was set, not the defaults."""
    return yaml.safe_dump(
        run.model_dump(mode="json", exclude_unset=True, exclude_none=True), sort_keys=False, allow_unicode=True
    )


def judge(records: Sequence[Record]) -> Verdict:
    """Say whether the loss fell, from what was logged and nothing else."""
    losses, held_out = points_of(records, "loss"), points_of(records, "eval_loss")
    broken = next((step for step, loss in [*losses, *held_out] if not math.isfinite(loss)), None)
    if broken is not None:
        return Verdict("bad", f"The loss was not a finite number at step {number(broken)}", "Do not use this model.")
    if len(losses) < 2:
        return Verdict("open", "Too few steps were logged to tell whether the loss fell", _held_out(held_out))
    edge = max(1, int(len(losses) * EDGE))
    first, last = _mean(losses[:edge]), _mean(losses[-edge:])
    span = f"from {number(first)} to {number(last)}"
    how = "first to last logged step" if edge == 1 else f"means of the first and of the last {edge} logged steps"
    detail = f"Training loss: {how}. {_held_out(held_out)}".rstrip()
    if last < (1 - TELLING) * first:
        risen = len(held_out) > 1 and held_out[-1][1] > (1 + TELLING) * held_out[0][1]
        return Verdict("bad" if risen else "good", f"The loss fell {span}", detail)
    if last > (1 + TELLING) * first:
        return Verdict("bad", f"The loss rose {span}", detail)
    return Verdict("open", f"The loss hardly changed: {span}", detail)


def health_of(train: Artifact) -> list[Record]:
    """Return what the monitor found about each thing that it watches; nothing if it was not there yet."""
    if not _has(train, HEALTH):
        return []
    rows: list[Record] = orjson.loads(train.path(HEALTH).read_bytes())["rows"]
    return rows


def sick_rows(train: Artifact) -> list[Record]:
    """Return the rows of the health that are sick."""
    return [row for row in health_of(train) if row["status"] == "sick"]


def samples_of(train: Artifact) -> list[tuple[Record, Record]]:
    """Return what the model said first and last to each held-out prompt; nothing if it was not asked."""
    if not _has(train, SAMPLES):
        return []
    said: dict[tuple[int, int], list[Record]] = {}
    for record in read_metrics(train.path(SAMPLES)):
        said.setdefault((record["dataset"], record["row"]), []).append(record)
    return [(records[0], records[-1]) for records in said.values()]


def _has(train: Artifact, name: str) -> bool:
    return any(entry.path == name for entry in train.manifest.files)


def with_health(verdict: Verdict, health: Sequence[Record]) -> Verdict:
    """Return the verdict with the gravest thing that the monitor found: a loss may fall in a training that is ill."""
    sick = [row for row in health if row["status"] == "sick"]
    seen = sick or [row for row in health if row["status"] == "watch"]
    if not seen:
        return verdict
    tone = "bad" if sick else "open" if verdict.tone == "good" else verdict.tone
    names = ", ".join(row["row"].replace("_", " ") for row in seen)
    headline = f"{verdict.headline}; {'ill' if sick else 'unusual'}: {names}"
    return Verdict(tone, headline, f"{seen[0]['text']} {seen[0]['remedy']} {verdict.detail}")


def _held_out(points: Sequence[Point]) -> str:
    if not points:
        return "Nothing was held out, so this says nothing about unseen rows."
    (step, best), (_, last) = min(points, key=lambda point: point[1]), points[-1]
    if last > (1 + TELLING) * best:
        return (
            f"Held-out loss was lowest at step {number(step)} ({number(best)}) and has risen to {number(last)} since: "
            "the model began to memorise."
        )
    return f"Held-out loss at the end: {number(last)}."


def _mean(points: Sequence[Point]) -> float:
    return math.fsum(value for _, value in points) / len(points)


def points_of(records: Sequence[Record], name: str) -> list[Point]:
    """Return (step, value) of every record that has it; null, JSON's word for not a number, becomes NaN."""
    found = [(record["step"], record[name]) for record in records if name in record]
    return [(step, math.nan if value is None else float(value)) for step, value in found]


def charts_of(records: Sequence[Record]) -> list[Chart]:
    """Return the charts that have something to show."""
    held_out = Series("held out", points_of(records, "eval_loss"), dots=True)
    memory = [(step, value / 2**30) for step, value in points_of(records, "memory_bytes") if value > 0]
    charts = [
        draw("Loss", [Series("training", points_of(records, "loss")), held_out]),
        draw("Gradient norm", [Series("before clipping", points_of(records, "grad_norm"))]),
        draw("Learning rate", [Series("learning rate", points_of(records, "learning_rate"))]),
        draw("Tokens per second", [Series("tokens/s", points_of(records, "tokens_per_second"))]),
        draw("Memory, GiB per process", [Series("peak so far", memory)]),
    ]
    return [chart for chart in charts if chart is not None]


def key_figures(artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Return the few numbers that stand at the top."""
    train, packed = artifacts["train"].facts, artifacts["pack"].facts["train"]
    held_out = train["eval_loss"]
    return [
        Row("steps", number(train["steps"]), f"{number(train['epochs'])} passes over the data"),
        Row("rows", number(packed["rows"]), f"in {number(packed['sequences'])} sequences"),
        Row("trained tokens", number(train["trained_tokens_seen"]), f"{percent(packed)} of all tokens are trained"),
        Row("held-out loss", "none" if held_out is None else number(held_out), "at the end"),
    ]


def percent(counts: Mapping[str, Any]) -> str:
    """Return the share of trained tokens."""
    return f"{100 * counts['trained_tokens'] / counts['tokens']:.1f} %" if counts["tokens"] else "0 %"


def data_rows(artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Return what became of the rows: read, written, packed, held out."""
    tokenized, packed = artifacts["tokenize"].facts, artifacts["pack"].facts
    rows = [
        Row("Rows read", number(tokenized["rows_read"])),
        Row("Rows tokenized", number(tokenized["rows_written"]), f"{number(tokenized['tokens'])} tokens"),
        Row("Trained share", percent(tokenized), f"{number(tokenized['trained_tokens'])} tokens have a label"),
    ]
    for side, name in (("train", "Training"), ("eval", "Held out")):
        counts = packed[side]
        if counts["sequences"]:
            fill = f"{100 * counts['efficiency']:.1f} % of {number(packed['sequence_len'])} tokens filled"
            in_rows = f"{number(counts['rows'])} rows, {number(counts['tokens'])} tokens, {fill}"
            rows.append(Row(f"{name} sequences", number(counts["sequences"]), in_rows))
    return rows


def source_rows(run: RunConfig, artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Return one line per data set."""
    counted = artifacts["tokenize"].facts["datasets"]
    return [
        Row(
            source.shown,
            number(counts["rows_written"]),
            f"{source.type if isinstance(source.type, str) else 'own format'}, {number(counts['tokens'])} tokens, "
            f"{percent(counts)} trained",
        )
        for source, counts in zip(run.sources, counted, strict=True)
    ]


def rejected_rows(artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Return the rows that were left out, by stage and reason, most first."""
    found = [
        Row(reason.replace("_", " "), number(count), stage)
        for stage in ("tokenize", "pack")
        for reason, count in sorted(artifacts[stage].facts["rejected"].items(), key=lambda item: -item[1])
        if count
    ]
    return found


def training_rows(records: Sequence[Record], artifacts: Mapping[str, Artifact]) -> list[Row]:
    """Return how the training was done."""
    train = artifacts["train"]
    memory = [value for _, value in points_of(records, "memory_bytes") if value > 0]
    seconds = float(train.manifest.volatile["seconds"])
    rows = [
        Row("Kind", "LoRA adapter" if train.facts["kind"] == "adapter" else "all weights"),
        Row("Precision", train.facts["precision"]),
        Row("Processes", number(train.facts["world_size"])),
        Row("Steps", number(train.facts["steps"]), f"{number(train.facts['steps_per_epoch'])} per pass over the data"),
        Row("Time", duration(seconds)),
    ]
    if waiting := train.facts["waiting"]:
        otherwise = f"estimated from lengths; in a random order {waiting['in_random_order']:.1%}"
        rows.append(Row("Waiting", f"{waiting['share']:.1%} of the time processes wait for each other", otherwise))
    if memory:
        rows.append(Row("Peak memory", f"{max(memory) / 2**30:.2f} GiB", "per process"))
    if train.facts["kind"] == "adapter" and "merge" in artifacts:
        merged = orjson.loads(artifacts["merge"].path("merge.json").read_bytes())
        off, bound = (number(merged[name]["logits"]) for name in ("differences", "bounds"))
        rows.append(Row("Merged in", merged["dtype"], f"logits {off} off base + adapter, {bound} allowed"))
    return rows


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> [duration(value) for value in (0.04, 59, 61, 7325)]
    ['0.0 s', '59.0 s', '1 min 1 s', '2 h 2 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
