"""The checks before training: a verdict on each data set, from counts over all its rows and from a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import DatasetConfig, RunConfig
from stages.formats import is_chat
from stages.tokenize.shard import Outcome

Verdict = Literal["pass", "note", "warning"]
LEAST_SHARE = 0.005
MOST_SHARE = 0.98
WHOLE_TEXT = ("completion", "input_output", None)
"""Types whose rows, and not a template, say what ends; None: rows that are tokenized already."""


@dataclass(frozen=True)
class Check:
    """What one check says of one data set.

    Attributes:
        check: its name: ends, prompt, content, share, untrained, control_tokens.
        verdict: "pass"; "note": as it was asked for, or nothing to compare; "warning": probably not meant so.
        detail: one sentence.
    """

    check: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class Counts:
    """What was counted of a data set.

    Attributes:
        rows, tokens, trained_tokens: what was written.
        spans, ended_spans: runs of trained tokens, and those that end with an end token.
        untrained_rows: rows without a trained token.
        control_rows, control_tokens: rows whose text spells control tokens, and how often each.
        found, examples: of the sample, by what was found.
    """

    rows: int
    tokens: int
    trained_tokens: int
    spans: int
    ended_spans: int
    untrained_rows: int
    control_rows: int
    control_tokens: Mapping[str, int]
    found: Mapping[str, int]
    examples: Mapping[str, str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Counts:
        """Return what the shards of a data set come to."""
        names = ("rows", "tokens", "trained_tokens", "spans", "ended_spans", "untrained_rows", "control_rows")
        totals = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in names}
        control: Counter[str] = Counter()
        found: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for outcome in outcomes:
            control.update(outcome.control_tokens)
            found.update(outcome.found)
            examples = {**outcome.examples, **examples}
        return cls(**totals, control_tokens=control, found=found, examples=examples)


def checks(run: RunConfig, number: int, counts: Counts) -> list[Check]:
    """Return the verdicts on data set `number`."""
    dataset = run.sources[number]
    found = [_ends(run, dataset, counts), _share(run, dataset, counts), _untrained(counts)]
    if is_chat(dataset):
        found += [_prompt(counts), _content(counts)]
    return [*found, *_control(run, counts)]


def _ends(run: RunConfig, dataset: DatasetConfig, counts: Counts) -> Check:
    said = f"{counts.ended_spans:,} of {counts.spans:,} trained spans end with a trained end token"
    if not counts.spans:
        return Check("ends", "note", "nothing is trained, so nothing ends")
    if counts.ended_spans == counts.spans:
        return Check("ends", "pass", said)
    chat = is_chat(dataset)
    if (chat and "none" in (dataset.train_on_eos, dataset.train_on_eot)) or (chat and dataset.train_on_eos == "last"):
        asked = f"train_on_eos: {dataset.train_on_eos}"
        if dataset.train_on_eot:
            asked += f", train_on_eot: {dataset.train_on_eot}"
        return Check("ends", "note", f"{said}: {asked} asks for it")
    if dataset.type in WHOLE_TEXT or run.train_on_inputs:
        return Check("ends", "note", f"{said}: with {_why(run, dataset)} a span ends where its row says")
    if chat and any(counts.found.get(f"end:{what}") for what in ("token", "text", "nothing")):
        return Check("ends", "warning", f"{said}. {_what_comes(counts)}")
    if chat and counts.found.get("end:trained") and not counts.found.get("end:untrained"):
        return Check("ends", "note", f"{said}: of other turns only parts are trained")
    return Check("ends", "warning", f"{said}: a model that is trained so may not learn to stop")


def _why(run: RunConfig, dataset: DatasetConfig) -> str:
    if run.train_on_inputs:
        return "train_on_inputs"
    return "rows that are tokenized already" if dataset.type is None else f"type: {dataset.type}"


def _what_comes(counts: Counts) -> str:
    token, text = counts.examples.get("end:token"), counts.examples.get("end:text")
    if token is not None:
        return f"Behind a turn the template writes {token}; if that ends it, set eot_tokens: ['{token}']"
    if text is not None:
        return (
            f"Behind a turn the template writes {text}, which this tokenizer has no token for; use another "
            "chat_template, or add the token (special_tokens, eot_tokens)"
        )
    return "The template writes nothing behind a turn, so the model does not learn to stop"


def _share(run: RunConfig, dataset: DatasetConfig, counts: Counts) -> Check:
    share = counts.trained_tokens / counts.tokens if counts.tokens else 0.0
    said = f"{share:.1%} of {counts.tokens:,} tokens are trained"
    if share < LEAST_SHARE:
        return Check("share", "warning", f"{said}: hardly anything is learned; look at roles_to_train and the columns")
    if share > MOST_SHARE and dataset.type not in WHOLE_TEXT and not run.train_on_inputs:
        return Check("share", "warning", f"{said}: prompts as well, it seems; look at roles and columns")
    return Check("share", "pass", said)


def _untrained(counts: Counts) -> Check:
    if counts.untrained_rows:
        rule = f"{counts.untrained_rows:,} of {counts.rows:,} rows have no trained token; pack leaves them out"
        return Check("untrained", "warning", rule)
    return Check("untrained", "pass", "every row has a trained token")


def _prompt(counts: Counts) -> Check:
    """Return whether the model is asked at inference as it was trained."""
    found = {name.partition(":")[2]: count for name, count in counts.found.items() if name.startswith("prompt:")}
    total = sum(found.values())
    if not total:
        return Check("prompt", "note", "the sample has no trained answer to compare with an inference prompt")
    same = found.get("same", 0)
    said = f"{same:,} of {total:,} sampled answers follow the prompt that inference renders"
    if same == total:
        return Check("prompt", "pass", said)
    worst = next(name for name in ("other", "shorter", "longer", "merged", "none", "refused") if found.get(name))
    reasons = {
        "other": "the template writes earlier turns otherwise when it asks",
        "shorter": "the prompt ends too early",
        "longer": "the prompt goes further",
        "merged": "the text is the same, its last tokens are not",
        "none": "the template knows no add_generation_prompt",
        "refused": "the template does not render the conversation up to there",
    }
    return Check("prompt", "warning", f"{said}: {reasons[worst]}: {counts.examples[f'prompt:{worst}']}")


def _content(counts: Counts) -> Check:
    wrong = {
        "ids:other": "a second encoding gives other ids",
        "content:other": "the trained tokens say something else",
        "message:other": "the template writes a content otherwise than it is in the data",
    }
    name = next((name for name in wrong if counts.found.get(name)), None)
    if name is None and not counts.found.get("content:same"):
        return Check("content", "note", "the sample has no trained turn to decode")
    if name is None:
        said = f"{counts.found.get('content:same', 0):,} sampled turns, decoded from trained tokens, say their content"
        return Check("content", "pass", said)
    said = f"{counts.found[name]:,} of the sample: {wrong[name]}: {counts.examples[name]}"
    return Check("content", "warning", said)


def _control(run: RunConfig, counts: Counts) -> list[Check]:
    if not counts.control_rows:
        return []
    most = ", ".join(f"{token} {count:,}" for token, count in Counter(counts.control_tokens).most_common(5))
    said = f"the text of {counts.control_rows:,} rows spells control tokens ({most})"
    if run.control_tokens_in_data == "special":
        remedy = "control_tokens_in_data: text encodes them as text"
        return [Check("control_tokens", "warning", f"{said}, encoded as control tokens; {remedy}")]
    how = {"text": "encoded as plain text", "reject": "which are rejected"}[run.control_tokens_in_data]
    return [Check("control_tokens", "note", f"{said}, {how}")]


def as_facts(found: list[Check]) -> list[dict[str, Any]]:
    """Return checks JSON-ready."""
    return [vars(check) for check in found]
