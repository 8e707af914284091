"""Formats of the user: what a module may be, what it may give, and what becomes of its errors and of the key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fetched
import pytest
import tiny

from configs.errors import ConfigError
from stages.artifacts import Artifact, FileDigests
from stages.formats import check_format, format_inputs, is_chat
from stages.stage import Context
from stages.tokenize import STAGE
from tests.project import Project

TO_MESSAGES = """
import helper
print("imported")
def to_messages(row):
    print("called")
    if row["q"] == "tools":
        return {"messages": [{"role": "user", "content": "t"}, {"role": "assistant", "content": "T"}], "tools": []}
    return [{"role": "user", "content": helper.shout(row["q"])}, {"role": "assistant", "content": row["a"]}]
"""
HELPER = "def shout(text):\n    return text.upper()\n"
STRATEGY = """
class Strategy:
    supports_batched = False
    def __init__(self, tokenizer, cfg, ds_cfg):
        self.tokenizer, self.cfg, self.ds_cfg = tokenizer, cfg, ds_cfg
    def tokenize_prompt(self, row):
        assert self.cfg.nothing is None and self.cfg["nothing"] is None and self.cfg.get("train_on_inputs") is False
        prompt = self.tokenizer(row[self.ds_cfg["field"]], add_special_tokens=False)["input_ids"]
        answer = self.tokenizer(row["a"] or "none", add_special_tokens=False)["input_ids"]
        answer = answer + [self.tokenizer.eos_token_id]
        ids = prompt + answer
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + answer}

class Batched(Strategy):
    supports_batched = True
    filter_rows = staticmethod(lambda row: row["q"] != "skip")
    def tokenize_prompt(self, rows):
        one = super().tokenize_prompt({key: values[0] for key, values in rows.items()})
        return {key: [value, value] for key, value in one.items()}

def load(tokenizer, cfg, ds_cfg=None):
    return Strategy(tokenizer, cfg, ds_cfg)

def load_batched(tokenizer, cfg, ds_cfg=None, processor=None):
    return Batched(tokenizer, cfg, ds_cfg)

def load_greedy(tokenizer, cfg):
    return cfg.learning_rate

def load_nothing(tokenizer, cfg):
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a tokenizer; modules in it are forgotten afterwards."""
    tiny.build_tokenizer(tmp_path / "base", vocabulary=400)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def tokenize(folder: Path, kind: str, *rows: Any, **options: Any) -> Artifact:
    return fetched.tokenize(folder, fetched.make_run(folder / "base", {"type": kind, **options}), rows)


def texts(artifact: Artifact) -> list[tuple[str, str]]:
    """Return (whole text, trained text) of each row."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(artifact.path("tokenizer/tokenizer.json")))
    found = []
    for _, _, ids, labels in fetched.tokenized_rows(artifact):
        trained = [label for label in labels if label != -100]
        found.append(tuple(tokenizer.decode(some, skip_special_tokens=False) for some in (ids, trained)))
    return found  # type: ignore[return-value]


def write_messages(folder: Path) -> None:
    (folder / "my_format.py").write_text(TO_MESSAGES)
    (folder / "helper.py").write_text(HELPER)


def test_messages_are_rendered_by_the_chat_template(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_messages(here)
    rows = [{"q": "hi", "a": "Ho"}, {"q": "tools"}, {"a": "x"}, {"q": "hi", "a": None}]
    artifact = tokenize(here, "./my_format.py", *rows, train_on_eos="none")
    assert texts(artifact) == [
        ("<|im_start|>user\nHI<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n", "Ho"),
        ("<|im_start|>user\nt<|im_end|>\n<|im_start|>assistant\nT<|im_end|>\n", "T"),
    ]
    assert [(row["row"], row["reason"], row["detail"]) for row in fetched.rejected(artifact)] == [
        (2, "custom_format", "my_format.py to_messages: KeyError: 'q'"),
        (3, "custom_format", "my_format.py to_messages: KeyError: 'a'"),
    ]
    assert "called" not in capsys.readouterr().out  # standard output is for JSON


def test_spans_are_one_text_that_ends(here: Path) -> None:
    (here / "spans.py").write_text("def to_spans(row):\n    return row['spans']\n")
    rows: list[Any] = [[["Q:", False], [" a", True], [" |", False], [" b", True]], [["a", True], ["b", False]]]
    rows += ["x", [["a", 1]], [[1, True]], []]
    artifact = tokenize(here, "./spans.py", *({"spans": row} for row in rows))
    assert texts(artifact) == [("Q: a | b<|im_end|>", " a b<|im_end|>"), ("ab", "a")]
    reasons = [row["reason"] for row in fetched.rejected(artifact)]
    assert reasons == ["custom_format", "custom_format", "wrong_type", "no_text"]


def test_strategies_of_axolotl_run_as_they_are(here: Path) -> None:
    (here / "my_pkg").mkdir()
    (here / "my_pkg" / "__init__.py").write_text("")
    (here / "my_pkg" / "strategy.py").write_text(STRATEGY)
    rows = [{"q": "hi", "a": "Ho"}, {"q": "hi", "a": None}, {"a": "x"}, b"\xff", b"[1]"]
    artifact = tokenize(here, "my_pkg.strategy", *rows, field="q")
    assert texts(artifact) == [("hiHo<|im_end|>", "Ho<|im_end|>"), ("hinone<|im_end|>", "none<|im_end|>")]
    assert [row["reason"] for row in fetched.rejected(artifact)] == ["custom_format", "bad_json", "bad_json"]
    batched = {"type": "my_pkg.strategy.load_batched", "field": "q"}
    run = fetched.make_run(here / "base", batched, max_rejected_ratio=0)  # what is left out on purpose does not count
    twice = fetched.tokenize(here, run, [{"q": "hi", "a": "Ho"}, {"q": "skip", "a": "x"}])
    assert texts(twice) == [("hiHo<|im_end|>", "Ho<|im_end|>")] * 2
    assert [row["reason"] for row in fetched.rejected(twice)] == ["filtered"]


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("import nowhere_to_be_found\ndef to_spans(row): ...", "./bad.py", "No module named 'nowhere_to_be_found'"),
        ("def to_spans(row)", "./bad.py", "is not valid Python in line 1"),
        ("def spans(row): ...", "./bad.py", "has no function to_messages, to_spans or load"),
        ("def to_spans(row): ...", "./missing.py", "there is no such file"),
        ("def load(tokenizer, cfg): ...", "bad.load_x", "has no function load_x"),
        (STRATEGY, "bad.load_greedy", "cfg.learning_rate is not given to formats"),
        (STRATEGY, "bad.load_nothing", "must return an object with tokenize_prompt, found NoneType"),
        ("", "bad_pkg.module", "neither a known format nor a module that is there"),
        ("", "chatml.intel", "learning from preferences"),
    ],
)
def test_a_module_that_cannot_be_used_stops_the_run(here: Path, source: str, kind: str, message: str) -> None:
    (here / "bad.py").write_text(source)
    with pytest.raises(ConfigError) as error:
        tokenize(here, kind, {"q": "hi"})
    assert message in str(error.value)
    assert "datasets.0.type" in str(error.value)


def test_a_module_is_looked_up_before_a_prefix_is_refused(here: Path) -> None:
    (here / "chatml").mkdir()
    (here / "chatml" / "mine.py").write_text("def to_messages(row): ...")
    run = fetched.make_run(here / "base", {"type": "chatml.mine"})
    check_format(run, 0)
    assert is_chat(run.datasets[0])


def test_the_source_is_a_part_of_the_key(here: Path) -> None:
    write_messages(here)
    (here / "other.py").write_text("x = 1")
    run = fetched.make_run(here / "base", {"type": "./my_format.py"})
    before = format_inputs(run, 0)
    (here / "other.py").write_text("x = 2")
    assert format_inputs(run, 0) == before
    moved = fetched.make_run(here / "base", {"type": str(here / "my_format.py")})
    assert format_inputs(moved, 0) == before
    (here / "helper.py").write_text(HELPER.replace("upper", "lower"))
    assert format_inputs(run, 0) != before
    write_messages(here)
    (here / "my_format.py").write_text(TO_MESSAGES.replace("row", "line"))
    assert format_inputs(run, 0) != before


@pytest.mark.parametrize(
    ("template", "date"), [("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}", True), (tiny.CHATML, False)]
)
def test_the_day_is_in_the_key_where_a_template_writes_it(here: Path, template: str, date: bool) -> None:
    tiny.build_tokenizer(here / "base", template, vocabulary=400)
    run = fetched.make_run(here / "base")

    def inputs(**keys: Any) -> dict[str, Any]:
        context = Context(run.model_copy(update=keys), FileDigests(here / "digests.sqlite"))
        return STAGE.inputs(context, {})

    fixed = fetched.make_run(here / "base", template_date="2026-01-31")
    assert ("today" in inputs()) is date
    assert inputs(template_date=fixed.template_date).get("today") == ("2026-01-31" if date else None)
    if date:
        artifact = fetched.tokenize(here, fixed, [{"messages": [{"role": "user", "content": "!"}]}])
        assert texts(artifact) == [("31 Jan 2026!", "")]


@pytest.mark.timeout(300)
def test_a_file_beside_the_yaml_and_its_errors_on_the_command_line(tmp_path: Path) -> None:
    """From another folder, in two worker processes: the file is found, its prints do not disturb, its error is one."""
    project = Project(tmp_path)
    tiny.build_tokenizer(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "helper.py").write_text(HELPER)
    (tmp_path / "elsewhere" / "my_format.py").write_text(TO_MESSAGES)
    (tmp_path / "data.jsonl").write_text('{"q": "hi", "a": "Ho"}\n' * 3)
    project.configure(datasets=[{"path": "data.jsonl", "type": "./my_format.py"}] * 2, dataset_num_proc=2)
    (tmp_path / "run.yaml").rename(tmp_path / "elsewhere" / "run.yaml")
    done = project.sft("inspect", "elsewhere/run.yaml", "--jsonl")
    assert len(done.out.splitlines()) == 6
    (tmp_path / "elsewhere" / "helper.py").unlink()
    done = project.sft("inspect", "elsewhere/run.yaml", "--jsonl", expect=2)
    assert "my_format.py: cannot be imported: ModuleNotFoundError: No module named 'helper'" in done.err
    assert "Traceback" not in done.err
