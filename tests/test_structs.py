"""Tools, their calls and reasoning come through Parquet's structs and through JSON Lines as the same conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from stages.artifacts import Artifact, FileDigests, Store
from stages.fetch import STAGE
from stages.stage import Context, run_stage
from stages.tokenize.shard import numbered_rows
from tests import fetched, tiny

TEMPLATE = (
    "{{ tools | tojson }}\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def row(name: str, properties: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "tools": [{"type": "function", "function": {"name": name, "parameters": parameters}}],
        "messages": [
            {"role": "user", "content": f"use {name}"},
            {
                "role": "assistant",
                "reasoning_content": "hm",
                "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
            },
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "it is done"},
        ],
    }


ROWS = [
    row("weather", {"city": {"type": "string"}}, {"city": "Bern"}),
    row("add", {"a": {"type": "integer", "minimum": 0}, "b": {"type": "integer"}}, {"a": 1, "b": 2}),
    row("stop", {"why": {"type": "string", "enum": ["a", "b"]}}, {"why": "a"}),
]


def fetch(folder: Path, path: Path) -> Artifact:
    digests = FileDigests(folder / "digests.sqlite")
    run = fetched.make_run(folder, {"path": str(path)})
    return run_stage(STAGE, Context(run, digests), {}, Store(folder / "store", digests)).artifact


def raw_rows(artifact: Artifact) -> list[bytes]:
    shards = artifact.facts["datasets"][0]["shards"]
    return [raw for shard in shards for _, raw in numbered_rows(artifact.path(shard["file"]), shard["first_row"])]


def as_text(value: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose tools and arguments are JSON texts, as many data sets have them."""
    value = orjson.loads(orjson.dumps(value))
    for message in value["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = orjson.dumps(call["function"]["arguments"]).decode()
    return {**value, "tools": orjson.dumps(value["tools"]).decode()}


@pytest.mark.parametrize("form", ["structs", "texts", "lines"])
def test_tools_and_reasoning_come_through_as_they_are(tmp_path: Path, form: str) -> None:
    """Parquet pads every struct with the keys of all others: none of these may reach the template."""
    rows = [as_text(value) if form == "texts" else value for value in ROWS]
    path = tmp_path / ("rows.jsonl" if form == "lines" else "rows.parquet")
    if form == "lines":
        path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
        if form == "structs":
            padded = pq.read_table(path).to_pylist()[0]["tools"][0]["function"]["parameters"]["properties"]
            assert padded.keys() > {"city"}, "the source itself is padded"
    raw = raw_rows(fetch(tmp_path, path))
    tokenizer = tiny.build_tokenizer(tmp_path / "tokenizer")
    run = fetched.make_run(tokenizer)
    outcome, written = fetched.tokenize_here(tmp_path / "shard", tokenizer, run, raw, template=TEMPLATE)
    assert outcome.rejected == []
    reader = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [reader.decode(ids, skip_special_tokens=False) for ids, _ in written]
    for value, text in zip(ROWS, texts, strict=True):
        assert orjson.loads(text.splitlines()[0]) == value["tools"]
        call = value["messages"][1]["tool_calls"][0]["function"]
        said = text.split("</think>")[1].split("<|im_end|>")[0]
        assert orjson.loads(said) == call
        assert "null" not in text
        assert "None" not in text
