"""Renders prompts with the tokenizer of a folder, as inference does, and compares their ids with given ones.

Run as `python -m stages.publish.asked_worker`, JSON on standard input and output: transformers is imported in a process
of its own.

    request  {"tokenizer": folder, "trust_remote_code": bool, "variables": [{...}], "day": "2026-01-31" | null,
              "control_tokens_are_text": bool, "questions": [fields of stages.publish.asked.Question]}
    answer   [[how each prompt differs, "" where it does not], for each of the variables]
"""

from __future__ import annotations

import sys
from datetime import datetime, tzinfo
from typing import Any

import orjson

SHOWN = 24
"""Tokens from the first difference on that are shown."""


def answers(request: dict[str, Any]) -> list[list[str]]:
    """Return how each prompt, rendered with each of the variables, differs from the ids in front of the answer."""
    if not request["trust_remote_code"]:
        sys.modules["torch"] = None  # type: ignore[assignment]  # no tokenizer needs it: 4 times as fast
    from transformers import AutoTokenizer  # here, because the line above must come first

    tokenizer = AutoTokenizer.from_pretrained(
        request["tokenizer"], local_files_only=True, trust_remote_code=request["trust_remote_code"]
    )
    if request["day"] is not None:
        _set_day(datetime.fromisoformat(request["day"]))
    spelled = tuple(tokenizer.added_tokens_encoder) if request["control_tokens_are_text"] else ()
    return [
        [
            "" if _spells(question["messages"], spelled) else _difference(tokenizer, question, variables)
            for question in request["questions"]
        ]
        for variables in request["variables"]
    ]


def _set_day(day: datetime) -> None:
    """Let the templates of this process write the day of the training: a prompt of another day says another date."""
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Day:
            return cls(day.year, day.month, day.day)

    chat_template_utils.datetime = Day


def _spells(messages: list[dict[str, Any]], tokens: tuple[str, ...]) -> bool:
    """Return whether messages hold the text of a control token, which inference takes for the token itself."""
    text = orjson.dumps(messages).decode()
    return any(token in text for token in tokens)


def _difference(tokenizer: Any, question: dict[str, Any], variables: dict[str, Any]) -> str:
    try:
        asked: list[int] = tokenizer.apply_chat_template(
            question["messages"], question["tools"], add_generation_prompt=True, return_dict=False, **variables
        )
    except Exception as error:  # noqa: BLE001  a template may raise anything
        return f"the chat template does not render the prompt ({type(error).__name__}: {error})"
    seen = question["ids"] if question["exact"] else question["ids"][: len(asked)]
    if asked == seen:
        return ""
    at = next((n for n, pair in enumerate(zip(asked, seen, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(asked), len(seen)) if at is None else at
    says, trained = (_text(tokenizer, ids[at : at + SHOWN]) for ids in (asked, seen))
    return f"from token {at} on inference asks {says} where training has {trained}"


def _text(tokenizer: Any, ids: list[int]) -> str:
    return repr(tokenizer.decode(ids, skip_special_tokens=False)) if ids else "nothing more"


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(answers(orjson.loads(sys.stdin.buffer.read()))))
