"""Checkpoints in a store on S3: sent in the background, restored on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.artifacts.backup import Backup
from stages.train.backup import restore, sending
from stages.train.checkpoints import newest_checkpoint, rotate, seal
from stages.train.job import WorkFolder
from tests.store_servers import ENVIRONMENT, Server, Where, serving

INPUTS = {"stage": "train", "seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("s3", tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def where(server: Server, monkeypatch: pytest.MonkeyPatch) -> Where:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return server.place()


class Machine:
    """A training's working folder on a machine, and its backup."""

    def __init__(self, where: Where, folder: Path) -> None:
        with where.open(folder).writer("train", INPUTS, {}) as writer:
            backup = writer.backup()
        assert backup is not None
        self.backup: Backup = backup
        self.key, self.work, self.said = writer.key, WorkFolder(writer.work), list[str]()
        writer.work.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, *, resumable: bool = True) -> None:
        folder = self.work.root / f"checkpoint-{step}"
        (folder / "states").mkdir(parents=True)
        (folder / "weights.bin").write_bytes(b"%d" % step * 1000)
        (folder / "states" / "optimizer.bin").write_bytes(b"state %d" % step)
        with self.work.metrics.open("a") as file:
            file.write(f'{{"step":{step}}}\n')
        seal(folder, key=self.key, step=step, resumable=resumable)

    def restore(self, *, every: bool = False) -> Path | None:
        restore(self.work, self.backup, self.key, every=every, log=self.said.append)
        return newest_checkpoint(self.work.root, self.key)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_newest_checkpoint_is_there_and_older_ones_go(where: Where, tmp_path: Path) -> None:
    first = Machine(where, tmp_path / "first")
    with sending(first.work, first.backup, every=False, log=first.said.append):
        for step in (5, 10):
            first.save(step)
            rotate(first.work.root, 1)
            until(lambda step=step: first.backup.names() == [f"checkpoint-{step}"])  # type: ignore[misc]
    assert first.said == ["the checkpoint of step 5 is in the store", "the checkpoint of step 10 is in the store"]
    second = Machine(where, tmp_path / "second")
    checkpoint = second.restore()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-10"
    assert (checkpoint / "states" / "optimizer.bin").read_bytes() == b"state 10"
    assert second.work.metrics.read_text() == '{"step":5}\n{"step":10}\n'
    assert second.said == ["the checkpoint of step 10 came from the store"]


def test_checkpoints_that_nobody_can_go_on_from_are_not_sent(where: Where, tmp_path: Path) -> None:
    first = Machine(where, tmp_path / "first")
    with sending(first.work, first.backup, every=False, log=first.said.append):
        first.save(5)
        until(lambda: first.backup.names() == ["checkpoint-5"])
        first.save(10, resumable=False)
        first.save(7)
        until(lambda: first.backup.names() == ["checkpoint-7"])
    assert first.said == ["the checkpoint of step 5 is in the store", "the checkpoint of step 7 is in the store"]


def test_what_is_further_here_is_kept(where: Where, tmp_path: Path) -> None:
    first, second = Machine(where, tmp_path / "first"), Machine(where, tmp_path / "second")
    with sending(first.work, first.backup, every=False, log=first.said.append):
        first.save(5)
        until(lambda: first.backup.names() == ["checkpoint-5"])
    second.save(6)
    assert second.restore() == second.work.root / "checkpoint-6"
    assert second.said == []


def test_a_damaged_backup_is_passed_over_for_an_older_one(where: Where, tmp_path: Path) -> None:
    first = Machine(where, tmp_path / "first")
    with sending(first.work, first.backup, every=True, log=first.said.append):
        for step in (5, 10):
            first.save(step)
        until(lambda: len(first.backup.names()) == 2)
    where.write(f".work/train/{first.key}/.sent/checkpoint-10/checkpoint-10/weights.bin", b"10" * 999 + b"11")
    second = Machine(where, tmp_path / "second")
    checkpoint = second.restore()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-5"
    with sending(second.work, second.backup, every=False, log=second.said.append):
        second.save(11)
        until(lambda: second.backup.names() == ["checkpoint-11"])


def test_a_training_that_is_stopped_sends_its_last_checkpoint(where: Where, tmp_path: Path) -> None:
    first = Machine(where, tmp_path / "first")

    def train() -> None:
        with sending(first.work, first.backup, every=False, log=first.said.append):
            first.save(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert first.backup.names() == ["checkpoint-7"]


def test_a_store_that_refuses_does_not_stop_the_training(
    where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Machine(where, tmp_path / "first")
    first.save(5)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = Backup(where.open(tmp_path / "first").place, f".work/train/{first.key}", "right")
    with sending(first.work, refused, every=False, log=first.said.append):
        until(lambda: len(first.said) == 1)
    assert "could not be sent to the store" in first.said[0]
