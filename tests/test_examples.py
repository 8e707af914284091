"""The configurations in configs/examples: each is valid, and plans, with a tiny model and data in place of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from configs.load import load_run
from flows.cli import cli
from tests.tiny import build_model

FOLDER = Path(__file__).parent.parent / "configs" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
TURNS = [{"role": "user", "content": "what is the capital of France?"}, {"role": "assistant", "content": "Paris."}]
ROWS: dict[str, dict[str, Any]] = {
    "mlabonne/FineTome-100k": {
        "conversations": [{"from": "human", "value": "hello world"}, {"from": "gpt", "value": "how are you"}]
    },
    "tatsu-lab/alpaca": {"instruction": "add", "input": "1 2", "output": "3"},
    "roneneldan/TinyStories": {"text": "the quick brown fox jumps over the lazy dog."},
    "data/long.jsonl": {"messages": TURNS},
    "data/agent.jsonl": {
        "messages": TURNS,
        "tools": [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}],
    },
}
SMALL = (
    "base_model=base",
    "datasets.0.path=data.jsonl",
    "datasets.0.split=train",
    "bf16=false",
    "launcher.processes=2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    build_model(folder / "base")
    return folder


def test_there_is_one_for_each_kind_of_run() -> None:
    runs = [load_run(path).run for path in EXAMPLES]
    families = [{"Qwen": "qwen", "meta-llama": "llama"}[run.base_model.partition("/")[0]] for run in runs]
    found = {(family, run.adapter) for family, run in zip(families, runs, strict=True)}
    assert found == {(family, adapter) for family in ("qwen", "llama") for adapter in ("lora", "qlora", None)}
    assert {run.sharding for run in runs} == {"none", "fsdp2", "zero3"}
    assert {run.datasets[0].type for run in runs} == {"chat_template", "alpaca", "completion"}
    assert max(run.sequence_len for run in runs) >= 32_768


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_says_how_it_is_run_and_what_to_expect(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") and len(line) <= 120 for line in head.splitlines())
    assert f"#   sft run configs/examples/{path.name}\n" in head
    assert "# Hardware: " in head
    assert "# Expect:   " in head
    assert not load_run(path).notices


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_plans(folder: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.chdir(folder)
    run = load_run(path).run
    row = orjson.dumps(ROWS[run.datasets[0].path])
    (folder / "data.jsonl").write_bytes(b"\n".join([row] * 30))
    words = [*SMALL, *(["special_tokens.pad_token=<|pad|>"] if run.special_tokens.pad_token else [])]
    if "8bit" in run.optimizer:
        words.append("optimizer=adamw_torch")  # the others need a GPU
    for command in (["validate"], ["plan", "--gpu", "2xh100"]):  # what this machine lacks is not the example's fault
        done = CliRunner().invoke(cli, [*command, str(path), *words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    document = orjson.loads(done.stdout)
    assert {stage["status"] for stage in document["stages"]} == {"run"}
    assert document["training"]["processes"] == 2
