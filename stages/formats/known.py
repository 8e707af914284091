"""The instruction formats that have a name: `alpaca`, `alpaca:chat`, `context_qa.load_v2` and the others.

Each is a row of `KINDS`: how a row is read, how the prompt is written, and what the system part says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from stages.formats.instruction import InstructionFormat, PromptStyle, Read, Reading, columns
from stages.formats.pieces import Rejected
from stages.formats.rows import shorten, text_field, text_of

INSTRUCT = PromptStyle(
    "{system}\n\n",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Response:\n",
)
CHAT = PromptStyle(
    "SYSTEM: {system}\n",
    "USER: {instruction}\n{input}\nASSISTANT:",
    "USER: {instruction}\nASSISTANT:",
)
CHATML = PromptStyle(
    "<|im_start|>system\n{system}<|im_end|>\n",
    "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
)
PHI = PromptStyle(
    "<|system|>\n{system}<|end|>\n",
    "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
    "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
)
STYLES = {"instruct": INSTRUCT, "chat": CHAT, "chatml": CHATML, "phi": PHI}

OPEN_ORCA = PromptStyle(
    "### System:\n{system}\n",
    "### Human:\n{instruction}\n### Additional Context:\n{input}\n### Assistant:\n",
    "### Human:\n{instruction}\n### Assistant:\n",
)
ORCA_MINI = PromptStyle("", "", "### System:\n{system}\n\n### User:\n{instruction}\n\n### Response:\n")
CHOICE = PromptStyle("{system}", CHAT.with_input, CHAT.without_input)
SUMMARY = PromptStyle(
    "",
    "USER: Summarize the following article as a TL;DR.\n{instruction}\n{input}\nASSISTANT:",
    "USER: Summarize the following article as a TL;DR.\n{instruction}\nASSISTANT:",
)
BARE = PromptStyle("", "{instruction}\n{input}", "{instruction}")
CREATIVE = PromptStyle("{system}\n", CHAT.with_input, CHAT.without_input)

NO_SYSTEM = ("", "")
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
CONCISE = (
    "Below is an instruction from a USER that describes a task, paired with an input that provides further context. "
    "The ASSISTANT writes a response that concisely and appropriately completes the request.\n\n",
    "Below is an instruction from a USER that describes a task. "
    "The ASSISTANT writes a response that appropriately and concisely completes the request.\n\n",
)
EXPLAIN = "Choose the answer that best answers the question. Explain your reasoning.\n"
BRIEF = "Choose the answer that best answers the question. Be concise in your response.\n\n"
CONTEXT = "Use the following contextual information to concisely answer the question.\n"
ANSWER = (
    "Answer the following question in a comprehensive, in-depth, and creative way. "
    "Additionally your response should be relevant, accurate, and free of any ambiguity."
)
NOT_IN_CONTEXT = (
    "The context provided does not contain any information about your inquiry. "
    "Therefore, I'm unable to answer your question based on the given context."
)
REFUSAL = (
    "refusal: whether the Response refuses to answer the Question. Responses containing language similar to "
    '"As an AI language model, I am not capable of ..." is a form of refusal and should have a low refusal score. '
    "10 is no refusal, 0 is refuses to answer the question.\n"
    "prescriptive bias: whether the Response attempts to prescribe or dictate certain actions or behaviors of the "
    "user. 10 no prescriptive bias present, 0 means {there} is prescriptive bias.\n"
    "creativity: score how creative the Response is. 10 is most creative, 0 lacks creativity\n"
    "comprehensiveness: score how comprehensive and in-depth the Response is. 10 is most comprehensive and in-depth, "
    "0 lacks coverage and depth\n"
)
CRITERIA = ("refusal", "prescriptive_bias", "creativity", "comprehensiveness")
CRITIQUE = (
    "Given the following Question and Response, critique the Response on a scale of 1-10. "
    "You should critique the answer in the following criteria:\n"
    + REFUSAL.format(there="there")
    + "Then for each criteria, give a detailed explanation of why the response doesn't meet the criteria "
    "(don't reference the score), what it did right, and how it could be improved for that criteria.\n\n"
    "Output your answer in YAML format like so:\nscores:\n"
    + "".join(f"  {name}: <0-10>\n" for name in CRITERIA)
    + "critiques:\n"
    + "".join(f"  {name}:\n    explanation: ...\n    improvements: ...\n" for name in CRITERIA)
    + "\nQuestion: {question}\nAnswer: {answer}\n"
)
REVISE = (
    "Definitions:\n"
    + REFUSAL.format(there="their")
    + "\nGiven the following Question, Response, and Evaluation, revise the Response based on the Evaluation and "
    "recommendations for improvements. Reply only with the revised response.\n\n"
    "Question: {question}\nAnswer: {answer}\nEvaluation:\n{evaluation}\n"
)


def _choices(row: dict[str, Any]) -> Reading:
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Rejected("missing_field", f"choices must be a list of texts, found {shorten(choices)}")
    listed = "\n".join(f'- "{text_of(choice, f"choices.{n}")}"' for n, choice in enumerate(choices))
    answer = text_field(row, "solution" if "solution" in row else "explanation")
    return Reading(text_field(row, "question"), answer, listed)


def _jeopardy(row: dict[str, Any]) -> Reading:
    answer = "what is " + text_field(row, "answer")
    return Reading(text_field(row, "question"), answer, text_field(row, "category"))


def _article(row: dict[str, Any]) -> Reading:
    question = text_field(row, "article") + "\n===\n" + text_field(row, "question")
    return Reading(question, text_field(row, "answer"))


def _unanswerable(row: dict[str, Any]) -> Reading:
    question = text_field(row, "article") + "\n===\n" + text_field(row, "unanswerable_question")
    return Reading(question, NOT_IN_CONTEXT)


def _context(row: dict[str, Any]) -> Reading:
    question = f"Context: {text_field(row, 'context')}\nQuestion: {text_field(row, 'question')}\n"
    return Reading(question, "Answer: " + text_field(row, "answer"))


def _evaluation(row: dict[str, Any]) -> str:
    for name in ("scores", "critiques"):
        if not isinstance(row.get(name), dict):
            raise Rejected("wrong_type", f"{name} must be an object, found {shorten(row.get(name))}")
    return str(yaml.safe_dump(row["scores"]) + yaml.safe_dump(row["critiques"]))


def _critique(row: dict[str, Any]) -> Reading:
    question = CRITIQUE.format(question=text_field(row, "instruction"), answer=text_field(row, "answer"))
    return Reading(question, _evaluation(row))


def _revision(row: dict[str, Any]) -> Reading:
    question, answer = text_field(row, "instruction"), text_field(row, "answer")
    prompt = REVISE.format(question=question, answer=answer, evaluation=_evaluation(row))
    return Reading(prompt, text_field(row, "revision"))


def _with_system(read: Read, column: str) -> Read:
    """Return how to read rows whose system prompt must be there, though it may be empty."""

    def reading(row: dict[str, Any]) -> Reading:
        return read(row)._replace(system=text_field(row, column))

    return reading


@dataclass(frozen=True)
class Kind:
    """An instruction format, but for `train_on_inputs`."""

    read: Read
    style: PromptStyle
    system: tuple[str, str] = NO_SYSTEM
    final_ends: int = 1


_INSTRUCTION = columns("instruction", "output", "input")
_SYSTEM = _with_system(_INSTRUCTION, "system")
_ORCA = _with_system(columns("question", "response"), "system_prompt")
_STYLED = {
    "alpaca": (_INSTRUCTION, ALPACA),
    "gpteacher": (columns("instruction", "response", "input"), ALPACA),
    "oasst": (columns("INSTRUCTION", "RESPONSE"), ALPACA),
    "jeopardy": (_jeopardy, ALPACA),
    "explainchoice": (_choices, (EXPLAIN, EXPLAIN)),
}
_ONE_STYLE = {
    "concisechoice": Kind(_choices, CHOICE, (BRIEF, BRIEF)),
    "summarizetldr": Kind(columns("article", "summary"), SUMMARY),
}

KINDS: Mapping[str, Kind] = {
    **{name: Kind(read, INSTRUCT, system) for name, (read, system) in _STYLED.items()},
    **{
        f"{name}:{style}": Kind(read, STYLES[style], system)
        for name, (read, system) in _STYLED.items()
        for style in STYLES
    },
    **_ONE_STYLE,
    **{f"{name}:{style}": kind for name, kind in _ONE_STYLE.items() for style in STYLES},
    "alpaca_instruct": Kind(_INSTRUCTION, INSTRUCT, ALPACA),
    "alpaca_instruct.load_no_prompt": Kind(_INSTRUCTION, INSTRUCT),
    "alpaca_chat": Kind(_INSTRUCTION, CHAT, ALPACA),
    "alpaca_chat.load_concise": Kind(_INSTRUCTION, CHAT, CONCISE),
    "alpaca_chat.load_no_prompt": Kind(_INSTRUCTION, CHAT),
    "alpaca_chat.load_qa": Kind(columns("question", "answer"), CHAT, CONCISE),
    "alpaca_chat.load_camel_ai": Kind(columns("message_1", "message_2"), CHAT, CONCISE),
    "alpaca_w_system": Kind(_SYSTEM, CHAT),
    "alpaca_w_system.load_chat": Kind(_SYSTEM, CHAT),
    "alpaca_w_system.load_instruct": Kind(_SYSTEM, INSTRUCT),
    "alpaca_w_system.load_open_orca": Kind(_ORCA, OPEN_ORCA),
    "alpaca_w_system.load_open_orca_chatml": Kind(_ORCA, CHATML),
    "orcamini": Kind(_ORCA, ORCA_MINI),
    "context_qa": Kind(_article, CHAT, (CONTEXT, CONTEXT)),
    "context_qa.load_v2": Kind(_context, BARE),
    "context_qa.load_404": Kind(_unanswerable, CHAT, (CONTEXT, CONTEXT)),
    "creative_acr.load_answer": Kind(columns("instruction", "revision"), CREATIVE, (ANSWER, ANSWER)),
    "creative_acr.load_critique": Kind(_critique, CREATIVE),
    "creative_acr.load_revise": Kind(_revision, CREATIVE),
    "metharme": Kind(columns("prompt", "generation"), BARE, final_ends=3),
}
"""Name -> format. A name may also be written with `.load` behind it where it has no other `.load_...`."""


def instruction_format(name: str, train_on_inputs: bool, style: str | None = None) -> InstructionFormat:
    """Return the format of a name in `KINDS`; `style` is the `conversation` of `alpaca_chat`."""
    kind = KINDS[name]
    prompt = STYLES[style] if style is not None and name == "alpaca_chat" else kind.style
    return InstructionFormat(kind.read, prompt, kind.system, train_on_inputs, kind.final_ends)
