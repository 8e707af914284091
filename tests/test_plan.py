"""`sft plan` and `sft validate` from the outside: what they say, their exit codes, and that they are quick."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from click.testing import CliRunner, Result

from configs.load import load_run
from flows.cli import cli
from flows.plan_view import show_plan
from flows.planning import plan_document
from stages.artifacts import digest_of
from stages.pipeline import stages_until
from stages.stage import open_run, run_stage
from stages.train.machine import this_machine
from stages.train.stage import key_inputs
from tests.project import Project

CHANGED = ("learning_rate=0.0002", "lora_r=16", "lora_alpha=16")
"""What takes the warnings of the small project away."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose data is prepared: two data sets, one of them with a row that cannot be used."""
    project = Project.create(tmp_path_factory.mktemp("packed"))
    (project.folder / "more.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}\n'
        '{"messages": "not a list"}\n'
    )
    sources = [{"path": name, "type": "chat_template"} for name in ("data.jsonl", "more.jsonl")]
    project.configure(datasets=sources, max_rejected_ratio=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        context, store = open_run(load_run(Path("run.yaml")).run)
        made: dict[str, Any] = {}
        for stage in stages_until("pack"):
            made[stage.name] = run_stage(stage, context, made, store).artifact
    return project


@pytest.fixture
def project(packed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(packed.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


def sft(*words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert done.exit_code == expect, done.output
    return done


def plan(*words: str, expect: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(sft("plan", "run.yaml", *words, "--json", expect=expect).stdout)
    return document


def test_a_plan_says_all_that_is_known(project: Project) -> None:
    document = plan(*CHANGED, "--gpu", "2xh100")
    assert [stage["status"] for stage in document["stages"]] == ["reused"] * 3 + ["run"] * 3
    data = document["data"]
    assert data["rows_read"] == data["rows_written"] + sum(data["rejected"].values()) == 62
    assert sum(data["rejected"].values()) == 1
    assert {part["path"] for part in data["datasets"]} == {"data.jsonl", "more.jsonl"}
    training = document["training"]
    assert training["sequences_per_step"] == 2 * 2 * 2
    assert training["tokens_per_step"] == round(data["train"]["tokens"] / training["steps_per_epoch"])
    assert training["steps"] == training["steps_per_epoch"] * 2
    assert document["model"]["parameters"] == 126_272
    assert document["model"]["trained_parameters"] == 16 * (4 * (64 + 64) - 2 * 32 + 3 * (64 + 128)) * 2
    assert (document["memory"]["device"], document["memory"]["devices"], document["memory"]["fits"]) == (
        "h100",
        2,
        True,
    )
    assert document["memory"]["total"] == sum(document["memory"]["parts"].values())
    assert document["problems"] == []
    train = next(stage for stage in document["stages"] if stage["stage"] == "train")
    assert train["seconds"] is not None
    assert "h100" in train["seconds_from"]


def test_a_plan_is_a_page_that_fits_a_terminal(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan_document(load_run(Path("run.yaml")), until="publish", gpu="2xh100"))
    page = capsys.readouterr().out
    figures = page.partition("warning ")[0]
    assert max(map(len, figures.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in page.splitlines())
    for words in ("=  fetch", "~  train", "rejected", "mixture", "micro batch 2 x accumulation 2 x 2 processes"):
        assert words in page
    assert page.splitlines()[-1] == "Plan: 3 to run (train, merge, publish), 3 reused, 2 warnings."


def test_errors_are_told_with_the_plan_and_end_it(project: Project) -> None:
    document = plan("lora_target_modules=[wq]", "lora_target_linear=false", expect=2)
    [problem] = document["problems"]
    assert (problem["check"], problem["place"]) == ("target-matches-nothing", "command line")
    page = sft("plan", "run.yaml", "lora_target_modules=[wq]", "lora_target_linear=false", expect=2).output
    assert "error command line: lora_target_modules = wq\n  this llama model has no such layer; " in page
    assert "3 reused, 1 problem, 2 warnings" in page.replace("\n", " ")


def test_warnings_end_it_only_where_that_is_asked_for(project: Project) -> None:
    found = {warning["key"] for warning in plan()["warnings"]}
    assert found == {"learning_rate", "lora_r"}
    assert {warning["key"] for warning in plan("--strict", expect=2)["warnings"]} == found
    sft("validate", "run.yaml", "--strict", expect=2)
    sft("validate", "run.yaml", *CHANGED, "--strict")


def test_all_that_is_wrong_is_told_at_once(project: Project) -> None:
    done = sft(
        "validate",
        "run.yaml",
        "datasets.0.path=nowhere.jsonl",
        "attn_implementation=paged_attention",
        "--json",
        expect=2,
    )
    found = orjson.loads(done.stdout)
    assert not found["valid"]
    assert {problem["key"] for problem in found["problems"]} == {"datasets.0.path", "attn_implementation"}
    done = sft(
        "plan", "run.yaml", "datasets.0.path=nowhere.jsonl", "attn_implementation=paged_attention", "--json", expect=2
    )
    assert {p["key"] for p in orjson.loads(done.stdout)["problems"]} == {"datasets.0.path", "attn_implementation"}


def test_another_machine_is_another_training(project: Project) -> None:
    train = next(stage for stage in plan("--gpu", "4xa100")["stages"] if stage["stage"] == "train")
    assert train["key"] is None
    assert "world_size: 1 -> 4" in train["changes"]


def test_a_run_stops_before_its_first_stage(project: Project) -> None:
    """What would fail in training is said before the data is touched, and before Prefect is there."""
    shutil.rmtree(project.folder / "store")
    done = project.sft("run", "run.yaml", "attn_implementation=flash_attention_2", "--json", expect=2)
    [problem] = done.json()["problems"]
    assert problem["key"] == "attn_implementation"
    assert not (project.folder / "store" / "fetch").exists()
    document = plan("attn_implementation=flash_attention_2", "--until", "pack")
    assert document["problems"] == [], "what only concerns training does not stop the preparation of data"


def test_the_hub_being_away_is_no_error(project: Project) -> None:
    document = plan("base_model=lab/model", "tokenizer_config=base")
    assert document["memory"] is None
    assert any(notice["check"] == "not-looked-at" for notice in document["notices"] if "check" in notice)
    train = next(stage for stage in document["stages"] if stage["stage"] == "train")
    assert "cannot be looked up now" in train["why"]


def test_a_plan_is_quick_and_needs_no_torch(project: Project) -> None:
    check = (
        "import sys, flows.cli\n"
        "flows.cli.cli(['plan', 'run.yaml'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'prefect', 'datasets'} & set(sys.modules), 'a plan needs none of them'\n"
    )
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{check}"]
    subprocess.run(command, cwd=project.folder, check=True, timeout=120, capture_output=True)
    started = time.process_time()
    plan()
    assert time.process_time() - started < 1.0


def test_time_is_told_from_an_earlier_training(project: Project) -> None:
    """A training that differs in what does not decide its speed tells how long the next one takes."""
    context, store = open_run(load_run(Path("run.yaml")).run)
    inputs = {**key_inputs(context, this_machine()), "learning_rate": 1.0}
    records = [
        {"step": s, "loss": 1.0, "tokens_per_second": v, "seconds": 4.0 * s} for s, v in ((1, 5), (2, 50), (3, 50))
    ]
    with store.writer("train", inputs, {}) as writer:
        writer.write("metrics.jsonl", b"".join(orjson.dumps(record) + b"\n" for record in records), volatile=True)
        writer.commit(facts={})
    train = next(stage for stage in plan()["stages"] if stage["stage"] == "train")
    tokens = plan()["training"]["tokens"]
    assert train["seconds"] == pytest.approx(tokens / 50, abs=0.1)
    assert train["seconds_from"] == f"0 s of start and 50 tokens/s in the training {digest_of(inputs)[:12]}"


def test_examples_of_an_alias_and_a_list_stand_where_they_are(project: Project) -> None:
    text = yaml.safe_load((project.folder / "run.yaml").read_text())
    text["datasets"][0]["chat_template"] = "chatmll"
    (project.folder / "run.yaml").write_text(yaml.safe_dump(text))
    [problem] = orjson.loads(sft("validate", "run.yaml", "--json", expect=2).stdout)["problems"][:1]
    line = next(
        n for n, one in enumerate((project.folder / "run.yaml").read_text().splitlines(), 1) if "chatmll" in one
    )
    assert problem["place"].startswith(f"run.yaml:{line}:")
