"""The checks before training: what each says of data that is right, and of data that is wrong in one way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.formats import is_chat
from stages.tokenize.checks import Counts, checks
from tests import fetched, tiny

CHATS = [
    {"messages": [
        {"role": "user", "content": f"what is {n}?"},
        {"role": "assistant", "content": f"it is {n}."},
        {"role": "user", "content": "and then?"},
        {"role": "assistant", "content": f"then it is {n + 1}."},
    ]}
    for n in range(30)
]  # fmt: skip
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def verdicts(
    tokenizer: Path, folder: Path, rows: Sequence[Any] = CHATS, dataset: dict[str, Any] | None = None, **keys: Any
) -> dict[str, tuple[str, str]]:
    run = fetched.make_run(tokenizer, dataset, **keys)
    template = keys.get("chat_template_jinja", tiny.CHATML) if is_chat(run.datasets[0]) else None
    eot = 0 if "eot_tokens" in keys else 2
    outcome, _ = fetched.tokenize_here(folder / "shard", tokenizer, run, rows, template=template, eot=eot)
    return {check.check: (check.verdict, check.detail) for check in checks(run, 0, Counts.of([outcome]))}


def test_good_conversations_pass(tokenizer: Path, tmp_path: Path) -> None:
    found = verdicts(tokenizer, tmp_path)
    assert {verdict for verdict, _ in found.values()} == {"pass"}
    assert found["ends"][1] == "60 of 60 trained spans end with a trained end token"
    assert found["prompt"][1].startswith("60 of 60 sampled answers follow the prompt")  # of all 30 rows
    assert found["content"][1].startswith("60 sampled turns")


CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a template that ends turns with a token that is none of theirs": (
        {"chat_template_jinja": tiny.CHATML.replace("<|im_end|>", "<|endoftext|>")},
        "ends", "warning", "0 of 60 .* writes <\\|endoftext\\|>; if that ends it, set eot_tokens: \\['<\\|endoftext",
    ),
    "the same with the key that it asks for": (
        {"chat_template_jinja": tiny.CHATML.replace("<|im_end|>", "<|endoftext|>"), "eot_tokens": ["<|endoftext|>"]},
        "ends", "pass", "60 of 60",
    ),
    "a template that ends turns with text": (
        {"chat_template_jinja": tiny.CHATML.replace("<|im_end|>", "[/end]")},
        "ends", "warning", "writes '\\[/end\\]\\\\n.*', which this tokenizer has no token for",
    ),
    "a template that asks with nothing": (
        {"chat_template_jinja": tiny.CHATML.split("{% if add_gen")[0]},
        "prompt", "warning", "0 of 60 .* knows no add_generation_prompt: training puts '<.im_start.>assistant",
    ),
    "a template that thinks before the answer and does not ask so": (
        {"chat_template_jinja": THINKING},
        "prompt", "warning", "30 of 60 .* ends too early: training has '<think>\\\\n\\\\n</think>\\\\n\\\\n' between",
    ),
    "a template that rewrites what it is given": (
        {"chat_template_jinja": tiny.CHATML.replace("message['content']", "message['content'] | upper")},
        "content", "warning", "60 of the sample: the template writes a content otherwise .*: 'IT IS 0.' for 'it is 0.'",
    ),
    "nothing to train": ({"dataset": {"roles_to_train": []}}, "untrained", "warning", "30 of 30 rows"),
    "everything trained": ({"dataset": {"roles_to_train": ["user", "assistant"]}}, "share", "pass", "of 1,"),
    "no end token asked for": (
        {"dataset": {"train_on_eos": "none"}}, "ends", "note", "0 of 60 .*: train_on_eos: none asks for it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(tokenizer: Path, tmp_path: Path, case: str) -> None:
    keys, check, verdict, detail = CASES[case]
    found = verdicts(tokenizer, tmp_path, **keys)
    assert found[check][0] == verdict, found
    assert re.search(detail, found[check][1]), found[check]


def test_formats_without_a_template_are_checked_by_their_masks(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(10)]
    found = verdicts(tokenizer, tmp_path, rows, {"type": "alpaca"})
    assert found.keys() == {"ends", "share", "untrained"}
    assert found["ends"] == ("pass", "10 of 10 trained spans end with a trained end token")
    segments = [{"segments": [{"label": False, "text": "a"}, {"label": True, "text": "b"}]}]
    assert verdicts(tokenizer, tmp_path, segments, {"type": "input_output"})["ends"][0] == "note"
