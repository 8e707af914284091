"""Is a model asked at inference as it was trained? Prompts of real rows, rendered by the tokenizer that is published.

Of each data set of conversations some rows are taken. The messages before the first trained answer go through
transformers' `apply_chat_template` with a generation prompt, as a server does it for a user, in a process of its own;
the ids must be those that stand in front of that answer in the tokens that were trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from configs.schema import RunConfig
from stages.artifacts import Artifact
from stages.formats import ChatFormat, is_chat, make_format
from stages.formats.custom_rows import MessagesFormat
from stages.formats.messages import Message
from stages.formats.rows import read_row
from stages.inspection.rows import picks, raw_rows
from stages.own_process import answer_of
from stages.stage import Upstream
from stages.templates.choice import ChatTemplate
from stages.tokens import IGNORED, TokenRows

ROWS = 5
"""Rows of each data set at random; the longest and the shortest are taken as well."""
SWITCHES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
"""What is tried in turn: a template of a model that thinks asks for thoughts, unless it is told not to."""


@dataclass(frozen=True)
class Question:
    """The prompt of a row.

    Attributes:
        dataset, row: which row.
        messages, tools: what stands before its first trained answer.
        ids: the tokens of the row, up to that answer where the mask tells where it begins, else all.
        exact: whether the prompt must be all of them, or they must begin with it.
    """

    dataset: int
    row: int
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    ids: list[int]
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """How prompts are rendered at inference, compared with training.

    Attributes:
        rows: prompts that were compared.
        variables: what inference has to set for them to be the same, `{"enable_thinking": False}`; mostly nothing.
        differences: a sentence for each data set whose prompts are others in any case.
    """

    rows: int
    variables: dict[str, Any]
    differences: tuple[str, ...]


def compare(run: RunConfig, upstream: Upstream) -> Comparison:
    """Render the prompts of some trained rows as inference does, and compare them with what was trained."""
    questions = list(_questions(run, upstream["fetch"], upstream["tokenize"]))
    if not questions:
        return Comparison(0, {}, ())
    answers = _ask(run, upstream, questions)
    for variables, found in zip(SWITCHES, answers, strict=True):
        if not any(found):
            return Comparison(len(questions), variables, ())
    return Comparison(len(questions), {}, tuple(_sentences(run, questions, answers[0])))


def _sentences(run: RunConfig, questions: list[Question], answers: list[str]) -> Iterator[str]:
    for dataset in sorted({question.dataset for question in questions}):
        own = [(q, answer) for q, answer in zip(questions, answers, strict=True) if q.dataset == dataset]
        odd = [(question, answer) for question, answer in own if answer]
        if odd:
            first, answer = odd[0]
            yield f"{run.source_key(dataset)}, {len(odd)} of {len(own)} rows, row {first.row}: {answer}"


def _questions(run: RunConfig, fetched: Artifact, tokens: Artifact) -> Iterator[Question]:
    """Yield the prompts of the rows that are compared."""
    rows = TokenRows(tokens)
    chosen = [pick for pick in picks(rows, len(run.sources), ROWS) if is_chat(run.sources[pick.dataset])]
    raw = raw_rows(fetched, [(pick.dataset, pick.row) for pick in chosen])
    forms = {number: _conversations(run, number) for number in {pick.dataset for pick in chosen}}
    for pick in chosen:
        messages, tools = forms[pick.dataset].conversation(read_row(raw[pick.dataset, pick.row]))
        ids, labels = rows[pick.number]
        yield from _question(run, pick.dataset, pick.row, messages, tools, ids.tolist(), (labels != IGNORED).tolist())


def _conversations(run: RunConfig, number: int) -> ChatFormat | MessagesFormat:
    return cast("ChatFormat | MessagesFormat", make_format(run, number, ChatTemplate("", {})))


def _question(
    run: RunConfig,
    dataset: int,
    row: int,
    messages: list[Message],
    tools: list[Any] | None,
    ids: list[int],
    trained: list[bool],
) -> Iterator[Question]:
    """Yield the prompt in front of the first trained answer, if there is one."""
    answer = next((n for n, m in enumerate(messages) if m.trained and m.seen["role"] == "assistant"), 0)
    if not answer or True not in trained:
        return
    settings, message = run.sources[dataset], messages[answer]
    in_parts = message.content_parts is not None or message.thinking_parts is not None
    ends_of_all = "all" in (settings.train_on_eos, settings.train_on_eot)
    exact = not (in_parts or ends_of_all or any(earlier.trained for earlier in messages[:answer]))
    seen = [earlier.seen for earlier in messages[:answer]]
    yield Question(dataset, row, seen, tools, ids[: trained.index(True)] if exact else ids, exact)


def _ask(run: RunConfig, upstream: Upstream, questions: list[Question]) -> list[list[str]]:
    """Return for each of SWITCHES and each question how the prompt differs, "" where it does not."""
    request = {
        "tokenizer": str(upstream["merge"].path("model").resolve()),
        "trust_remote_code": run.trust_remote_code,
        "variables": [{**run.chat_template_kwargs, **switch} for switch in SWITCHES],
        "control_tokens_are_text": run.control_tokens_in_data == "text",
        "day": upstream["tokenize"].manifest.inputs.get("today"),
        "questions": questions,
    }
    answers: list[list[str]] = answer_of(
        "stages.publish.asked_worker", request, "renders prompts with the model's tokenizer"
    )
    return answers
