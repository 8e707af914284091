"""A data set without a configuration: the type that fits it, what to write, and that a run takes it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from stages.inspection.advice import advise
from stages.inspection.sample import marked, read_sample, tried, yaml_of
from tests.project import Project


def chat(role: str = "role", content: str = "content", user: str = "user", answer: str = "assistant") -> list[Any]:
    return [{role: user, content: "what is it?"}, {role: answer, content: "it is this."}]


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "chats as templates have them": ([{"messages": chat()}], {"type": "chat_template"}),
    "ShareGPT": (
        [{"id": 1, "conversations": chat("from", "value", "human", "gpt")}],
        {
            "type": "chat_template",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
        },
    ),
    "chats in JSON text": (
        [{"dialog": orjson.dumps(chat()).decode()}], {"type": "chat_template", "field_messages": "dialog"}
    ),
    "roles of another kind": (
        [{"messages": chat(user="prompter", answer="bot")}],
        {
            "type": "chat_template",
            "roles": {
                "assistant": ["assistant", "bot"], "user": ["user", "prompter"], "system": ["system"], "tool": ["tool"],
            },
        },
    ),
    "reasoning, tools and a system prompt beside": (
        [{"system_prompt": "be kind", "functions": [{"name": "f"}],
          "messages": [chat()[0], {**chat()[1], "thinking": "hm"}]}],
        {"type": "chat_template", "field_thinking": "thinking", "field_tools": "functions",
         "field_system": "system_prompt"},
    ),
    "reasoning in tags": (
        [{"messages": [chat()[0], {"role": "assistant", "content": "<think>hm</think>yes"}]}],
        {"type": "chat_template", "split_thinking": True},
    ),
    "turns that say whether they are trained": (
        [{"messages": [chat()[0], {**chat()[1], "train": False}, *chat()]}],
        {"type": "chat_template", "message_field_training": "train"},
    ),
    "preferences": (
        [{"prompt": "x", "chosen": chat(), "rejected": chat()}],
        {"type": "chat_template", "field_messages": "chosen"},
    ),
    "alpaca": ([{"instruction": "do", "input": "", "output": "done"}], {"type": "alpaca"}),
    "questions and answers": (
        [{"question": "q?", "answer": "a."}],
        {"type": {"field_instruction": "question", "field_output": "answer",
                  "format": "{instruction}\n", "no_input_format": "{instruction}\n"}},
    ),
    "segments": ([{"segments": [{"label": True, "text": "a"}]}], {"type": "input_output"}),
    "tokens": ([{"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]}], {"type": None}),
    "text": ([{"text": "a story"}], {"type": "completion"}),
    "text under another name": ([{"url": "x", "body": "a long story"}], {"type": "completion", "field": "body"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_type_that_fits(case: str, tmp_path: Path) -> None:
    rows, options = CASES[case]
    best = advise(rows)[0]
    assert best.options == options
    assert best.reasons
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows * 3)))
    [first, *_] = tried(read_sample(str(path)))
    assert (first.advice.options, first.usable) == (options, 3), first


def test_rows_that_do_not_fit_are_told_and_what_fits_most_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "test" / "part.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"\n".join([b"no JSON", *map(orjson.dumps, [{"messages": chat()}] * 5), b'{"messages": []}']))
    sample = read_sample(str(tmp_path))
    [best] = tried(sample)
    assert yaml_of(sample, best.advice) == {"path": str(tmp_path), "split": "test", "type": "chat_template"}
    assert best.usable == 5
    assert dict(best.rejected) == {"bad_json": 1, "no_messages": 1}
    assert best.example.startswith("row 0: ")
    assert [number for number, _ in best.rows] == [1, 2, 3, 4, 5]
    stretches = list(marked(best.rows[0][1]))
    assert [text for text, trained in stretches if trained] == ["it is this."]
    assert "".join(text for text, _ in stretches).count("<|im_start|>") == 2


def test_the_command_says_the_yaml_and_a_run_takes_it(tmp_path: Path) -> None:
    project = Project.create(tmp_path, rows=8)
    rows = [{"conversations": chat("from", "value", "customer", "model")} for _ in range(8)]
    (tmp_path / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    said = project.sft("inspect", "chats.jsonl", "--rows", "1").out.decode()
    assert "type: chat_template fits 8 of the first 8 rows" in said
    assert "conversations holds lists of messages with from and value" in said
    assert "⟦it is this.⟧" in said
    lines = [line[2:].rstrip() for line in said.splitlines() if line.startswith("  ") and line.strip()]
    told = yaml.safe_load("\n".join(lines[lines.index("datasets:") :]))
    project.configure(datasets=told["datasets"])
    [row, *_] = map(orjson.loads, project.sft("inspect", "run.yaml", "--jsonl").out.splitlines())
    assert sum(label != -100 for label in row["labels"]) > 3
    assert b"Usage" not in project.sft("inspect", "nothing.jsonl", expect=2).out
    assert "only --rows is understood" in project.sft("inspect", "chats.jsonl", "--jsonl", expect=2).err
