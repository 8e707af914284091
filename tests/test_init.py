"""`sft init`: what it writes is valid and plans, for every adapter and hardware, from flags or from answers."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from configs.load import load_run
from configs.schema import RunConfig
from configs.starting_file import parameters_in, usual_method
from flows.cli import cli
from tests.tiny import build_model

CHAT = {"messages": [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "how are you"}]}


def write(folder: Path, *flags: str) -> RunConfig:
    done = CliRunner().invoke(cli, ["init", str(folder / "run.yaml"), *flags], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    loaded = load_run(folder / "run.yaml")
    assert not loaded.notices
    return loaded.run


@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
@pytest.mark.parametrize("hardware", ["cpu", "rtx4090", "8xRTX4090"])
def test_the_file_is_valid_for_every_adapter_and_hardware(tmp_path: Path, adapter: str, hardware: str) -> None:
    run = write(tmp_path, "--model=Qwen/Qwen3-8B", "--data=rows.jsonl", f"--adapter={adapter}", f"--gpu={hardware}")
    assert run.adapter == (None if adapter == "full" else adapter)
    assert run.load_in_4bit == (adapter == "qlora")
    assert (run.bf16 is False) == (hardware == "cpu")
    assert (run.sharding == "fsdp2") == (hardware == "8xRTX4090" and adapter != "qlora")
    assert (8 if adapter == "lora" else 16) >= run.sequences_per_pass * run.passes_per_step >= 8
    comments = [line for line in (tmp_path / "run.yaml").read_text().splitlines() if " # " in line]
    assert len(comments) >= 15


def test_what_it_writes_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_model(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([orjson.dumps(CHAT)] * 30))
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 2048', '"max_position_embeddings": 512'))
    assert write(tmp_path, "--model=base", "--data=rows.jsonl", "--gpu=cpu").sequence_len == 512
    done = CliRunner().invoke(cli, ["plan", "run.yaml", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert [stage["status"] for stage in orjson.loads(done.stdout)["stages"]] == ["run"] * 6


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    words = ["init", str(tmp_path / "run.yaml"), "--model=m", "--data=d"]
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, (tmp_path / "run.yaml").read_text()) == (2, "mine")
    assert "--force" in done.stderr
    assert CliRunner().invoke(cli, [*words, "--force"]).exit_code == 0
    assert load_run(tmp_path / "run.yaml").run.base_model == "m"


def test_a_gpu_that_nobody_knows_is_a_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "run.yaml"), "--model=m", "--data=d", "--gpu=abacus"])
    assert done.exit_code == 2
    assert "rtx4090" in done.stderr


def test_without_a_terminal_the_model_and_the_data_must_be_given(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "new" / "run.yaml"), "--model=m"])
    assert done.exit_code == 2
    assert "Give --data VALUE" in done.stderr
    assert not (tmp_path / "new").exists()


def test_at_a_terminal_it_asks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "init"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"Qwen/Qwen3-32B\nme/chats\n2xh100\nall\n\n")
    assert process.wait(timeout=120) == 0
    said = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "GPU (rtx4090" in said
    assert "'all' is not one of" in said
    run = load_run(tmp_path / "run.yaml").run
    assert (run.base_model, run.datasets[0].path, run.adapter) == ("Qwen/Qwen3-32B", "me/chats", "qlora")


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        (CHAT, {"type": "chat_template"}),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
            {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
        ({"instruction": "a", "input": "", "output": "b"}, {"type": "alpaca"}),
        ({"segments": [{"label": True, "text": "x"}]}, {"type": "input_output"}),
        ({"body": "once upon a time"}, {"type": "completion", "field": "body"}),
        ({"other": 1}, {"type": "chat_template"}),
    ],
)
def test_the_type_is_found_from_the_rows(tmp_path: Path, row: Any, keys: dict[str, Any]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(b"\n".join([orjson.dumps(row)] * 5))
    run = write(tmp_path, "--model=m", f"--data={data}", "--gpu=cpu")
    assert run.datasets[0].model_dump(include=set(keys)) == keys
    assert write(tmp_path, "--model=m", "--data=me/on-the-hub", "--force").datasets[0].type == "chat_template"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-1.7B", 1.7e9),
        ("meta-llama/Llama-3.1-8B-Instruct", 8e9),
        ("SmolLM2-135M", 135e6),
        ("google/gemma-3-270m-it", 270e6),
        ("mistralai/Mistral-7B-v0.3", 7e9),
        ("gpt2", None),
        ("microsoft/phi-4", None),
    ],
)
def test_the_size_is_read_from_the_name(name: str, size: float | None) -> None:
    assert parameters_in(name) == size


def test_large_models_are_quantised_on_small_gpus() -> None:
    assert usual_method("Qwen/Qwen3-4B", 1, 24) == "lora"
    assert usual_method("Qwen/Qwen3-14B", 1, 80) == "lora"
    assert usual_method("Qwen/Qwen3-32B", 1, 48) == "qlora"
