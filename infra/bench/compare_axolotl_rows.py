"""Random rows and options for `compare_axolotl.py`, and which differences from axolotl are documented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from stages.formats import KNOWN
from stages.templates.choice import known_templates

Row = dict[str, Any]
Tokens = dict[str, list[int]]

WORDS = "alpha beta, gamma. Delta: e=mc² naïve 中文字 emoji🙂 👩‍👩‍👧 user assistant [[x]] ]] [[ {json: 1} 12345 http://x.y".split()
EDGES = ["", " ", "\n", "  ", "\n\n", "\t", ".", "é", "<", "[", "]", "z", "'"]
WHOLE = [
    "",
    " ",
    "\n",
    "ok",
    "[[dummy]]",
    "zz",
    "<think>\nwhy so\n</think>\n\nanswer",
    "<think>why</think> answer",
    "</think>x",
    "<reasoning>a</reasoning>b",
    "<|begin_of_thought|>t<|end_of_thought|>\n<|begin_of_solution|> s <|end_of_solution|>",
    "<|im_end|>",
    "a<|im_end|>b",
    "\n\nstarts with lines",
    "ends with lines\n\n",
    "{{ x }}",
    "<tool_response>r</tool_response>",
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds é",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "number", "description": "one"},
                    "b": {"type": "array", "items": {"type": "string"}},
                    "c": {"type": "string", "enum": ["x", "y"]},
                    "o": {"type": "object", "properties": {"z": {"type": "string"}}, "required": ["z"]},
                },
                "required": ["a"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "time", "parameters": {"type": "object", "properties": {}}},
    },
]
JINJA = [
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}",
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.reasoning_content %}<r>{{ message.reasoning_content }}</r>{% endif %}"
    "{{ message.content }}{{ eos_token }}{% endfor %}",
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}\n{% endif %}{% endfor %}",
]
TRAINED = [["assistant"], ["gpt"], ["user", "assistant"], ["system", "user"], ["tool", "assistant"], []]
ROLES = {
    "user": ["human", "user"],
    "assistant": ["gpt", "assistant", "bot"],
    "system": ["system"],
    "tool": ["tool"],
}


@dataclass(frozen=True)
class Case:
    """A data set: what the configuration says of it, and its rows."""

    dataset: dict[str, Any]
    rows: list[Row]


@dataclass(frozen=True)
class Seen:
    """What both sides make of a row: token rows, or the error it ends with; and why ours rejects it."""

    ours: list[Tokens]
    rejected: str
    theirs: list[Tokens] | str
    encode: Callable[[str], list[int]]


def draw_runs(seed: int, cases: int, rows: int) -> Iterator[tuple[dict[str, Any], list[Case]]]:
    """Yield the keys of a run, and its cases; over all of them every template and every type occurs."""
    rng = random.Random(seed)
    kinds = cycle([("chat_template", name) for name in ("tokenizer_default", "jinja", *known_templates())])
    types = cycle([(name, None) for name in KNOWN if name != "chat_template"] + [("user", None), (None, None)])
    left = cases
    while left > 0:
        count = min(left, 24)
        left -= count
        drawn = [next(kinds if rng.random() < 0.65 else types) for _ in range(count)]
        yield _run_keys(rng), [_case(rng, kind, template, rows) for kind, template in drawn]
    yield {"sequence_len": 40}, [_case(rng, "completion", None, rows)]


def _run_keys(rng: random.Random) -> dict[str, Any]:
    keys: dict[str, Any] = {"sequence_len": 4096}
    if rng.random() < 0.25:
        keys["train_on_inputs"] = True
    if rng.random() < 0.25:
        keys["eot_tokens"] = rng.choice([["<|im_end|>"], ["<|endoftext|>"], ["<|im_end|>", "<|endoftext|>"]])
    if rng.random() < 0.2:
        keys["chat_template_kwargs"] = {"enable_thinking": rng.choice([True, False]), "skip_think": False}
    return keys


def _case(rng: random.Random, kind: str | None, template: str | None, rows: int) -> Case:
    if template is not None:
        dataset = {"type": "chat_template", **_template(rng, template), **_chat_options(rng)}
        return Case(dataset, [_chat_row(rng, dataset) for _ in range(rows)])
    if kind == "user":
        return Case({"type": _user_defined(rng)}, [_user_row(rng) for _ in range(rows)])
    dataset = {"type": kind} if kind else {}
    if kind == "alpaca_chat" and rng.random() < 0.5:
        dataset["conversation"] = rng.choice(["instruct", "chat", "chatml", "phi"])
    if kind == "completion" and rng.random() < 0.5:
        dataset["field"] = "content"
    if kind == "messages":
        dataset |= rng.choice([{}, {"chat_template": "llama3"}, {"field_messages": "turns"}])
    if kind in KNOWN and kind != "messages" and rng.random() < 0.2 and f"{kind}.load" not in KNOWN and ":" not in kind:
        if not kind.split(".")[-1].startswith("load_") and kind in LOADABLE:
            dataset["type"] = f"{kind}.load"
    return Case(dataset, [_row(rng, kind, dataset) for _ in range(rows)])


LOADABLE = (
    "alpaca_chat",
    "alpaca_instruct",
    "alpaca_w_system",
    "completion",
    "context_qa",
    "input_output",
    "metharme",
    "orcamini",
    "pygmalion",
)


def _template(rng: random.Random, name: str) -> dict[str, Any]:
    if name == "jinja":
        return {"chat_template": "jinja", "chat_template_jinja": rng.choice(JINJA)}
    if name != "tokenizer_default" and rng.random() < 0.05:
        return {"chat_template": f"tokenizer_default_fallback_{name}"}
    return {"chat_template": name}


def _chat_options(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["train_on_eos"] = rng.choice(["all", "turn", "last", "none"])
    if rng.random() < 0.2:
        options["train_on_eot"] = rng.choice(["all", "turn", "last", "none"])
    if rng.random() < 0.3:
        options["roles_to_train"] = rng.choice(TRAINED)
    if rng.random() < 0.15:
        options["drop_system_message"] = True
    if rng.random() < 0.2:
        options["split_thinking"] = True
    if rng.random() < 0.25:
        options["message_field_training"] = rng.choice(["train", "weight"])
    if rng.random() < 0.25:
        options["message_field_training_detail"] = "detail"
    if rng.random() < 0.25:
        options["field_messages"] = "conversations"
        options["message_property_mappings"] = {"role": "from", "content": "value"}
    if rng.random() < 0.1:
        options["roles"] = ROLES
    return options


def text(rng: random.Random) -> str:
    """Return a text that templates and tokenizers may trip over."""
    if rng.random() < 0.25:
        return rng.choice(WHOLE)
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
    return rng.choice(EDGES) + words + rng.choice(EDGES) if rng.random() < 0.4 else words


def _chat_row(rng: random.Random, dataset: dict[str, Any]) -> Row:
    keys = dataset.get("message_property_mappings", {"role": "role", "content": "content"})
    names = {"user": ["user", "human"], "assistant": ["assistant", "gpt"], "system": ["system"], "tool": ["tool"]}
    messages = [_message(rng, role, dataset) for role in _roles(rng)]
    _call_tools(rng, messages)
    renamed = []
    for message in messages:
        role = rng.choice(names[message["role"]]) if rng.random() < 0.5 else message["role"]
        changed = {**message, "role": role}
        renamed.append({keys.get(name, name): value for name, value in changed.items()})
    field = dataset.get("field_messages", "messages")
    row: Row = {field: json.dumps(renamed) if rng.random() < 0.05 else renamed}
    if rng.random() < 0.2:
        row["tools"] = json.dumps(TOOLS) if rng.random() < 0.3 else TOOLS
    if rng.random() < 0.1:
        row["system"] = text(rng)
    return row


def _roles(rng: random.Random) -> list[str]:
    if rng.random() < 0.1:
        return rng.choices(["user", "assistant", "system", "tool"], k=rng.randint(1, 5))
    roles = ["user", "assistant"] * rng.randint(1, 4)
    roles = roles[:-1] if rng.random() < 0.1 else roles
    return ["system", *roles] if rng.random() < 0.3 else roles


def _message(rng: random.Random, role: str, dataset: dict[str, Any]) -> Row:
    message: Row = {"role": role, "content": text(rng)}
    if rng.random() < 0.08:
        message["content"] = [_part(rng) for _ in range(rng.randint(1, 3))]
    if role == "assistant" and rng.random() < 0.2:
        message["reasoning_content"] = text(rng)
    name = dataset.get("message_field_training")
    if name and rng.random() < 0.4:
        message[name] = rng.choice([True, False, 0, 1] if name == "weight" else [True, False])
    detail = dataset.get("message_field_training_detail")
    if detail and isinstance(message["content"], str) and len(message["content"]) > 3 and rng.random() < 0.4:
        start = rng.randrange(len(message["content"]) - 2)
        end = rng.randrange(start, len(message["content"]))
        message[detail] = [{"begin_offset": start, "end_offset": end, "train": rng.random() < 0.8}]
    if rng.random() < 0.05:
        message["name"] = "Ann"
    return message


def _part(rng: random.Random) -> Row:
    part: Row = {"type": "text", rng.choice(["text", "content", "value"]): text(rng)}
    if rng.random() < 0.4:
        part |= rng.choice([{"train": True}, {"train": False}, {"weight": 0}, {"weight": 1}])
    return part


def _call_tools(rng: random.Random, messages: list[Row]) -> None:
    """Put a call and its result in front of some answers."""
    for at in range(len(messages) - 1, 0, -1):
        if messages[at]["role"] == "assistant" and messages[at - 1]["role"] == "user" and rng.random() < 0.12:
            name = f"call{rng.randrange(10**5):05}"
            arguments = rng.choice([{}, {"a": 1, "b": ["x"]}, {"c": "é"}])
            call: Row = {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": name,
                        "type": "function",
                        "function": {
                            "name": "add",
                            "arguments": json.dumps(arguments) if rng.random() < 0.4 else arguments,
                        },
                    }
                ],
            }
            if rng.random() < 0.6:
                call["content"] = text(rng)
            messages[at:at] = [call, {"role": "tool", "content": text(rng), "tool_call_id": name}]


def _user_defined(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        "system_prompt": rng.choice(["", "Be brief."]),
        "system_format": rng.choice(["{system}", "<<{system}>>\n"]),
        "format": "Q: {instruction}\nC: {input}\nA:",
        "no_input_format": "Q: {instruction}\nA: ",
        "field_system": "sys",
        "field_instruction": "q",
        "field_input": "c",
        "field_output": "a",
    }
    kept = {key: value for key, value in options.items() if key.startswith("field_") or rng.random() < 0.7}
    return kept


def _user_row(rng: random.Random) -> Row:
    row = {"q": text(rng), "a": text(rng)}
    if rng.random() < 0.5:
        row["c"] = text(rng)
    return {**row, "sys": text(rng)} if rng.random() < 0.5 else row


def _row(rng: random.Random, kind: str | None, dataset: dict[str, Any]) -> Row:
    if kind is None:
        ids = [rng.randrange(1000) for _ in range(rng.randint(1, 20))]
        labels = [token if rng.random() < 0.5 else -100 for token in ids]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
    if kind == "completion":
        return {dataset.get("field", "text"): " ".join(text(rng) for _ in range(rng.randint(1, 30)))}
    if kind == "input_output":
        return {"segments": [{"label": rng.random() < 0.5, "text": text(rng)} for _ in range(rng.randint(1, 5))]}
    if kind == "messages":
        return {dataset.get("field_messages", "messages"): _weighted(rng)}
    if kind == "pygmalion":
        roles = ["system", *["human", "bot"] * rng.randint(1, 3)]
        return {"conversations": [{"role": role, "value": text(rng)} for role in roles]}
    if kind == "reflection:chat":
        return "reflection:chat: axolotl leaves the corrected answer out"
    if kind == "llama2_chat":
        roles = [*(["system"] if rng.random() < 0.5 else []), *["human", "gpt"] * rng.randint(1, 3)]
        return {"conversations": [{"from": role, "value": text(rng) or "x"} for role in roles]}
    return _instruction_row(rng)


def _weighted(rng: random.Random) -> list[Row]:
    role, content = rng.choice(["role", "from"]), rng.choice(["value", "text", "content"])
    weighted = rng.random() < 0.3
    messages = []
    for name in ["system", *["user", "assistant"] * rng.randint(1, 3)]:
        message: Row = {role: name, content: text(rng)}
        if rng.random() < 0.1:
            parts = [{"type": "text", "value": text(rng), "weight": rng.choice([0, 1])} for _ in range(2)]
            message[content] = parts
        messages.append({**message, "weight": rng.choice([0, 1])} if weighted else message)
    return messages


def _instruction_row(rng: random.Random) -> Row:
    """Return a row with the columns of all instruction formats."""
    names = [
        "instruction",
        "output",
        "response",
        "question",
        "answer",
        "category",
        "INSTRUCTION",
        "RESPONSE",
        "article",
        "summary",
        "solution",
        "reflection",
        "corrected",
        "context",
        "unanswerable_question",
        "message_1",
        "message_2",
        "system",
        "system_prompt",
        "prompt",
        "generation",
        "revision",
    ]
    row: Row = {name: text(rng) for name in names}
    row["choices"] = [text(rng) for _ in range(rng.randint(1, 4))]
    row["scores"] = {"refusal": rng.randint(0, 10), "creativity": rng.randint(0, 10)}
    row["critiques"] = {"refusal": {"explanation": text(rng), "improvements": text(rng)}}
    if rng.random() < 0.5:
        row["input"] = text(rng)
    return row


def documented(case: Case, number: int, seen: Seen) -> str | None:
    """Return the reason of `infra/docs/from-axolotl.md` for which a row differs, None if it is another."""
    kind, template = case.dataset.get("type"), str(case.dataset.get("chat_template", ""))
    written = json.dumps(case.rows[number], ensure_ascii=False).replace('\\"', '"')  # JSON in a string too
    if isinstance(seen.theirs, str):
        return "axolotl fails on the row" if seen.ours else "both refuse the row"
    if not seen.ours:
        return {"mask_not_proven": "a mask that cannot be proven", "no_text": "nothing to train"}.get(seen.rejected)
    if isinstance(kind, str) and kind in OF_TYPES:
        return OF_TYPES[kind]
    if [row["input_ids"] for row in seen.ours] != [row["input_ids"] for row in seen.theirs]:
        missed = ("exaone4", "tool_calls"), ("gemma4", "reasoning_content")
        lost = any(name in template and key in written for name, key in missed)
        return "axolotl's reading of the template misses a key of the messages" if lost else None
    return _other_labels(case, number, seen, template, written)


OF_TYPES = {
    "llama2_chat": "llama2_chat: no padding, no ids of one tokenizer",
    "messages": "messages: axolotl counts the tokens of a header by itself",
    "reflection:chat": "reflection:chat: axolotl leaves the corrected answer out",
}


def _other_labels(case: Case, number: int, seen: Seen, template: str, written: str) -> str | None:
    if '"tool_calls"' in written and ("command_a_" in template or "gemma4" in template):
        return "axolotl trains results of tools with their call"
    if '"name"' in written and template == "jamba":
        return "axolotl trains the name in a header"
    if 0 < _more_trained(seen) <= written.count('""') + written.count("[]"):
        return "axolotl trains a token of an empty turn"
    if any(_shifted(seen.encode, text, seen.ours[0]["input_ids"]) for text in _partly_trained(case, number)):
        return "axolotl counts the tokens of a partly trained content by itself"
    return None


def _more_trained(seen: Seen) -> int:
    """Return how many tokens theirs trains that ours does not, -1 if ours trains others."""
    ours = [label for row in seen.ours for label in row["labels"]]
    theirs = [label for row in seen.theirs if isinstance(row, dict) for label in row["labels"]]
    more = [one for one, two in zip(ours, theirs, strict=True) if one != two]
    return len(more) if all(one == -100 for one in more) else -1


def _partly_trained(case: Case, number: int) -> Iterator[str]:
    """Yield the contents of which only parts are trained."""
    messages = case.rows[number].get(case.dataset.get("field_messages", "messages"))
    content = case.dataset.get("message_property_mappings", {}).get("content", "content")
    for message in json.loads(messages) if isinstance(messages, str) else messages or []:
        said = message.get(content)
        if isinstance(said, list) and any("train" in part or "weight" in part for part in said):
            yield "".join(part.get("text") or part.get("content") or part.get("value") or "" for part in said)
        elif message.get(str(case.dataset.get("message_field_training_detail"))):
            yield said


def _shifted(encode: Callable[[str], list[int]], content: str, ids: list[int]) -> bool:
    """Return whether the tokens of a content by itself are nowhere in the row, or the template trims it."""
    own = encode(content)
    return content != content.strip() or not any(
        ids[at : at + len(own)] == own for at in range(len(ids) - len(own) + 1)
    )
