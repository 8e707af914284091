"""The stage `tokenize`: shards of raw rows to shards of token ids with a trained flag, the tokenizer beside them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from configs.schema import RunConfig
from stages.artifacts import Artifact, ArtifactWriter
from stages.base_model import TOKENIZER_FILES, ModelSource, find_tokenizer
from stages.errors import ConfigError, DataError, Problem, StageError
from stages.fetch.shards import file_of_row, files_of
from stages.formats import FILTERED, check_format, format_inputs, is_chat
from stages.own_process import answer_of
from stages.stage import Context, Stage, Upstream
from stages.templates.choice import TemplateChoice, choose_template, writes_the_date
from stages.tokenize.checks import Counts, as_facts, checks
from stages.tokenize.earlier import MadeShard, adopt, find_earlier, made_of, write_contents
from stages.tokenize.pool import tokenize_shards
from stages.tokenize.ray_pool import tokenize_on_ray
from stages.tokenize.shard import Job, Outcome, Setup

AUTO = "AutoTokenizer"
LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where a tokenizer keeps its chat template."""
SHOWN_ROWS = 5
REASONS_REMEDY = (
    "Correct these rows, or raise max_rejected_ratio to go on without them; rejected.jsonl then lists them all."
)


def inputs(context: Context, upstream: Upstream) -> dict[str, Any]:
    """Return what determines the tokens, all of the configuration that concerns them checked.

    Raises:
        ConfigError: an unknown format or template, or a tokenizer that is not there.
    """
    run = context.run
    _check_formats(run)
    tokenizer = find_tokenizer(run)
    chat = any(is_chat(dataset) for dataset in run.sources)
    datasets = []
    for number, dataset in enumerate(run.sources):
        template = _template_inputs(choose_template(run, dataset, run.source_key(number))) if is_chat(dataset) else None
        datasets.append({**format_inputs(run, number), **({"template": template} if template else {})})
    return {
        "tokenizer": tokenizer.content(TOKENIZER_FILES, context.digests),
        "special_tokens": run.special_tokens.model_dump(mode="json"),
        **({"tokenizer_type": kind} if (kind := _tokenizer_type(run)) != AUTO else {}),
        **({"tokens": run.tokens} if run.tokens else {}),
        **({"added_tokens_overrides": _overrides(run)} if run.added_tokens_overrides else {}),
        "template": _template_inputs(choose_template(run)),
        "datasets": datasets,
        **({"control_tokens_in_data": run.control_tokens_in_data} if run.control_tokens_in_data != "special" else {}),
        **({"eot_tokens": run.eot_tokens, "chat_template_kwargs": run.chat_template_kwargs} if chat else {}),
        **({"today": _today(context).isoformat()} if _writes_the_date(run, tokenizer) else {}),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def produce(context: Context, upstream: Upstream, writer: ArtifactWriter) -> dict[str, Any]:
    """Tokenize every shard of `fetch` that an earlier try has not finished. Returns the facts.

    Raises:
        ConfigError: the tokenizer cannot be loaded, or has no chat template.
        DataError: too many rows are broken.
    """
    raw = upstream["fetch"]
    scratch = writer.work / "resolved"
    resolved = resolve_tokenizer(context.run, find_tokenizer(context.run), scratch / "tokenizer")
    setup = setup_of(context, resolved, scratch / "tokenizer")
    writer.take_folder(scratch)
    tally = _Tally(context, sum(dataset["rows"] for dataset in raw.facts["datasets"]))
    shards = _shards(raw, STAGE.key_inputs(context, upstream))
    outcomes = _tokenize(shards, setup, writer, tally)
    _write_rejected(context.run, raw, outcomes, writer)
    write_contents([shard.made(outcome) for shard, outcome in outcomes], writer)
    shutil.rmtree(scratch)  # the artifact has it; nobody would look for it here any more
    tokenizer = {name: resolved[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    if resolved["new_tokens"]:
        tokenizer["new_tokens"] = resolved["new_tokens"]
    facts = _facts(context.run, outcomes)
    for number, dataset in enumerate(facts["datasets"]):
        for check in dataset["checks"]:
            if check["verdict"] == "warning":
                ahead = "; publishing may be refused for it" if check["check"] == "prompt" else ""
                context.log(f"{context.run.source_key(number)}: check {check['check']}: {check['detail']}{ahead}")
    return {**facts, "tokenizer": tokenizer}


STAGE = Stage("tokenize", 5, ("fetch",), inputs, produce)


@dataclass(frozen=True)
class _Shard:
    """A shard of `fetch`, the name of the data file that it becomes, and the digest of what this is made of."""

    dataset: int
    source: Path
    first_row: int
    name: str
    made_of: str

    def made(self, outcome: Outcome) -> MadeShard:
        """Return the tokenized shard."""
        place = {"file": self.name, "dataset": self.dataset, "first_row": self.first_row}
        return MadeShard(made_of=self.made_of, outcome=outcome, **place)


@dataclass
class _Tally:
    """Counts while the work goes on: reports progress, and stops it when too many rows are broken."""

    context: Context
    total: int
    rows: int = 0
    tokens: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, rows: int, tokens: int) -> None:
        """Count rows that were read, and tokens."""
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        self.context.progress(self.rows, self.total, "rows", tokens=self.tokens)

    def reject(self, dataset: int, records: list[dict[str, Any]]) -> None:
        """Count rejected rows of a data set.

        Raises:
            DataError: they are more than `max_rejected_ratio` of all rows, those that a format filters out not counted.
        """
        path = self.context.run.sources[dataset].shown
        self.rejected += ({"path": path, **record} for record in records if record["reason"] != FILTERED)
        limit = self.context.run.max_rejected_ratio
        if len(self.rejected) > limit * self.total:
            raise DataError(_too_many(self.rejected, self.rows, self.total, limit))


def _check_formats(run: RunConfig) -> None:
    problems: list[Problem] = []
    for number, dataset in enumerate(run.sources):
        try:
            check_format(run, number)
            if is_chat(dataset):
                choose_template(run, dataset, run.source_key(number))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _template_inputs(choice: TemplateChoice) -> dict[str, str | None]:
    return {"text": choice.text, "fallback": choice.fallback}


def _overrides(run: RunConfig) -> dict[str, str]:
    return {str(number): text for number, text in run.added_tokens_overrides.items()}


def _today(context: Context) -> date:
    return context.run.template_date or context.today


def _writes_the_date(run: RunConfig, tokenizer: ModelSource) -> bool:
    """Return whether the text of a conversation may depend on the day on which it is made."""
    chats = [(number, dataset) for number, dataset in enumerate(run.sources) if is_chat(dataset)]
    choices = [choose_template(run, dataset, run.source_key(number)) for number, dataset in chats]
    if any(writes_the_date(text) for choice in choices for text in (choice.text, choice.fallback) if text):
        return True
    if all(choice.text is not None for choice in choices):
        return False
    folder = tokenizer.folder(TEMPLATE_FILES)
    files = [folder / name for name in TEMPLATE_FILES if (folder / name).is_file()]
    return any(writes_the_date(file.read_text(encoding="utf-8", errors="replace")) for file in files)


def _tokenizer_type(run: RunConfig) -> str:
    return run.tokenizer_type or AUTO


def resolve_tokenizer(run: RunConfig, source: ModelSource, folder: Path) -> dict[str, Any]:
    """Have a process with Hugging Face's classes write the tokenizer into a folder; return its answer."""
    request = {
        "source": str(source.folder(TOKENIZER_FILES).resolve()),
        "out": str(folder.resolve()),
        "special_tokens": run.special_tokens.model_dump(mode="json"),
        "tokens": run.tokens,
        "overrides": _overrides(run),
        "chat_template": choose_template(run).text,
        "eot_tokens": run.eot_tokens or (),
        "tokenizer_type": _tokenizer_type(run),
        "trust_remote_code": run.trust_remote_code,
    }
    folder.mkdir(parents=True, exist_ok=True)
    answer: dict[str, Any] = answer_of("stages.tokenizer", request, f"loads the tokenizer of {source.name}")
    if "error" in answer:
        key = answer["key"] or ("tokenizer_config" if run.tokenizer_config else "base_model")
        remedy = "Name another tokenizer with tokenizer_config, or change the key."
        value = source.name if not answer["key"] else ""
        raise ConfigError([Problem("configuration", key, value, answer["error"], remedy)])
    return answer


def setup_of(context: Context, resolved: dict[str, Any], folder: Path) -> Setup:
    """Return what every worker needs, with a tokenizer that `resolve_tokenizer` wrote into a folder."""
    run = context.run
    templates: list[str | None] = []
    for number, dataset in enumerate(run.sources):
        text = None
        if is_chat(dataset):
            text = choose_template(run, dataset, run.source_key(number)).resolve(resolved["chat_template"])
            if text is None:
                rule = "takes the tokenizer's own chat template, and the tokenizer has none"
                remedy = "Set chat_template to a name (chatml, llama3, ...), or to jinja with chat_template_jinja."
                raise ConfigError(
                    [Problem("configuration", f"{run.source_key(number)}.type", "chat_template", rule, remedy)]
                )
        templates.append(text)
    return Setup(
        run=run,
        folder=folder,
        bos=resolved["bos_token_id"],
        eos=resolved["eos_token_id"],
        eot=tuple(resolved["eot_token_ids"]),
        variables=resolved["variables"],
        templates=tuple(templates),
        today=_today(context),
    )


def _shards(raw: Artifact, inputs: dict[str, Any]) -> list[_Shard]:
    digests = {entry.path: entry.sha256 for entry in raw.manifest.files}
    return [
        _Shard(
            dataset=number,
            source=raw.path(shard["file"]),
            first_row=shard["first_row"],
            name=str(Path(shard["file"]).with_suffix(".arrow")),
            made_of=made_of(inputs, number, digests[shard["file"]]),
        )
        for number, dataset in enumerate(raw.facts["datasets"])
        for shard in dataset["shards"]
    ]


def _tokenize(
    shards: list[_Shard], setup: Setup, writer: ArtifactWriter, tally: _Tally
) -> list[tuple[_Shard, Outcome]]:
    """Return the outcome of every shard, in order."""
    outcomes: dict[str, Outcome] = {}
    for shard in shards:
        notes = writer.finished(shard.name)
        if notes is not None:
            outcomes[shard.name] = outcome = Outcome.model_validate(notes)
            tally.add(outcome.rows_read, outcome.tokens)
            tally.reject(shard.dataset, outcome.rejected)
    left = {shard.name: shard for shard in shards if shard.name not in outcomes}
    for shard, outcome in _reused(left.values(), writer, tally.context):
        outcomes[shard.name] = outcome
        del left[shard.name]
        tally.add(outcome.rows_read, outcome.tokens)
        tally.reject(shard.dataset, outcome.rejected)
    processes = setup.run.dataset_num_proc or len(os.sched_getaffinity(0))
    jobs = list(_jobs(left, writer.work / "shards"))
    names = {job.target: name for job, name in zip(jobs, left, strict=True)}
    elsewhere = setup.run.orchestration
    if elsewhere.executor == "ray":
        work = tokenize_on_ray(setup, jobs, elsewhere.address, tally.add)
    else:
        work = tokenize_shards(setup, jobs, processes, tally.add)
    with closing(work) as finished:
        for job, outcome in finished:
            name = names[job.target]
            with writer.create(name) as draft:
                job.target.replace(draft.path)
                draft.notes.update(outcome.model_dump())
            outcomes[name] = outcome
            if outcome.note:
                tally.context.log(outcome.note)
            tally.reject(job.dataset, outcome.rejected)
    return [(shard, outcomes[shard.name]) for shard in shards]


def _reused(shards: Iterable[_Shard], writer: ArtifactWriter, context: Context) -> list[tuple[_Shard, Outcome]]:
    """Take over what earlier artifacts have of these shards; return those with their outcomes."""
    wanted = list(shards)
    earlier = find_earlier([shard.made_of for shard in wanted], writer)
    taken = []
    for shard in wanted:
        if shard.made_of in earlier:
            artifact, made = earlier[shard.made_of]
            place = made.at(shard.name, shard.dataset, shard.first_row)
            if adopt(artifact, made, place, writer, context.digests):
                taken.append((shard, place.outcome))
    if taken:
        context.log(f"{len(taken)} shards are those of earlier runs; {len(wanted) - len(taken)} are tokenized")
    return taken


def _jobs(shards: dict[str, _Shard], folder: Path) -> Iterator[Job]:
    for name, shard in shards.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        yield Job(dataset=shard.dataset, source=shard.source, target=target, first_row=shard.first_row)


def _write_rejected(
    run: RunConfig, raw: Artifact, outcomes: list[tuple[_Shard, Outcome]], writer: ArtifactWriter
) -> None:
    files = files_of(raw)
    lines = []
    for shard, outcome in outcomes:
        whole = run.sources[shard.dataset].shown
        for record in outcome.rejected:
            where = {"dataset": shard.dataset, "row": record["row"]}
            path = file_of_row(files.get(shard.dataset, []), record["row"]) or whole
            kept = {"path": path, "reason": record["reason"], "detail": record["detail"]}
            lines.append(orjson.dumps({**where, **kept}, option=orjson.OPT_APPEND_NEWLINE))
    # volatile, because it names the paths of the data, which the key leaves out
    writer.write("rejected.jsonl", b"".join(lines), volatile=True)


def _facts(run: RunConfig, outcomes: list[tuple[_Shard, Outcome]]) -> dict[str, Any]:
    everything = [outcome for _, outcome in outcomes]
    datasets = []
    for number in range(len(run.sources)):
        own = [outcome for shard, outcome in outcomes if shard.dataset == number]
        datasets.append({**_counts(own), "checks": as_facts(checks(run, number, Counts.of(own)))})
    shards = [
        {"file": shard.name, "dataset": shard.dataset, "rows": outcome.rows, "tokens": outcome.tokens}
        for shard, outcome in outcomes
    ]
    return {**_counts(everything), "shards": shards, "datasets": datasets}


def _counts(outcomes: list[Outcome]) -> dict[str, Any]:
    names = ("rows_read", "rows_written", "tokens", "trained_tokens")
    counts: dict[str, Any] = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in names}
    rejected = Counter(record["reason"] for outcome in outcomes for record in outcome.rejected)
    if counts["rows_read"] != counts["rows_written"] + rejected.total():
        raise StageError(f"rows were lost: {counts}, rejected {dict(rejected)}; please report this")
    return {**counts, "rejected": dict(sorted(rejected.items()))}


def _too_many(rejected: list[dict[str, Any]], rows: int, total: int, limit: float) -> str:
    reasons = Counter(record["reason"] for record in rejected)
    seen = f"{len(rejected)} of the first {rows}" if rows < total else f"{len(rejected)} of {total}"
    lines = [f"{seen} rows cannot be used; max_rejected_ratio allows {limit:.1%} of all {total}."]
    lines += [f"  {reason}: {count}" for reason, count in reasons.most_common()]
    lines += [f"  {record['path']} row {record['row']}: {record['detail']}" for record in rejected[:SHOWN_ROWS]]
    return "\n".join([*lines, REASONS_REMEDY])
