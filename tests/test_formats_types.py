"""The named instruction formats and the others with a text of their own, against texts written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import tiny

from stages.formats import KNOWN, Piece, Rejected, make_format
from stages.formats.rows import read_row

BELOW = "Below is an instruction that describes a task"
FURTHER = f"{BELOW}, paired with an input that provides further context. "
COMPLETES = "Write a response that appropriately completes the request."
USER = "Below is an instruction from a USER that describes a task"
CONCISE = (
    f"SYSTEM: {USER}. The ASSISTANT writes a response that appropriately and concisely completes the request.\n\n\n"
)
CONTEXT = "SYSTEM: Use the following contextual information to concisely answer the question.\n\n"
OPTIONS = '- "x"\n- "y"'
EXPLAIN = "Choose the answer that best answers the question. Explain your reasoning.\n"
CREATIVE = (
    "Answer the following question in a comprehensive, in-depth, and creative way. "
    "Additionally your response should be relevant, accurate, and free of any ambiguity.\nUSER: I\nASSISTANT:"
)
REFUSAL = (
    "The context provided does not contain any information about your inquiry. "
    "Therefore, I'm unable to answer your question based on the given context."
)
ROW: dict[str, Any] = {
    "instruction": "I", "output": "O", "question": "Q", "answer": "A", "response": "R", "category": "C",
    "INSTRUCTION": "I", "RESPONSE": "R", "article": "T", "summary": "S", "choices": ["x", "y"], "solution": "N",
    "system": "Y", "system_prompt": "P", "context": "X", "unanswerable_question": "U", "message_1": "M",
    "message_2": "W", "prompt": "p", "generation": "g", "revision": "V", "scores": {"b": 1, "a": 2},
    "critiques": {"c": "d"}, "reflection": "F", "corrected": "E",
}  # fmt: skip
PROMPTS = {
    "alpaca_instruct": (f"{BELOW}. {COMPLETES}\n\n### Instruction:\nI\n\n### Response:\n", "O"),
    "alpaca_instruct.load_no_prompt": ("### Instruction:\nI\n\n### Response:\n", "O"),
    "alpaca_chat": (f"SYSTEM: {BELOW}. {COMPLETES}\nUSER: I\nASSISTANT:", "O"),
    "alpaca_chat.load_concise": (f"{CONCISE}USER: I\nASSISTANT:", "O"),
    "alpaca_chat.load_no_prompt": ("USER: I\nASSISTANT:", "O"),
    "alpaca_chat.load_qa": (f"{CONCISE}USER: Q\nASSISTANT:", "A"),
    "alpaca_chat.load_camel_ai": (f"{CONCISE}USER: M\nASSISTANT:", "W"),
    "alpaca_w_system": ("SYSTEM: Y\nUSER: I\nASSISTANT:", "O"),
    "alpaca_w_system.load_chat": ("SYSTEM: Y\nUSER: I\nASSISTANT:", "O"),
    "alpaca_w_system.load_instruct": ("Y\n\n### Instruction:\nI\n\n### Response:\n", "O"),
    "alpaca_w_system.load_open_orca": ("### System:\nP\n### Human:\nQ\n### Assistant:\n", "R"),
    "alpaca_w_system.load_open_orca_chatml": (
        "<|im_start|>system\nP<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "R",
    ),
    "orcamini": ("### System:\nP\n\n### User:\nQ\n\n### Response:\n", "R"),
    "gpteacher": (f"{BELOW}. {COMPLETES}\n\n### Instruction:\nI\n\n### Response:\n", "R"),
    "oasst:chat": (f"SYSTEM: {BELOW}. {COMPLETES}\nUSER: I\nASSISTANT:", "R"),
    "jeopardy": (
        f"{FURTHER}{COMPLETES}\n\n### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\n",
        "what is A",
    ),
    "explainchoice": (f"{EXPLAIN}\n\n### Instruction:\nQ\n\n### Input:\n{OPTIONS}\n\n### Response:\n", "N"),
    "explainchoice:chat": (f"SYSTEM: {EXPLAIN}\nUSER: Q\n{OPTIONS}\nASSISTANT:", "N"),
    "concisechoice": (
        "Choose the answer that best answers the question. Be concise in your response.\n\n"
        f"USER: Q\n{OPTIONS}\nASSISTANT:",
        "N",
    ),
    "summarizetldr": ("USER: Summarize the following article as a TL;DR.\nT\nASSISTANT:", "S"),
    "context_qa": (f"{CONTEXT}USER: T\n===\nQ\nASSISTANT:", "A"),
    "context_qa.load_v2": ("Context: X\nQuestion: Q\n", "Answer: A"),
    "context_qa.load_404": (f"{CONTEXT}USER: T\n===\nU\nASSISTANT:", REFUSAL),
    "creative_acr.load_answer": (CREATIVE, "V"),
    "metharme": ("p", "g"),
}


def pieces(kind: str, row: dict[str, Any], run: dict[str, Any] | None = None, **dataset: Any) -> list[Piece]:
    configured = fetched.make_run(Path("model"), {"type": kind, **dataset}, **(run or {}))
    return make_format(configured, 0, None).pieces(read_row(orjson.dumps(row)))


def shown(piece: Piece) -> str:
    """Return the text with its trained places in brackets."""
    text = piece.text
    for turn in reversed(piece.turns):
        text = f"{text[: turn.span.start]}⟦{text[turn.span.start : turn.span.end]}⟧{text[turn.span.end :]}"
    return text


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt_and_response(kind: str) -> None:
    prompt, response = pieces(kind, ROW)
    assert (prompt.text, response.text) == PROMPTS[kind]
    assert (prompt.trained, response.trained, response.ends) == (False, True, 3 if kind == "metharme" else 1)
    assert all(piece.trained for piece in pieces(kind, ROW, {"train_on_inputs": True}))


def test_every_instruction_format_reads_the_row() -> None:
    for kind in KNOWN:
        if kind not in ("chat_template", "completion", "input_output", "messages", "pygmalion", "llama2_chat"):
            assert pieces(kind, ROW), kind
            if kind != "alpaca_chat":
                assert pieces(f"{kind}.load", ROW) if "." not in kind and ":" not in kind else True


def test_an_evaluation_is_written_as_yaml() -> None:
    prompt, response = pieces("creative_acr.load_critique", ROW)
    assert prompt.text.startswith("USER: Given the following Question and Response, critique the Response on a scale")
    assert prompt.text.endswith("    improvements: ...\n\nQuestion: I\nAnswer: A\n\nASSISTANT:")
    assert response.text == "a: 2\nb: 1\nc: d\n"
    prompt, response = pieces("creative_acr.load_revise", ROW)
    assert prompt.text.endswith("Question: I\nAnswer: A\nEvaluation:\na: 2\nb: 1\nc: d\n\n\nASSISTANT:")
    assert response.text == "V"


def test_the_style_of_alpaca_chat_is_its_conversation() -> None:
    prompt, _ = pieces("alpaca_chat.load", ROW, conversation="chatml")
    assert prompt.text.endswith("<|im_start|>user\nI<|im_end|>\n<|im_start|>assistant\n")


def test_a_reflection_is_one_text_whose_answer_is_trained() -> None:
    (piece,) = pieces("reflection", ROW)
    assert shown(piece) == (
        "### Instruction:\nI\n\n### Response:\n⟦### Thought:\nO\n\n### Agent Reflection:\nF\n\n### Final Response:\nE⟧"
    )
    (piece,) = pieces("reflection:chat", {**ROW, "input": "C"})
    assert shown(piece).endswith("USER: I\nC\nASSISTANT:⟦\nTHOUGHT: O\nASSISTANT REFLECTION: F\nASSISTANT:E⟧")


def test_pygmalion_trains_the_bot() -> None:
    said = [("system", "A cat.\n<START>"), ("human", " Hi "), ("bot", " Meow\n")]
    found = pieces("pygmalion", {"conversations": [{"role": role, "value": text} for role, text in said]})
    assert [shown(piece) for piece in found] == ["<|system|>Persona: A cat.", "<|user|> Hi", "<|model|>⟦ Meow⟧"]
    assert [(piece.continues, piece.ends) for piece in found] == [(False, 0), (True, 0), (True, 1)]


def test_llama2_encodes_each_question_with_its_answer() -> None:
    said = [("system", "S"), ("human", "a "), ("gpt", "b"), ("human", "c"), ("gpt", "d"), ("human", "e")]
    found = pieces("llama2_chat", {"conversations": [{"from": role, "value": text} for role, text in said]})
    first = "[INST] <<SYS>>\nS\n<</SYS>>\n\na[/INST]⟦ b ⟧"
    assert [shown(piece) for piece in found] == [first, "[INST] c [/INST]⟦ d ⟧"]
    assert all(piece.special_tokens and piece.ends and not piece.continues for piece in found)


def test_weighted_messages() -> None:
    row = {"messages": [{"from": "human", "value": "a", "weight": 1}, {"from": "gpt", "value": "b", "weight": 0}]}
    found = [shown(piece) for piece in pieces("messages", row)]
    assert found == [
        "<|im_start|>user\n⟦a⟧⟦<|im_end|>⟧\n",
        "<|im_start|>assistant\nb<|im_end|>\n",
    ]
    parts = [{"type": "text", "value": "x", "weight": 0}, {"type": "tool_call", "value": {"name": "f"}}]
    row = {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": parts}]}
    found = [shown(piece) for piece in pieces("messages", row, chat_template="llama3", field_messages="turns")]
    assert found == [
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\nx"
        '⟦<tool_call>\n⟧⟦{"name": "f"}\n⟧⟦</tool_call>\n⟧⟦<|eot_id|>⟧',
    ]


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("explainchoice", {**ROW, "choices": "x"}, "missing_field"),
        ("explainchoice", {**ROW, "choices": [1]}, "wrong_type"),
        ("creative_acr.load_revise", {**ROW, "scores": [1]}, "wrong_type"),
        ("alpaca_w_system.load", {"instruction": "I", "output": "O"}, "missing_field"),
        ("reflection", {**ROW, "reflection": ""}, "no_text"),
        ("pygmalion", {"conversations": [{"role": "cat", "value": "x"}]}, "unknown_role"),
        ("pygmalion", {"conversations": []}, "no_messages"),
        ("llama2_chat", {"conversations": [{"from": "human", "value": "x"}]}, "no_messages"),
        ("llama2_chat", {"conversations": [{"from": "human", "value": "x"}] * 2}, "unknown_role"),
        ("llama2_chat", {"messages": []}, "missing_field"),
        ("messages", {"messages": [{"role": "user"}]}, "missing_field"),
        ("messages", {"messages": [{"role": "cat", "content": "x"}]}, "unknown_role"),
        ("messages", {"messages": [{"role": "user", "content": "x", "weight": 2}]}, "wrong_type"),
    ],
)
def test_broken_rows(kind: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as error:
        pieces(kind, row)
    assert error.value.reason == reason
    assert error.value.detail


def test_tokens_as_they_are(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [3, 5, 6], "labels": [-100, 5, -100], "attention_mask": [0, 1, 1]},
        {"input_ids": [5, 6], "labels": [-100, 7]},
        {"input_ids": [5, 6], "labels": [-100]},
        {"input_ids": [5, 10**6], "labels": [-100, -100]},
        {"input_ids": [5, "6"], "labels": [-100, -100]},
        {"text": "x"},
        {"input_ids": [], "labels": []},
    ]
    run = fetched.make_run(tiny.build_tokenizer(tmp_path / "base"), {"type": None})
    artifact = fetched.tokenize(tmp_path, run, rows)
    assert [row[1:] for row in fetched.tokenized_rows(artifact)] == [
        (0, [5, 6, 7], [-100, 6, 7]),
        (1, [5, 6], [5, -100]),
    ]
    reasons = ["wrong_label", "wrong_length", "unknown_token", "wrong_type", "missing_field", "no_text"]
    assert [row["reason"] for row in fetched.rejected(artifact)] == reasons


def test_metharme_ends_three_times(tmp_path: Path) -> None:
    run = fetched.make_run(tiny.build_tokenizer(tmp_path / "base"), {"type": "metharme"})
    rows = [{"prompt": "a", "generation": "b"}, {"prompt": "a", "generation": "b<|im_end|>"}]
    for _, _, ids, labels in fetched.tokenized_rows(fetched.tokenize(tmp_path, run, rows)):
        assert ids[-4] != 2
        assert ids[-3:] == labels[-3:] == [2, 2, 2]
        assert labels[0] == -100
