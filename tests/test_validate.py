"""`sft validate` and its neighbours say what becomes of each key, and import nothing heavy to do so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from flows.cli import cli
from tests.test_config import GOOD
from tests.tiny import build_model

MIXED = GOOD + "sdp_attention: true\ntokenizer_use_fast: true\nqat: false\nnum_epochs: 2\nwandb_project:\n"
CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validate")
    build_model(folder / "base")
    (folder / "data.jsonl").write_bytes(b"\n".join([orjson.dumps(CHAT)] * 30))
    (folder / "run.yaml").write_text(MIXED.replace("some/model", "base"))
    return folder


def test_the_class_of_each_key_is_in_the_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli, ["validate", "run.yaml", "--json"], catch_exceptions=False)
    document = orjson.loads(done.stdout)
    kinds = {use["key"]: (use["kind"], use["text"]) for use in document["keys"]}
    assert document["valid"]
    assert kinds["num_epochs"] == ("acted on", "Passes over the data.")
    assert kinds["datasets.path"][0] == "acted on"
    assert kinds["sdp_attention"] == ("replaced by", "attn_implementation")
    assert kinds["tokenizer_use_fast"][0] == "without effect"
    assert not {"qat", "wandb_project"} & kinds.keys()  # they ask for nothing


def test_a_wrong_file_has_them_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli, ["validate", "run.yaml", "--json", "qat={a: 1}"])
    document = orjson.loads(done.stdout)
    assert (done.exit_code, document["valid"]) == (2, False)
    assert [problem["key"] for problem in document["problems"]] == ["qat"]
    assert {use["kind"] for use in document["keys"]} == {"acted on", "replaced by", "without effect", "refused"}


def test_a_person_sees_them_by_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli, ["validate", "run.yaml"], catch_exceptions=False)
    assert "8 keys acted on" in done.stderr
    assert "1 key replaced by     sdp_attention -> attn_implementation" in done.stderr
    assert "Reason: the fast tokenizer is always used" in done.stderr
    assert done.stderr.endswith("run.yaml: valid\n")


def test_the_class_of_the_model_is_the_one_that_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("AutoModelForCausalLM", "LlamaForCausalLM"):
        assert CliRunner().invoke(cli, ["validate", "run.yaml", f"model_type={name}"]).exit_code == 0
    done = CliRunner().invoke(cli, ["validate", "run.yaml", "type_of_model=MistralForCausalLM"])
    assert done.exit_code == 2
    assert "Set model_type: LlamaForCausalLM" in done.stderr


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("datasets.0.type=sharegpt", "field_messages: conversations"),
        ("datasets.0.type=foo", "Known: chat_template"),
        ("chat_template=chatmll", "Known: tokenizer_default"),
        ("chat_template=jinja", "Set chat_template_jinja"),
        ("optimizer=adamx", "known are adamw_torch"),
        ("lr_scheduler=cosin", "known are linear, cosine"),
        ("attn_implementation=flsh", "known are eager, sdpa"),
    ],
)
def test_names_that_nobody_knows_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, override: str, remedy: str
) -> None:
    monkeypatch.chdir(folder)
    text = (folder / "run.yaml").read_text().replace("sdp_attention: true\n", "")
    (folder / "names.yaml").write_text(text)
    done = CliRunner().invoke(cli, ["validate", "names.yaml", override, "--json"])
    assert done.exit_code == 2
    [problem] = orjson.loads(done.stdout)["problems"]
    assert problem["key"] == override.partition("=")[0]
    assert remedy in f"{problem['rule']}. {problem['remedy']}"


def test_warnings_stop_only_where_they_are_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["validate", "run.yaml", "learning_rate=0.5"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    done = CliRunner().invoke(cli, [*words, "--strict"])
    assert done.exit_code == 2
    assert "warning command line: learning_rate = 0.5" in done.stderr


@pytest.mark.parametrize(
    "words",
    ["--help", "validate run.yaml", "plan run.yaml", "init new.yaml --model=base --data=data.jsonl"],
)
def test_nothing_heavy_is_imported(folder: Path, words: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flows.cli", *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "flows.cli" in imported or "flows.command" in imported
    assert not {"torch", "prefect", "transformers", "peft", "accelerate"} & imported


def test_with_strict_a_warning_makes_a_file_invalid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    usual = CliRunner().invoke(cli, ["validate", "run.yaml", "learning_rate=0.01"], catch_exceptions=False)
    assert (usual.exit_code, usual.stderr.splitlines()[-1]) == (0, "run.yaml: valid")
    strict = CliRunner().invoke(cli, ["validate", "run.yaml", "learning_rate=0.01", "--strict"])
    assert (strict.exit_code, strict.stderr.splitlines()[-1]) == (2, "run.yaml: not valid")
