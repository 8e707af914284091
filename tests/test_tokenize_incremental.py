"""Data that grew or changed: only the shards that it touches are tokenized, and the result is that of a fresh store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fetched
import orjson
import pytest
import tiny

from configs.schema import RunConfig
from stages.artifacts import Artifact, FileDigests, Store
from stages.fetch import STAGE as FETCH
from stages.fetch import shards
from stages.stage import Context, run_stage
from stages.tokenize import STAGE

Rows = Sequence[Any]


def chat(number: int) -> dict[str, Any]:
    question = f"question {number} " * (1 + number % 9)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"is {number}"}]}


CHATS = [chat(number) if number % 50 else {"messages": []} for number in range(400)]  # some are rejected


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True, scope="module")
def _small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 4000)
        yield


class Bench:
    """A store, and data files that change."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.store = Store(folder / "store")
        self.log: list[str] = []

    def config(self, *datasets: Rows, **keys: Any) -> RunConfig:
        paths = [self.folder / f"{number}.jsonl" for number in range(len(datasets))]
        for path, rows in zip(paths, datasets, strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        run = fetched.make_run(self.tokenizer, dataset_num_proc=1, **keys)
        listed = [run.datasets[0].model_copy(update={"path": str(path)}) for path in paths]
        return run.model_copy(update={"datasets": tuple(listed)})

    def tokenize(self, *datasets: Rows, refresh: bool = False, **keys: Any) -> tuple[Artifact, int]:
        """Return the artifact, and how many of its shards were tokenized for it."""
        self.log.clear()
        digests = FileDigests(self.folder / "digests.sqlite")
        context = Context(self.config(*datasets, **keys), digests, log=self.log.append)
        raw = run_stage(FETCH, context, {}, self.store).artifact
        artifact = run_stage(STAGE, context, {"fetch": raw}, self.store, refresh=refresh).artifact
        reused = [int(line.split()[0]) for line in self.log if "of earlier runs" in line]
        return artifact, len(artifact.facts["shards"]) - sum(reused)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("before")
    _, made = Bench(folder, tokenizer).tokenize(CHATS)
    assert made > 10
    return folder


@pytest.fixture
def bench(tmp_path: Path, tokenizer: Path, before: Path) -> Bench:
    shutil.copytree(before, tmp_path / "bench")
    return Bench(tmp_path / "bench", tokenizer)


def fresh(tmp_path: Path, tokenizer: Path, *datasets: Rows) -> Artifact:
    artifact, made = Bench(tmp_path / "fresh", tokenizer).tokenize(*datasets)
    assert made == len(artifact.facts["shards"])
    return artifact


CHANGED = {
    "appended": [*CHATS, *map(chat, range(1000, 1010))],
    "changed": [*CHATS[:180], chat(5000), *CHATS[181:]],
    "inserted": [*CHATS[:180], chat(5000), *CHATS[180:]],
}


@pytest.mark.parametrize("name", CHANGED)
def test_only_the_touched_shards_are_tokenized(name: str, bench: Bench, tmp_path: Path, tokenizer: Path) -> None:
    artifact, made = bench.tokenize(CHANGED[name])
    assert 1 <= made <= 3
    expected = fresh(tmp_path, tokenizer, CHANGED[name])
    assert artifact.digest == expected.digest
    assert fetched.rejected(artifact) == [
        {**row, "path": str(bench.folder / "0.jsonl")} for row in fetched.rejected(expected)
    ]
    assert bench.store.damage(artifact) == []


def test_a_data_set_in_front_moves_the_others(bench: Bench, tmp_path: Path, tokenizer: Path) -> None:
    other = [chat(number) for number in range(2000, 2020)]
    artifact, made = bench.tokenize(other, CHATS)
    assert made == sum(shard["dataset"] == 0 for shard in artifact.facts["shards"])
    assert artifact.digest == fresh(tmp_path, tokenizer, other, CHATS).digest


def test_other_options_share_nothing_and_a_refresh_makes_all_again(bench: Bench) -> None:
    artifact, made = bench.tokenize(CHATS, train_on_inputs=True)
    assert made == len(artifact.facts["shards"])
    artifact, made = bench.tokenize(CHATS, refresh=True)
    assert made == len(artifact.facts["shards"])


def test_a_damaged_shard_is_not_passed_on(bench: Bench, tmp_path: Path, tokenizer: Path) -> None:
    earlier = next(iter(bench.store.artifacts("tokenize")))
    path = earlier.path(earlier.facts["shards"][3]["file"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    artifact, made = bench.tokenize(CHANGED["appended"])
    assert 2 <= made <= 3
    assert artifact.digest == fresh(tmp_path, tokenizer, CHANGED["appended"]).digest
