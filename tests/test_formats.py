"""Which characters of a row are trained, which rows are rejected, and which configurations are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import tiny

from configs.errors import ConfigError
from stages.formats import Rejected, check_format, make_format
from stages.formats.pieces import Piece
from stages.formats.rows import read_row
from stages.templates.choice import ChatTemplate, choose_template, known_templates

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TRIMMING = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
USER = {"role": "user", "content": "Hi"}


def pieces(row: Any, template: str = tiny.CHATML, run: dict[str, Any] | None = None, **dataset: Any) -> list[Piece]:
    configured = fetched.make_run(Path("model"), dataset, **(run or {}))
    chat = configured.datasets[0].type == "chat_template"
    compiled = ChatTemplate(template, {**VARIABLES, **configured.chat_template_kwargs}) if chat else None
    raw = row if isinstance(row, bytes) else orjson.dumps(row)
    return make_format(configured, 0, compiled).pieces(read_row(raw))


def trained(row: Any, template: str = tiny.CHATML, **dataset: Any) -> list[str]:
    """Return the trained texts of a conversation, one for each trained turn or part."""
    (piece,) = pieces(row, template, **dataset)
    spans = []
    for turn in piece.turns:
        if turn.trained:
            spans += [turn.span] if turn.parts is None else [part.span for part in turn.parts]
    return [piece.text[span.start : span.end] for span in spans]


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    """Return a row in which user and assistant take turns."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)], **more}


def test_the_turns_of_the_assistant_are_trained() -> None:
    assert trained(chat("Hi", "Hello.", "And?", "Bye.")) == ["Hello.", "Bye."]


@pytest.mark.parametrize(
    "content",
    [
        "[[a]]",
        "]]",
        "[[",
        "<|im_end|>",
        "assistant",
        "\ue000",
        "x\ue000y\ue001z",
        " ",
        "\n",
        "  both ends \n",
        "👩‍👩‍👧‍👦",
    ],
)
def test_any_content_is_found_as_it_is(content: str) -> None:
    assert trained(chat(content, content, "Hi", content)) == [content, content]


def test_an_empty_turn_trains_nothing() -> None:
    assert trained(chat("Hi", "", "And?", "Bye.")) == ["Bye."]


@pytest.mark.parametrize("content", ["  x ", "x", "\nx", "[[ x ]]\t"])
def test_a_template_that_trims_shows_where_the_trimmed_content_is(content: str) -> None:
    assert trained(chat(" Hi", content, "a ", content), TRIMMING) == [content.strip()] * 2


def test_a_template_that_trims_only_some_contents() -> None:
    template = "{% for m in messages %}{{ m.role }}:{{ m.content | trim if loop.first else m.content }}|{% endfor %}"
    assert trained(chat(" a ", " b ", " c"), template, run={"train_on_inputs": True}) == ["a", " b ", " c"]


def test_a_template_that_does_not_show_a_turn_trains_nothing_of_it() -> None:
    template = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}|{% endfor %}"
    assert trained(chat("Hi", "hidden", "And?"), template) == []


def test_a_template_that_writes_a_turn_twice_cannot_be_proven() -> None:
    template = "{% for m in messages %}{{ m.content }}{{ m.content }}|{% endfor %}"
    with pytest.raises(Rejected) as error:
        trained(chat("Hi", "Hello"), template)
    assert error.value.reason == "mask_not_proven"


def test_qwen3_trains_the_reasoning_of_the_last_answer_only() -> None:
    template = choose_template(fetched.make_run(Path("model"), chat_template="qwen3")).text or ""
    row = chat("a", "A", "b", "B")
    row["messages"][1]["reasoning_content"] = "why A"
    row["messages"][3]["reasoning_content"] = "why B"
    assert trained(row, template) == ["A", "why B\n</think>\n\nB"]
    inline = chat("a", "<think>\nwhy A\n</think>\n\nA", "b", "<think>\nwhy B\n</think>\n\nB")
    assert trained(inline, template) == ["A", "why B\n</think>\n\nB"]
    (piece,) = pieces(inline, template)
    assert "why A" not in piece.text


def test_tool_calls_are_trained_and_tools_are_shown() -> None:
    template = choose_template(fetched.make_run(Path("model"), chat_template="qwen_25")).text or ""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": null}'}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": '{"type": "object"}'}}]
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": null}}\n</tool_call>'
    for name, value in (("tools", tools), ("functions", orjson.dumps(tools).decode())):
        row = {"messages": messages, name: value}
        assert trained(row, template, field_tools=name) == [f"{text}\n{text}", "It is 3."]
        (piece,) = pieces(row, template, field_tools=name)
        assert '"parameters": {"type": "object"}' in piece.text


def test_a_template_that_pairs_calls_with_results_is_followed_too() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('a result without a call') }}{% endif %}"
        "({{ m.role }}){{ m.tool_calls | tojson if m.tool_calls else m.content }}|{% endfor %}"
    )
    call = {"role": "assistant", "tool_calls": [{"name": "now"}]}
    row = {"messages": [USER, call, {"role": "tool", "content": "noon"}, {"role": "assistant", "content": "Noon."}]}
    assert trained(row, template) == ['[{"name": "now"}]', "Noon."]


@pytest.mark.parametrize(
    ("message", "options", "expected"),
    [
        ({"content": "abc", "train": False}, {"message_field_training": "train"}, []),
        ({"role": "user", "content": "abc", "train": True}, {"message_field_training": "train"}, ["abc"]),
        ({"content": "abc"}, {"roles_to_train": []}, []),
        ({"role": "user", "content": "abc"}, {"run": {"train_on_inputs": True}}, ["Hi", "abc"]),
        ({"role": "gpt", "content": "abc"}, {}, ["abc"]),
        ({"role": "bot", "content": "abc"}, {"roles": {"assistant": ["bot"]}}, ["abc"]),
        ({"role": "bot", "content": "abc"}, {"roles_to_train": ["bot"]}, ["abc"]),
        ({"content": [{"text": "ab"}, {"type": "text", "value": "c"}, "d"]}, {}, ["abcd"]),
        ({"content": [{"text": "ab", "train": False}, {"text": "cd"}, {"text": "e", "weight": 0}]}, {}, ["cd"]),
        (
            {"content": "abcdef", "detail": [{"begin_offset": 1, "end_offset": 3, "train": True}]},
            {"message_field_training_detail": "detail"},
            ["bcd"],
        ),
        ({"content": "abc", "detail": []}, {"message_field_training_detail": "detail"}, []),
        ({"text": "abc"}, {"message_property_mappings": {"content": "text"}}, ["abc"]),
        ({"content": "abc", "name": "Ann", "id": 7, "extra": {"x": [None]}}, {}, ["abc"]),
    ],
)
def test_what_is_trained_of_a_message(message: dict[str, Any], options: dict[str, Any], expected: list[str]) -> None:
    row = {"messages": [{**USER, "text": "Hi"}, {"role": "assistant", **message}]}
    assert trained(row, **options) == expected


def test_parts_of_a_trimmed_content_keep_their_place() -> None:
    row = chat("Hi", [{"text": "  ab", "train": False}, {"text": " cd "}])
    assert trained(row, TRIMMING) == [" cd"]


def test_reasoning_is_split_out_of_the_content_or_taken_from_a_column() -> None:
    template = "{% for m in messages %}{{ m.role }}<{{ m.reasoning_content or '-' }}>{{ m.content }}|{% endfor %}"
    split = chat("Hi", "<think> why </think>\n\nabc")
    assert trained(split, template, split_thinking=True) == ["why>abc"]
    solution = "<|begin_of_thought|>why<|end_of_thought|> <|begin_of_solution|> abc <|end_of_solution|>"
    assert trained(chat("Hi", solution), template, split_thinking=True) == ["why>abc"]
    column = chat("Hi", "abc")
    column["messages"][1]["thought"] = "why"
    assert trained(column, template, field_thinking="thought") == ["why>abc"]
    parts = chat("Hi", "abc")
    parts["messages"][1]["reasoning_content"] = [{"text": "no ", "train": False}, {"text": "yes", "train": True}]
    assert trained(parts, template) == ["yes"]


@pytest.mark.parametrize(("options", "opening"), [({}, "sys"), ({"drop_system_message": True}, None)])
def test_a_system_column_stands_in_front(options: dict[str, Any], opening: str | None) -> None:
    (piece,) = pieces(chat("Hi", "abc", prompt="sys"), field_system="prompt", **options)
    start = f"<|im_start|>system\n{opening}<|im_end|>\n" if opening else ""
    assert piece.text == f"{start}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nabc<|im_end|>\n"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"messages": [', "bad_json"),
        (b"\xff\xfe{}", "bad_json"),
        (b'{"messages": [{"role": "user", "content": "\xc3"}]}', "bad_json"),
        (b"[1]", "bad_json"),
        (b"null", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"n": 12345678901234567890, "messages": [{"role": "user", "content": "\\ud800"}]}', "bad_text"),
        ({}, "missing_field"),
        ({"messages": None}, "missing_field"),
        ({"messages": []}, "no_messages"),
        ({"messages": "not json"}, "bad_json"),
        ({"messages": {"role": "user"}}, "wrong_type"),
        ({"messages": [USER, None]}, "wrong_type"),
        ({"messages": [USER, "Hello"]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant"}]}, "missing_field"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "missing_field"),
        ({"messages": [USER, {"content": "Hello"}]}, "missing_field"),
        ({"messages": [USER, {"role": 5, "content": "Hello"}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": 5}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": {"a": {"b": [[]]}}}]}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image", "url": "x"}]}]}, "unsupported_part"),
        ({"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": "x"}]}, "wrong_type"),
        ({"messages": [USER], "tools": "x"}, "bad_json"),
        ({"messages": [USER], "tools": [1]}, "wrong_type"),
        ({"messages": [USER], "system": 3}, "wrong_type"),
    ],
)
def test_a_broken_conversation_is_rejected_with_its_reason(row: Any, reason: str) -> None:
    with pytest.raises(Rejected) as error:
        pieces(row)
    assert error.value.reason == reason
    assert error.value.detail


def test_a_conversation_that_the_template_refuses_is_rejected() -> None:
    template = choose_template(fetched.make_run(Path("model"), chat_template="gemma")).text or ""
    with pytest.raises(Rejected, match="must alternate") as error:
        pieces({"messages": [USER, USER]}, template)
    assert error.value.reason == "template_error"


def test_large_numbers_in_tool_arguments_keep_every_digit() -> None:
    call = b'{"name": "f", "arguments": {"n": 123456789012345678901234567890}}'
    row = b'{"messages": [{"role": "assistant", "tool_calls": [' + call + b"]}]}"
    (piece,) = pieces(row, "{% for m in messages %}{{ (m.tool_calls or m.content) | tojson }}{% endfor %}")
    assert "123456789012345678901234567890" in piece.text


@pytest.mark.parametrize(
    ("kind", "row", "prompt"),
    [
        ("alpaca", {"input": "2"}, "context. Write a response that appropriately completes the request.\n\n### Instru"),
        ("alpaca", {"input": "2"}, "### Instruction:\nAdd\n\n### Input:\n2\n\n### Response:\n"),
        ("alpaca", {"input": None}, "task. Write a response that appropriately completes the request.\n\n### Instruct"),
        ("alpaca:chat", {"input": ""}, "USER: Add\nASSISTANT:"),
        ("alpaca:chatml", {"input": "2"}, "<|im_start|>user\nAdd\n2<|im_end|>\n<|im_start|>assistant\n"),
        ("alpaca:phi", {}, "<|user|>\nAdd<|end|>\n<|assistant|>\n"),
        ({"format": "{{{instruction}}} {input}>"}, {"input": "2"}, "{Add} 2>"),
        ({"no_input_format": "{instruction}>", "system_prompt": "S", "system_format": "[{system}]"}, {}, "[S]Add>"),
        ({"no_input_format": ">", "system_prompt": "S", "system_format": "[{system}]"}, {"system": "T"}, "[T]>"),
    ],
)
def test_instruction_formats(kind: Any, row: dict[str, Any], prompt: str) -> None:
    question, answer = pieces({"instruction": "Add", "output": "4", **row}, type=kind)
    assert prompt in question.text
    assert question.text.endswith(prompt[-5:]) or "Instru" in prompt[-10:]
    assert (question.trained, answer.text, answer.trained, answer.ends) == (False, "4", True, True)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("alpaca", {"instruction": "a"}, "missing_field"),
        ("alpaca", {"instruction": None, "output": "b"}, "missing_field"),
        ("alpaca", {"instruction": "a", "output": 4}, "wrong_type"),
        ("alpaca", {"instruction": "a", "input": ["x"], "output": "b"}, "wrong_type"),
        ("input_output", {}, "missing_field"),
        ("input_output", {"segments": "x"}, "wrong_type"),
        ("input_output", {"segments": [{"text": "x"}]}, "missing_field"),
        ("input_output", {"segments": [{"label": "yes", "text": "x"}]}, "wrong_type"),
        ("completion", {"text": ""}, "no_text"),
        ("completion", {"content": "x"}, "missing_field"),
    ],
)
def test_broken_rows_of_the_other_formats(kind: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as error:
        pieces(row, type=kind)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sharegpt", "field_messages: conversations"),
        ("sharegpt.load_role", "message_property_mappings"),
        ("chatml.intel", "preferences"),
        ("bradley_terry.chat_template", "type: chat_template"),
        ("alpacca", "Did you mean alpaca?"),
        ("nonsense", "Known: chat_template, alpaca"),
        ({"format": "{question}"}, "{input} and {instruction}"),
        ({"system_format": "{"}, "system_format"),
    ],
)
def test_unknown_formats_are_refused_with_the_remedy(kind: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_format(fetched.make_run(Path("model"), {"type": kind}), 0)
    assert message in str(error.value)
    assert "datasets.0.type" in str(error.value)


def test_templates_by_name_by_text_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages | length }} of a file")
    by_file = fetched.make_run(Path("model"), chat_template="jinja", chat_template_jinja=str(file))
    assert choose_template(by_file).text == "{{ messages | length }} of a file"
    own = fetched.make_run(Path("model"), {"chat_template_jinja": "{{ 1 }}"}, chat_template="llama3")
    assert choose_template(own, own.datasets[0]).text == "{{ 1 }}"
    fallback = choose_template(fetched.make_run(Path("model"), chat_template="tokenizer_default_fallback_chatml"))
    assert fallback.resolve("own") == "own"
    assert "<|im_start|>" in (fallback.resolve(None) or "")
    for name in known_templates():
        assert choose_template(fetched.make_run(Path("model"), chat_template=name)).text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chat_template": "chatlm"}, "is not a known chat template"),
        ({"chat_template": "tokenizer_default_fallback_x"}, "is not a known chat template"),
        ({"chat_template": "jinja"}, "needs the template itself"),
        ({"chat_template_jinja": "{% for %}"}, "is not valid Jinja"),
    ],
)
def test_wrong_templates_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_template(fetched.make_run(Path("model"), **keys))


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(Rejected) as error:
        pieces(chat("Hi"), "{{ messages.__class__.__mro__ }}")
    assert error.value.reason == "template_error"
