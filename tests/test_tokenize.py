"""The stage `tokenize` as a whole: ids and masks, broken rows, workers, resuming, and what its key depends on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fetched
import numpy as np
import orjson
import psutil
import pytest
import tiny
from tokenizers import Tokenizer

from configs.errors import ConfigError
from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.errors import DataError
from stages.inspection.rows import masked_rows
from stages.stage import Context
from stages.tokenize import STAGE
from stages.tokens import TokenRows

CHATS = [
    {"messages": [{"role": "user", "content": f"what is {n} + {n}?"}, {"role": "assistant", "content": f" {2 * n}"}]}
    for n in range(60)
]
BROKEN = [b"{", {"messages": []}, {"messages": None}, {"messages": [{"role": "user", "content": ["\x00", 1]}]}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def made(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Tokenize good and broken rows of two data sets in this process."""
    run = fetched.make_run(tokenizer, dataset_num_proc=1)
    run = run.model_copy(update={"datasets": run.datasets * 2})
    rows = [*CHATS[:30], *BROKEN, *CHATS[30:]]
    return fetched.tokenize(tmp_path_factory.mktemp("made"), run, rows, CHATS[:7], rows_per_shard=20)


def key_of(folder: Path, run: RunConfig) -> dict[str, Any]:
    store = Store(folder / "store")
    upstream = {"fetch": fetched.make_fetched(store, [CHATS])}
    return STAGE.key_inputs(Context(run, FileDigests(folder / "digests.sqlite")), upstream)


def test_trained_tokens_say_the_answers_and_their_end(made: Artifact) -> None:
    tokenizer = Tokenizer.from_file(str(made.path("tokenizer/tokenizer.json")))
    for row in list(masked_rows(made))[:60]:
        number = row["row"] if row["row"] < 30 else row["row"] - len(BROKEN)
        trained = [label for label in row["labels"] if label != -100]
        text = tokenizer.decode(trained, skip_special_tokens=False)
        assert text.removeprefix("\n") == f" {2 * number}<|im_end|>"


def test_no_row_is_lost(made: Artifact) -> None:
    facts = made.facts
    assert (facts["rows_read"], facts["rows_written"]) == (len(CHATS) + len(BROKEN) + 7, len(CHATS) + 7)
    assert facts["rejected"] == {"bad_json": 1, "missing_field": 1, "no_messages": 1, "wrong_type": 1}
    assert [(row["dataset"], row["row"]) for row in fetched.rejected(made)] == [(0, 30), (0, 31), (0, 32), (0, 33)]
    assert [entry["rows_written"] for entry in facts["datasets"]] == [len(CHATS), 7]
    written = [(row["dataset"], row["row"]) for row in masked_rows(made)]
    good = [n for n in range(len(CHATS) + len(BROKEN)) if n not in range(30, 34)]
    assert written == [(0, n) for n in good] + [(1, n) for n in range(7)]


def test_facts_are_those_of_the_files(made: Artifact) -> None:
    rows = TokenRows(made)
    assert made.facts["tokens"] == int(rows.lengths.sum()) == sum(shard["tokens"] for shard in made.facts["shards"])
    assert made.facts["trained_tokens"] == int(rows.trained.sum())
    assert made.facts["tokenizer"] == {
        "vocab_size": made.facts["tokenizer"]["vocab_size"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    ids = np.concatenate([rows[number][0] for number in range(len(rows))])
    assert ids.max() < made.facts["tokenizer"]["vocab_size"]


def test_several_processes_write_the_same_bytes(made: Artifact, tokenizer: Path, tmp_path: Path) -> None:
    run = fetched.make_run(tokenizer, dataset_num_proc=3)
    run = run.model_copy(update={"datasets": run.datasets * 2})
    rows = [*CHATS[:30], *BROKEN, *CHATS[30:]]
    seen: list[tuple[float, float | None]] = []
    other = fetched.tokenize(
        tmp_path,
        run,
        rows,
        CHATS[:7],
        rows_per_shard=20,
        progress=lambda done, total, *_, **__: seen.append((done, total)),
    )
    assert other.key == made.key
    assert other.digest == made.digest
    assert seen[-1] == (71, 71)


class StopError(Exception):
    pass


def test_a_stopped_run_continues_with_the_shards_that_it_lacks(made: Artifact, tokenizer: Path, tmp_path: Path) -> None:
    run = fetched.make_run(tokenizer, dataset_num_proc=1)
    run = run.model_copy(update={"datasets": run.datasets * 2})
    data = [[*CHATS[:30], *BROKEN, *CHATS[30:]], CHATS[:7]]

    def stop(done: float, *_: Any, **__: Any) -> None:
        if done > 40:
            raise StopError

    with pytest.raises(StopError):
        fetched.tokenize(tmp_path, run, *data, rows_per_shard=20, progress=stop)
    finished = {path.stat().st_ino for path in tmp_path.rglob("*.arrow")}
    assert len(finished) == 2
    assert Store(tmp_path / "store").find("tokenize", made.key) is None
    artifact = fetched.tokenize(tmp_path, run, *data, rows_per_shard=20)
    assert finished < {path.stat().st_ino for path in artifact.folder.rglob("*.arrow")}
    assert artifact.digest == made.digest


def test_the_same_rows_at_another_path_are_the_same_artifact(tokenizer: Path, tmp_path: Path) -> None:
    digests = set()
    for path in ("here.jsonl", "there.jsonl"):
        run = fetched.make_run(tokenizer, max_rejected_ratio=1.0, dataset={"path": path})
        artifact = fetched.tokenize(tmp_path / path, run, [*CHATS[:5], *BROKEN])
        assert {record["path"] for record in fetched.rejected(artifact)} == {path}
        digests.add(artifact.digest)
    assert len(digests) == 1


def test_too_many_broken_rows_stop_the_run(tokenizer: Path, tmp_path: Path) -> None:
    run = fetched.make_run(tokenizer, max_rejected_ratio=0.02)
    with pytest.raises(DataError) as error:
        fetched.tokenize(tmp_path, run, [*CHATS, *BROKEN])
    for part in (
        "4 of 64 rows cannot be used",
        "allows 2.0%",
        "no_messages: 1\n",
        "rows.jsonl row 61: messages is empty",
        "max_rejected_ratio",
    ):
        assert part in str(error.value)


def test_the_key_holds_what_determines_the_tokens_and_nothing_else(tokenizer: Path, tmp_path: Path) -> None:
    base = key_of(tmp_path, fetched.make_run(tokenizer))
    same = [
        {"dataset_num_proc": 7},
        {"max_rejected_ratio": 0.5},
        {"sequence_len": 64},
        {"learning_rate": 1.0},
        {"output_dir": "x"},
        {"dataset": {"path": "elsewhere.jsonl", "field": "body", "split": "train"}},
    ]
    other = [
        {"train_on_inputs": True},
        {"eot_tokens": ["<|im_end|>"]},
        {"chat_template": "chatml"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"special_tokens": {"pad_token": "<|endoftext|>"}},
        {"dataset": {"train_on_eos": "all"}},
        {"dataset": {"roles_to_train": []}},
        {"dataset": {"field_thinking": "thought"}},
        {"dataset": {"type": "alpaca"}},
    ]
    for keys in same:
        assert key_of(tmp_path, fetched.make_run(tokenizer, **keys)) == base, keys
    for keys in other:
        assert key_of(tmp_path, fetched.make_run(tokenizer, **keys)) != base, keys


def test_only_completion_depends_on_the_sequence_length(tokenizer: Path, tmp_path: Path) -> None:
    def key(kind: str, length: int) -> dict[str, Any]:
        return key_of(tmp_path, fetched.make_run(tokenizer, {"type": kind}, sequence_len=length))

    assert key("alpaca", 64) == key("alpaca", 128)
    assert key("completion", 64) != key("completion", 128)


def test_all_wrong_data_sets_are_told_at_once(tokenizer: Path, tmp_path: Path) -> None:
    run = fetched.make_run(tokenizer, {"type": "sharegpt"})
    bad = run.datasets[0].model_copy(update={"type": "alpacca"})
    with pytest.raises(ConfigError) as error:
        key_of(tmp_path, run.model_copy(update={"datasets": (run.datasets[0], bad)}))
    assert [problem.key for problem in error.value.problems] == ["datasets.0.type", "datasets.1.type"]


def test_a_missing_chat_template_is_told_with_the_remedy(tmp_path: Path) -> None:
    bare = tiny.build_tokenizer(tmp_path / "bare", None)
    with pytest.raises(ConfigError, match="the tokenizer has none") as error:
        fetched.tokenize(tmp_path, fetched.make_run(bare), CHATS)
    assert "chat_template" in error.value.problems[0].remedy


def test_an_end_of_turn_must_be_one_token(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be single tokens") as error:
        fetched.tokenize(tmp_path, fetched.make_run(tokenizer, eot_tokens=["<|im_end|>", "two words"]), CHATS)
    assert error.value.problems[0].key == "eot_tokens"


def test_new_special_tokens_and_the_template_go_into_the_tokenizer(tmp_path: Path) -> None:
    bare = tiny.build_tokenizer(tmp_path / "bare", None)
    keys: dict[str, Any] = {
        "chat_template_jinja": "{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}",
        "special_tokens": {"eos_token": "<end>", "additional_special_tokens": ["<turn>"]},
    }
    artifact = fetched.tokenize(tmp_path, fetched.make_run(bare, **keys), CHATS[:1])
    tokenizer = Tokenizer.from_file(str(artifact.path("tokenizer/tokenizer.json")))
    (row,) = masked_rows(artifact)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=False) == "<turn>what is 0 + 0?<end><turn> 0<end>"
    assert row["input_ids"][0] == tokenizer.token_to_id("<turn>")
    assert row["labels"][-1] == tokenizer.token_to_id("<end>") == artifact.facts["tokenizer"]["eos_token_id"]
    assert artifact.facts["tokenizer"]["vocab_size"] == tokenizer.get_vocab_size()
    assert artifact.path("tokenizer/chat_template.jinja").read_text() == keys["chat_template_jinja"]


def test_workers_do_not_outlive_their_parent(tokenizer: Path, tmp_path: Path) -> None:
    setup = {
        "run": fetched.make_run(tokenizer).model_dump(mode="json"),
        "folder": str(tokenizer),
        "bos": 1,
        "eos": 2,
        "eot": [2],
        "variables": {},
        "templates": [tiny.CHATML],
    }
    code = (
        "import sys, time, orjson\n"
        "from stages.tokenize.pool import _Worker\n"
        "from stages.tokenize.shard import Setup\n"
        f"worker = _Worker(Setup.model_validate_json({orjson.dumps(setup)!r}))\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
