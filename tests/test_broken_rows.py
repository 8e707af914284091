"""Three hundred broken rows of forty kinds among good ones: each is rejected with row and reason, none is trained."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.artifacts import FileDigests, Store
from stages.fetch import STAGE as FETCH
from stages.stage import Context, run_stage
from stages.tokenize import STAGE as TOKENIZE
from tests import fetched, tiny

GOOD: dict[str, dict[str, Any]] = {
    "chat_template": {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]},
    "alpaca": {"instruction": "say b", "input": "", "output": "b"},
    "completion": {"text": "a b c"},
    "input_output": {"segments": [{"label": False, "text": "a"}, {"label": True, "text": "b"}]},
    "own": {"q": "a?", "a": "b."},
}
TEXTS = {"chat_template": "messages", "alpaca": "output", "completion": "text", "input_output": "segments", "own": "a"}
TYPES: dict[str, Any] = {
    **{name: name for name in GOOD},
    "own": {"field_instruction": "q", "field_output": "a", "format": "{instruction}: "},
}
Breaker = Callable[[str], bytes]


def lines(value: Any) -> Breaker:
    """Return a breaker that writes one value in place of the row."""
    return lambda kind: value if isinstance(value, bytes) else orjson.dumps(value)


def main(value: Any) -> Breaker:
    """Return a breaker that puts a value in place of what the row says."""
    return lambda kind: orjson.dumps({**GOOD[kind], TEXTS[kind]: value})


def inside(value: bytes) -> Breaker:
    """Return a breaker that puts bytes into the last text of the row."""

    def broken(kind: str) -> bytes:
        text = orjson.dumps(GOOD[kind])
        at = text.rindex(b'"', 0, text.rindex(b'"'))  # the quotation mark that opens the last text
        return text[: at + 1] + value + text[at + 1 :]

    return broken


def message(*messages: Any) -> Breaker:
    return lambda kind: orjson.dumps({"messages": list(messages)})


USER, ANSWER = GOOD["chat_template"]["messages"]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{not json"}}]}
EVERY: dict[str, tuple[Breaker, str]] = {
    "not JSON": (lines(b"nonsense"), "bad_json"),
    "cut off": (lambda kind: orjson.dumps(GOOD[kind])[:-3], "bad_json"),
    "a list": (lines([GOOD["completion"]]), "bad_json"),
    "a number": (lines(7), "bad_json"),
    "a text": (lines("messages"), "bad_json"),
    "null": (lines(None), "bad_json"),
    "true": (lines(True), "bad_json"),
    "an empty object": (lines({}), "missing_field"),
    "other columns": (lines({"id": 1, "source": "web"}), "missing_field"),
    "a null field": (main(None), "missing_field"),
    "a number in place of text": (main(3.5), "wrong_type"),
    "a truth value in place of text": (main(False), "wrong_type"),
    "an object in place of text": (main({"text": "x"}), "wrong_type"),
    "bytes that are not UTF-8": (inside(b"\xff\xfe"), "bad_json"),
    "half a surrogate pair": (inside(b"\\ud83d"), "bad_text bad_json"),
    "nested deeper than anything": (lines(b"[" * 5000 + b"]" * 5000), "bad_json"),
    "two rows in a line": (lambda kind: orjson.dumps(GOOD[kind]) * 2, "bad_json"),
    "NaN": (lambda kind: b'{"%s": NaN}' % TEXTS[kind].encode(), "bad_json"),
    "single quotes": (lambda kind: orjson.dumps(GOOD[kind]).replace(b'"', b"'"), "bad_json"),
    "HTML of an error page": (lines(b"<html><body>502</body></html>"), "bad_json"),
}
CHAT: dict[str, tuple[Breaker, str]] = {
    "no messages": (message(), "no_messages"),
    "a text for messages": (main("hello"), "bad_json"),
    "JSON of no list for messages": (main('{"role": "user"}'), "wrong_type"),
    "a text for a message": (message(USER, "b."), "wrong_type"),
    "a null message": (message(USER, None), "wrong_type"),
    "a list for a message": (message(USER, ["b."]), "wrong_type"),
    "no role": (message(USER, {"content": "b."}), "missing_field"),
    "a number for a role": (message(USER, {"role": 1, "content": "b."}), "wrong_type"),
    "no content": (message(USER, {"role": "assistant"}), "missing_field"),
    "a number for a content": (message(USER, {"role": "assistant", "content": 1}), "wrong_type"),
    "an image for a content": (message({"role": "user", "content": [{"type": "image"}]}, ANSWER), "unsupported_part"),
    "junk in a content": (message({"role": "user", "content": [[1, [2]]]}, ANSWER), "wrong_type"),
    "tool calls that are a text": (message(USER, {"role": "assistant", "tool_calls": "f()"}), "wrong_type"),
    "arguments that are no JSON": (message(USER, CALL), "bad_json"),
    "tools that are a number": (lambda kind: orjson.dumps({**GOOD[kind], "tools": 5}), "wrong_type"),
}
OTHERS: dict[str, dict[str, tuple[Breaker, str]]] = {
    "chat_template": CHAT,
    "alpaca": {
        "no instruction": (lines({"output": "b"}), "missing_field"),
        "a list for an input": (lambda kind: orjson.dumps({**GOOD[kind], "input": ["x"]}), "wrong_type"),
    },
    "completion": {"an empty text": (main(""), "no_text")},
    "input_output": {
        "segments of nothing": (main([]), "no_text"),
        "a segment without a label": (main([{"text": "x"}]), "missing_field"),
        "a label that is a text": (main([{"label": "yes", "text": "x"}]), "wrong_type"),
        "empty texts": (main([{"label": True, "text": ""}]), "no_text"),
    },
    "own": {"a list for an answer": (main(["b"]), "wrong_type")},
}
KINDS = {(kind, name): case for kind in GOOD for name, case in {**EVERY, **OTHERS[kind]}.items()}


def broken_rows(kind: str, rng: random.Random) -> list[tuple[bytes, str]]:
    """Return (line, reason) of some seventy rows, in any order, good ones (no reason) among them."""
    cases = [case for (of, _), case in KINDS.items() if of == kind]
    rows = [(breaker(kind), reason) for breaker, reason in (*cases, *rng.choices(cases, k=max(0, 65 - len(cases))))]
    rows += [(orjson.dumps(GOOD[kind]), "")] * 12
    rng.shuffle(rows)
    return rows


@pytest.mark.timeout(300)
def test_every_broken_row_is_rejected_with_its_reason_and_none_is_trained(tmp_path: Path) -> None:
    rng = random.Random(7)
    tokenizer, rows = tiny.build_tokenizer(tmp_path / "tokenizer"), {kind: broken_rows(kind, rng) for kind in GOOD}
    for kind, written in rows.items():
        (tmp_path / f"{kind}.jsonl").write_bytes(b"\n".join(line for line, _ in written) + b"\n")
    assert len({name for _, name in KINDS}) >= 40
    assert sum(bool(reason) for written in rows.values() for _, reason in written) >= 300
    datasets = [{"path": str(tmp_path / f"{kind}.jsonl"), "type": TYPES[kind]} for kind in GOOD]
    run = fetched.make_run(tokenizer).model_validate(
        {**fetched.REQUIRED, "base_model": str(tokenizer), "datasets": datasets, "dataset_num_proc": 2}
    )
    digests = FileDigests(tmp_path / "digests.sqlite")
    store, context = Store(tmp_path / "store", digests), Context(run, digests)
    raw = run_stage(FETCH, context, {}, store).artifact
    made = run_stage(TOKENIZE, context, {"fetch": raw}, store).artifact

    expected = {(n, row): reason for n, kind in enumerate(GOOD) for row, (_, reason) in enumerate(rows[kind])}
    found = {(record["dataset"], record["row"]): record for record in fetched.rejected(made)}
    assert found.keys() == {place for place, reason in expected.items() if reason}
    for place, record in found.items():
        assert record["reason"] in expected[place].split(), (place, record)
        assert record["path"] == datasets[place[0]]["path"]
        assert record["detail"]
    written = {(dataset, row) for dataset, row, _, _ in fetched.tokenized_rows(made)}
    assert written == {place for place, reason in expected.items() if not reason}
    facts = made.facts
    assert facts["rows_read"] == len(expected) == facts["rows_written"] + sum(facts["rejected"].values())


def test_turns_of_nothing_and_of_everything(tmp_path: Path) -> None:
    """An empty turn is no error and trains nothing; a turn of a million characters is a row like any other."""
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    rows = [
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"messages": [USER, {"role": "assistant", "content": "word " * 200_000}]},
        {"messages": [USER, ANSWER] * 500},
    ]
    outcome, written = fetched.tokenize_here(tmp_path / "shard", tokenizer, fetched.make_run(tokenizer), rows)
    assert outcome.rejected == []
    assert [any(label != -100 for label in labels) for _, labels in written] == [False, True, True]
    assert outcome.untrained_rows == 1
    assert len(written[1][0]) > 200_000
